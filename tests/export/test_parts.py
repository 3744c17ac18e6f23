"""What a task makes of a model: the parts, their inputs, and errors for models that it is not for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from normfold.checkpoint.source import Source
from normfold.errors import InputSpecError, UsageError
from normfold.export.parts import split
from normfold.export.tasks import GRAPHS, check_task, places
from normfold.inputs.spec import parse_specs
from normfold.models import create
from normfold.norms.detect import find_norms

SMALL: dict[str, Any] = {"vocab": 61, "dim": 32, "heads": 2, "hidden": 48}
IDS = ("ids:int64[B,L]<61",)
PAIR = ("src:int64[N,S<=64]<61", "ids:int64[N,L<=64]<61")
CACHE = ("past_keys:float32[2,B,2,past>=0,16]", "past_values:float32[2,B,2,past>=0,16]")


class OwnDecoder(nn.Module):
    """A user's decoder: other names for the tokens, an option that nobody feeds, no word on its cache."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 7)

    def forward(
        self, tokens: Tensor, past_keys: Tensor, past_values: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.head(past_keys.sum((0, 2, 3)))[:, None] * tokens[..., None], past_keys, past_values


def source(module: nn.Module, *specs: str) -> Source:
    return Source(Path("m.pt"), "", "torch", module.eval(), None, parse_specs(specs), norms=find_norms(module))


def texts(part: Source) -> tuple[str, ...]:
    return tuple(str(spec) for spec in part.inputs)


def test_forward_is_the_model_as_it_is() -> None:
    whole = source(create("char_lm"), *IDS)
    assert split(whole, "forward") == {"": whole}


def test_a_decoder_gets_its_cache() -> None:
    whole = source(create("char_lm", depth=2, **SMALL), *IDS)
    (part,) = split(whole, "decoder-with-cache").values()
    assert part.module is whole.module
    assert texts(part) == (*IDS, *CACHE)
    assert part.norms == whole.norms
    assert split(replace(whole, module=create("char_lm", depth=2, **SMALL).double()), "decoder-with-cache")[""].inputs[
        1
    ].dtype == ("float64")


def test_inputs_that_were_given_stay_as_they_are() -> None:
    given = ("ids:int64[B,L=16]<9", "past_keys:float32[2,B,2,P>=0<=40,16]", "past_values:float32[2,B,2,P>=0<=40,16]")
    (part,) = split(source(create("char_lm", depth=2, **SMALL), *given), "decoder-with-cache").values()
    assert texts(part) == given


@pytest.mark.parametrize("name", ["nmt_un", "deepnet_nmt_un"])
def test_an_encoder_decoder_has_two_parts_with_the_names_of_the_whole(name: str) -> None:
    depths = {"depth": 2} if name == "nmt_un" else {"encoder_depth": 1, "decoder_depth": 2}
    whole = source(create(name, positions=64, **SMALL, **depths), *PAIR)
    parts = split(whole, "encoder-decoder")
    assert texts(parts["encoder"]) == PAIR[:1]
    assert texts(parts["decoder"]) == (
        PAIR[1],
        "source_keys:float32[2,N,2,S,16]",
        "source_values:float32[2,N,2,S,16]",
        "keep:bool[N,S]",
        "past_keys:float32[2,N,2,past>=0,16]",
        "past_values:float32[2,N,2,past>=0,16]",
    )
    # Every norm is in one of the two, and every weight of the parts is the model's own, under its own name.
    assert {norm for part in parts.values() for norm in part.norms} == set(whole.norms)
    assert whole.module is not None
    own = whole.module.state_dict(keep_vars=True)
    checked = 0
    for part in parts.values():
        assert part.module is not None
        assert not part.module.training
        for key, value in part.module.state_dict(keep_vars=True).items():
            assert own[key] is value
            checked += 1
    assert checked > 40


def test_a_users_decoder_says_what_its_cache_is_like() -> None:
    model = OwnDecoder()
    with pytest.raises(UsageError, match=r"OwnDecoder does not say.*cache_shape = \(layers, heads, head_dim\)"):
        split(source(model, "tokens:int64[B,L]<7"), "decoder-with-cache")
    model.cache_shape = (1, 3, 4)
    (part,) = split(source(model, "tokens:int64[B,L]<7"), "decoder-with-cache").values()
    assert texts(part)[1:] == ("past_keys:float32[1,B,3,past>=0,4]", "past_values:float32[1,B,3,past>=0,4]")
    with pytest.raises(InputSpecError, match="no forward takes an input ids; they take past_keys, past_values"):
        split(source(model, "ids:int64[B,L]<7"), "decoder-with-cache")


@pytest.mark.parametrize(
    ("name", "specs", "task", "says"),
    [
        ("vit", ("x:float32[B,1,8,8]",), "decoder-with-cache", "that of VisionTransformer takes x$"),
        ("vit", ("x:float32[B,1,8,8]",), "encoder-decoder", "VisionTransformer has none$"),
        ("nmt_un", PAIR, "decoder-with-cache", "takes src, ids; .*--task encoder-decoder$"),
        ("char_lm", IDS, "encoder-decoder", "CausalLM has none; .*--task decoder-with-cache$"),
    ],
)
def test_a_model_that_the_task_is_not_for(name: str, specs: tuple[str, ...], task: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says), torch.device("meta"):
        split(source(create(name), *specs), task)


def test_a_graph_has_the_inputs_it_has() -> None:
    with pytest.raises(UsageError, match=r"m\.pt is a graph already"):
        split(replace(source(create("char_lm"), *IDS), module=None), "decoder-with-cache")


def test_a_task_that_does_not_exist() -> None:
    with pytest.raises(UsageError, match="there is no task 'generate'; there are forward, decoder-with-cache, enc"):
        check_task("generate")
    for task in GRAPHS:
        check_task(task)


def test_two_graphs_lie_beside_each_other() -> None:
    assert places(Path("a/b.onnx"), "forward") == (Path("a/b.onnx"),)
    assert places(Path("a/b.v2.onnx"), "encoder-decoder") == (
        Path("a/b.v2.encoder.onnx"),
        Path("a/b.v2.decoder.onnx"),
    )
