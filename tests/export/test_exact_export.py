"""What is exported is what the module computes, to the last digit, and the module is what it was."""

from __future__ import annotations

import collections
import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from normfold.checkpoint.source import Source
from normfold.errors import DifferenceError
from normfold.export.tidy import simplify
from normfold.export.to_onnx import export
from normfold.graph.operators import op_counts
from normfold.inputs.cases import Case, draw_cases, told_by_values
from normfold.inputs.spec import parse_specs
from normfold.models.t2t import TokenPerformer
from normfold.norms.detect import find_norms
from normfold.pipeline import run as pipeline


def source_of(module: nn.Module, *inputs: str) -> Source:
    return Source(
        Path("test.pt"), "0" * 64, "torch", module.eval(), None, parse_specs(inputs), norms=find_norms(module)
    )


def run(model: ir.Model, *values: np.ndarray) -> np.ndarray:
    """Without the runtime's own optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = {value.name: array for value, array in zip(session.get_inputs(), values, strict=True)}
    result: np.ndarray = session.run(None, feeds)[0]
    return result


class Of(nn.Module):
    """The function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# --- constants near 0 and 1 ----------------------------------------------------------------------------------------

NEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "x + 1e-8": lambda x: (x + 1e-8) / 1e-8,
    "1e-8 + x": lambda x: (1e-8 + x) / 1e-8,
    "x - 3e-9": lambda x: (x - 3e-9) / 1e-8,
    "x * (1 + 3e-6)": lambda x: x * (1 + 3e-6),
    "(1 - 9e-6) * x": lambda x: (1 - 9e-6) * x,
    "x / (1 + 8e-6)": lambda x: x / (1 + 8e-6),
    "x + 1e-12": lambda x: (x + 1e-12).log(),
}


@pytest.mark.parametrize("function", NEAR.values(), ids=NEAR)
def test_a_constant_near_0_or_1_is_neither(function: Callable[[Tensor], Tensor]) -> None:
    model = export(source_of(Of(function), "x:float32[B,4]"))
    tiny = np.array([[0.0, 1e-9, 2e-8, 1e-7]] * 3, dtype=np.float32)
    large = np.array([[1.0, 3.0, 1000.0, 0.1]] * 3, dtype=np.float32)
    for values in (tiny, large):
        with torch.no_grad():
            expected = function(torch.from_numpy(values)).numpy()
        # One operation after another, each rounded once: logarithms may differ in the last bit.
        np.testing.assert_allclose(run(model, values), expected, rtol=1.2e-7, atol=0)


NEUTRAL: dict[str, Callable[[Tensor], Tensor]] = {
    "x + 0": lambda x: (x + 0.0).exp(),
    "0 + x": lambda x: (0.0 + x).exp(),
    "x - 0": lambda x: (x - 0.0).exp(),
    "x * 1": lambda x: (x * 1.0).exp(),
    "1 * x": lambda x: (1.0 * x).exp(),
    "x / 1": lambda x: (x / 1.0).exp(),
}


@pytest.mark.parametrize("function", NEUTRAL.values(), ids=NEUTRAL)
def test_exactly_0_and_1_are_dropped(function: Callable[[Tensor], Tensor]) -> None:
    assert op_counts(export(source_of(Of(function), "x:float32[B,4]"))) == {"Exp": 1}


def test_a_subtraction_from_0_and_a_quotient_of_1_stay() -> None:
    model = export(source_of(Of(lambda x: (0.0 - x) + 1.0 / x), "x:float32[B,2]"))
    values = np.array([[2.0, -4.0]], dtype=np.float32)
    np.testing.assert_array_equal(run(model, values), [[-1.5, 3.75]])


OTHERS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    # onnxscript's rules for these change the function: found by reading them.
    "two slices of an odd axis": (lambda x: torch.cat([x[..., 2:], x[..., :2]], -1), "x:float32[B,5]"),
    "a bound below 0 under a Relu": (lambda x: torch.relu(x.clamp(-3.0, -1.0)), "x:float32[B,5]"),
    "integers through float32 to float16": (lambda x: x.to(torch.float32).to(torch.float16), "x:float64[B,5]"),
}


@pytest.mark.parametrize(("function", "spec"), OTHERS.values(), ids=OTHERS)
def test_rules_that_change_the_function_are_not_among_ours(function: Callable[[Tensor], Tensor], spec: str) -> None:
    source = source_of(Of(function), spec)
    rng = np.random.default_rng(0)
    # Between two float16 numbers, and a hair above the middle in float64 alone.
    middle = 1.0 + 2.0**-11 + 2.0**-40
    values = np.concatenate([rng.standard_normal((3, 4)) * 3, np.full((3, 1), middle)], 1)
    values = values.astype(source.inputs[0].dtype)
    with torch.no_grad():
        expected = function(torch.from_numpy(values)).numpy()
    np.testing.assert_array_equal(run(export(source), values), expected)


