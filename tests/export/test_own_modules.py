"""Modules of one's own: what they return, and what they keep from one call to the next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import ExportError
from normfold.export.outputs import plain, tensors_of
from normfold.export.to_onnx import export
from tests.export.test_to_onnx import assert_same_function, source_of
from tests.support.modules import Image


@dataclass
class Found:
    deep: Tensor
    rest: dict[str, Any]
    note: str = "none"
    missing: Tensor | None = None


@dataclass(frozen=True)
class Frozen:
    one: Tensor


class Returns(nn.Module):
    def __init__(self, made: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.made = nn.Linear(3, 4), nn.Linear(4, 5), made

    def forward(self, x: Tensor) -> Any:
        first = self.first(x)
        return self.made(first, self.second(first))


RETURNED: dict[str, tuple[Callable[[Tensor, Tensor], Any], int]] = {
    "dict": (lambda a, b: {"deep": b, "fine": a}, 2),
    "dataclass": (lambda a, b: Found(b, {"fine": a}), 2),
    "frozen dataclasses in a list": (lambda a, b: [Frozen(a), Frozen(b)], 2),
    "dataclass in a dataclass": (lambda a, b: Found(a, {"more": Frozen(b)}, missing=a), 3),
}


@pytest.mark.parametrize("name", RETURNED)
def test_what_a_module_returns_is_what_the_graph_does(name: str) -> None:
    made, count = RETURNED[name]
    source = source_of(Returns(made), "x:float32[B,3]")
    model = export(source)
    assert len(model.graph.outputs) == count
    assert source.module is not None and "forward" not in vars(source.module)
    returned = list(tensors_of(source.module(torch.ones(2, 3))))
    assert [tuple(tensor.shape) for tensor in returned] == [
        (2, output.shape[1]) for output in model.graph.outputs if output.shape is not None
    ]


def test_a_dataclass_is_a_dict_of_what_holds_tensors() -> None:
    one = torch.ones(1)
    found = plain([Found(one, {"k": (one, Frozen(one))}), Frozen])
    assert found[0] == {"deep": one, "rest": {"k": (one, {"one": one})}} and found[1] is Frozen


class Kept(nn.Module):
    """Positions for the last size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.size: int | None = None
        self.places = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.size != x.shape[1]:
            self.size, self.places = x.shape[1], torch.arange(x.shape[1])[:, None] * 0.1
        return self.first(x) + self.places


class KeptBySize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.places: dict[tuple[int, str], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if (x.shape[1], "places") not in self.places:
            self.places[x.shape[1], "places"] = torch.arange(x.shape[1])[:, None] * 0.1
        return self.first(x) + self.places[x.shape[1], "places"]


@pytest.mark.parametrize("kind", [Kept, KeptBySize])
def test_what_was_kept_for_another_size_does_not_fix_the_axis(kind: type[nn.Module]) -> None:
    module = kind()
    module(torch.ones(1, 6, 3))
    kept = module.places
    source = source_of(module, "x:float32[B,L,3]")
    model = export(source)
    assert module.places is kept and type(kept) in (dict, Tensor)
    assert_same_function(source, model)


class Counts(nn.Module):
    """What it keeps is part of what it computes: it cannot be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.seen = {5: 1.0}

    def forward(self, x: Tensor) -> Tensor:
        self.seen[int(x.shape[0])] = 2.0
        return self.first(x) * self.seen[5]


def test_a_state_that_is_no_cache_is_not_taken_away() -> None:
    with pytest.raises(ExportError, match="axis B at"):
        export(source_of(Counts(), "x:float32[B,3]"))


def test_an_axis_that_has_to_be_longer_is_told_how_long() -> None:
    with pytest.raises(ExportError, match=r"axis H has to be 5 or more: write H>=5"):
        export(source_of(Image(), "x:float32[B,3,H,32]"))
    source = source_of(Image(), "x:float32[B,3,H>=5,W=4*w>=8]")
    assert_same_function(source, export(source))