# --- the papers' own epsilon ---------------------------------------------------------------------------------------


class TinyConstants(nn.Module):
    """An epsilon of 1e-8 under a quotient, and a factor of 1 + 3e-6."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x))) * (x.amax(1, keepdim=True) > 0.5)
        z: Tensor = self.head(y / (y.norm(dim=1, keepdim=True) + 1e-8)) * (1 + 3e-6)
        return z


def test_a_row_of_zeros_is_a_row_of_zeros() -> None:
    torch.manual_seed(0)
    module = TinyConstants().eval()
    nn.init.zeros_(module.head.bias)
    model = export(source_of(module, "x:float32[B,3,8,8]"))
    x = torch.rand(2, 3, 8, 8)
    x[0, :, 0] = 0.0
    with torch.no_grad():
        expected = module(x).numpy()
    found = run(model, x.numpy())
    assert not found[0, :, 0].any()
    # float32's own rounding over a handful of operations; the factor alone is 3e-6.
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0, 4.0, 30.0])
def test_the_performer_stays_finite_at_inputs_of_any_size(scale: float) -> None:
    torch.manual_seed(0)
    module = TokenPerformer(16, 32, norm=lambda _: nn.Identity()).eval()
    model = export(source_of(module, "x:float32[B,7,16]"))
    x = torch.randn(3, 7, 16) * scale
    with torch.no_grad():
        expected, exact = module(x).numpy(), copy.deepcopy(module).double()(x.double()).numpy()
    found = run(model, x.numpy())
    assert np.isfinite(found).all()
    size = np.sqrt((exact**2).mean())
    own, error = (np.abs(value - exact).max() / size for value in (expected, found))
    # What torch's own float32 makes of it, and no more than that: with the epsilon gone it is many times as much.
    assert error <= 2 * own + 1e-6


# --- graphs stay as small as they were -----------------------------------------------------------------------------


def test_simplifying_again_changes_nothing() -> None:
    torch.manual_seed(0)
    model = export(source_of(TinyConstants(), "x:float32[B,3,8,8]"))
    before = ir.to_proto(model).SerializeToString()
    simplify(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_padding_with_zeros_becomes_the_convolutions_own_and_a_bias_of_zeros_goes() -> None:
    class Padded(nn.Module):
        def __init__(self, fill: float, bias: float) -> None:
            super().__init__()
            self.conv, self.fill = nn.Conv2d(2, 3, 3), fill
            nn.init.constant_(self.conv.bias, bias)  # type: ignore[arg-type]

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(nn.functional.pad(x, (1, 1, 1, 1), value=self.fill))
            return y

    for fill, bias, expected in [(0.0, 0.0, ["Conv"]), (1e-9, 1e-9, ["Pad", "Conv"])]:
        model = export(source_of(Padded(fill, bias), "x:float32[B,2,6,6]"))
        assert [node.op_type for node in model.graph] == expected
        assert len(model.graph.node(-1).inputs) == (2 if bias == 0.0 else 3)


# --- the module is left as it was ----------------------------------------------------------------------------------


class CachesByShape(nn.Module):
    """Keeps a grid for the last input shape, as detection heads keep their anchors."""

    shape: torch.Size | None = None
    grid = torch.empty(0)

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).flatten(2)
        if self.shape != y.shape:
            self.shape, self.grid = y.shape, torch.arange(y.shape[2], dtype=y.dtype) + 0.5
        z: Tensor = y * self.grid
        return z


class CachesInContainers(CachesByShape):
    """The same in a dict, a list and an object of its own, which the module holds."""

    class Store:
        grid: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.grids: dict[int, Tensor] = {}
        self.seen: list[Tensor] = []
        self.nested: dict[str, Any] = {"store": self.Store(), "sizes": set()}

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).flatten(2)
        size = y.shape[2]
        if size not in self.grids:
            self.grids[size] = torch.arange(size, dtype=y.dtype) + 0.5
            self.seen.append(self.grids[size])
            self.nested["store"].grid = self.grids[size]
            self.nested["sizes"].add(size)
        z: Tensor = y * self.grids[size] + 0.0 * self.seen[-1] + 0.0 * self.nested["store"].grid
        return z


@functools.lru_cache
def grid_of(size: int) -> Tensor:
    return torch.arange(size, dtype=torch.float32) + 0.5


class CachesInAFunction(CachesByShape):
    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).flatten(2)
        z: Tensor = y * grid_of(y.shape[2])
        return z


@pytest.mark.parametrize("kind", [CachesByShape, CachesInContainers, CachesInAFunction])
def test_a_module_that_caches_is_exported_and_left_alone(kind: type[CachesByShape]) -> None:
    torch.manual_seed(0)
    module = kind().eval()
    model = export(source_of(module, "x:float32[1,3,8,8]"))
    assert module.state_dict().keys() == CachesByShape().state_dict().keys()
    assert "grid" not in module.__dict__
    assert not getattr(module, "grids", None) and not getattr(module, "seen", None)
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = module(x)
    assert type(expected) is Tensor
    np.testing.assert_allclose(run(model, x.numpy()), expected.numpy(), rtol=1e-5, atol=1e-6)


class Making(collections.OrderedDict[str, type]):
    """A registry that makes something new whenever it is asked, as those of activations do."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


def test_a_registry_keeps_what_it_stores() -> None:
    class Registered(nn.Linear):
        kinds = Making(relu=nn.ReLU, gelu=nn.GELU)

        def forward(self, x: Tensor) -> Tensor:
            return torch.as_tensor(self.kinds["relu"](super().forward(x)))

    export(source_of(Registered(4, 4).eval(), "x:float32[B,4]"))
    assert list(collections.OrderedDict.items(Registered.kinds)) == [("relu", nn.ReLU), ("gelu", nn.GELU)]


def test_a_failed_export_leaves_the_module_alone_too() -> None:
    class Branches(CachesByShape):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    module = Branches().eval()
    with pytest.raises(Exception, match="control flow"):
        export(source_of(module, "x:float32[1,3,8,8]"))
    assert module.shape is None and "grid" not in module.__dict__


# --- what is said where an export is wrong all the same ------------------------------------------------------------


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.BatchNorm1d(4), nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.norm(x))
        return y


def cut_off(model: ir.Model, most: float) -> None:
    """Spoil a graph: its input passes a Clip that only large numbers notice."""
    simplify(model)
    (x,) = model.graph.inputs
    bounds = [
        ir.Value(name=name, const_value=ir.tensor(np.float32(most * sign))) for name, sign in (("l", -1), ("h", 1))
    ]
    for bound in bounds:
        model.graph.register_initializer(bound)
    readers = list(x.uses())
    clip = ir.node("Clip", [x, *bounds])
    clip.outputs[0].type, clip.outputs[0].shape, clip.outputs[0].name = x.type, x.shape, "clipped"
    for node, index in readers:
        node.replace_input_with(index, clip.outputs[0])
    model.graph.insert_before(model.graph.node(0), clip)


@pytest.mark.parametrize("spec", ["x:float32[B,4,64]", "x:float32[3,4,64]"])
def test_a_failure_at_large_inputs_does_not_blame_the_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    torch.manual_seed(0)
    torch.save(Half().state_dict(), tmp_path / "c.pt")
    cases = draw_cases(parse_specs([spec]))
    usual = max(float(np.abs(case.feeds["x"]).max()) for case in cases if case.scale <= 1.0)
    monkeypatch.setattr("normfold.export.tidy.simplify", lambda model: cut_off(model, usual))
    with pytest.raises(DifferenceError) as caught:
        pipeline.fold(tmp_path / "c.pt", tmp_path / "o.onnx", model=f"{__name__}:Half", inputs=[spec])
    text = str(caught.value)
    assert "depends on the size of the inputs and not on their shape: inputs x2 disagree" in text
    assert "baked" not in text and "int(x.shape" not in text and "disagrees at" not in text


def test_failures_that_the_values_tell_and_those_that_the_shape_tells() -> None:
    def case(batch: int, scale: float) -> Case:
        return Case({"B": batch}, 0, scale, {})

    by_size = [case(1, 1.0), case(3, 1.0), case(3, 0.5), case(3, 2.0)]
    assert told_by_values(by_size, [True, True, True, False]).endswith(
        "inputs x2 disagree, and inputs x0.5, x1 of the same shape agree"
    )
    assert told_by_values([*by_size, case(3, 1.0)], [True, True, True, False, False]).endswith("agree and disagree")
    for agrees in ([False, True, True, True], [False, True, True, False], [False] * 4, [True] * 4):
        assert told_by_values(by_size, agrees) == ""
