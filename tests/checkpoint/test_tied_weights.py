"""One parameter under several names, and a file with a value for each: equal values, or a refusal that names them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from normfold.checkpoint.load import load_checkpoint
from normfold.errors import ArchitectureError, CheckpointError
from tests.checkpoint.test_authors_files import state_of

HERE = __name__


class _Language(nn.Module):
    """An embedding, and a projection to the words."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 11, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(self.embed(ids))
        return y


class OneParameter(_Language):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.embed.weight


class OneStorage(_Language):
    """Two parameters that share their memory, as `a.data = b.data` makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight.data = self.embed.weight.data


class ATransposedView(_Language):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(11, 4, bias=False)
        self.head.weight = nn.Parameter(self.embed.weight.data.t())

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.embed(ids) @ self.head.weight
        return y


class APart(_Language):
    """The projection is to the first words alone, whose rows it shares."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight = nn.Parameter(self.embed.weight.data[:5])


class OneModuleTwice(_Language):
    def __init__(self) -> None:
        super().__init__()
        self.alias = self.embed


class ATiedBuffer(_Language):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(4))
        self.register_buffer("copy", self.table)


KINDS: list[tuple[type[nn.Module], str, str]] = [
    (OneParameter, "embed.weight", "head.weight"),
    (OneStorage, "embed.weight", "head.weight"),
    (ATransposedView, "embed.weight", "head.weight"),
    (APart, "embed.weight", "head.weight"),
    (OneModuleTwice, "embed.weight", "alias.weight"),
    (ATiedBuffer, "table", "copy"),
]


def read(path: Path, kind: type[nn.Module], state: dict[str, Tensor]) -> nn.Module:
    torch.save(state, path)
    module = load_checkpoint(path, model=f"{HERE}:{kind.__name__}", inputs=["ids:int64[B,L]<5"]).module
    assert module is not None
    return module


@pytest.mark.parametrize(("kind", "one", "other"), KINDS, ids=[kind.__name__ for kind, _, _ in KINDS])
def test_different_values_of_one_tensor_are_refused_by_both_names(
    tmp_path: Path, kind: type[nn.Module], one: str, other: str
) -> None:
    state = {name: value.clone() for name, value in kind().state_dict().items()}
    module = read(tmp_path / "c.pt", kind, state)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    for changed in (one, other):
        # One element of those that the names share; the order of the file must not matter.
        other_values = {name: value.clone() for name, value in state.items()}
        other_values[changed][(0,) * other_values[changed].ndim] += 1.0
        for ordered in (other_values, dict(reversed(other_values.items()))):
            with pytest.raises(ArchitectureError, match="different values under") as caught:
                read(tmp_path / "c.pt", kind, ordered)
            assert one in str(caught.value) and other in str(caught.value) and "c.pt" in str(caught.value)


@pytest.mark.parametrize(("kind", "one", "other"), KINDS, ids=[kind.__name__ for kind, _, _ in KINDS])
def test_one_name_is_enough_where_it_says_all(tmp_path: Path, kind: type[nn.Module], one: str, other: str) -> None:
    state = {name: value.clone() for name, value in kind().state_dict().items()}
    del state[other]
    if kind in (OneParameter, OneModuleTwice, ATiedBuffer):
        assert torch.equal(read(tmp_path / "c.pt", kind, state).state_dict()[other], state[one])
    else:
        with pytest.raises(ArchitectureError, match="1 missing"):
            read(tmp_path / "c.pt", kind, state)


def test_values_that_agree_once_they_are_converted(tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in OneParameter().state_dict().items()}
    state["embed.weight"][0, 0] = float("nan")
    state["head.weight"] = state["embed.weight"].double()
    module = read(tmp_path / "c.pt", OneParameter, state)
    assert module.get_parameter("head.weight").isnan().sum() == 1
    state["head.weight"] = state["embed.weight"].half()
    with pytest.raises(ArchitectureError, match="different values"):
        read(tmp_path / "c.pt", OneParameter, state)


def test_memory_that_is_shared_without_an_overlap(tmp_path: Path) -> None:
    """Parameters cut out of one flat tensor are several; and a hook may change what is loaded."""
    state = {name: value.clone() for name, value in Flat().state_dict().items()}
    state["a"] += 1.0
    module = read(tmp_path / "c.pt", Flat, state)
    assert torch.equal(module.get_parameter("a"), 2 * state["a"])


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        flat = torch.zeros(8)
        self.a, self.b = nn.Parameter(flat[:4]), nn.Parameter(flat[4:])
        self.register_load_state_dict_post_hook(self.double_a)

    @staticmethod
    def double_a(module: nn.Module, keys: Any) -> None:
        module.get_parameter("a").data.mul_(2.0)

    def forward(self, ids: Tensor) -> Tensor:
        return self.a[ids] + self.b[ids]


Change = Callable[[dict[str, Tensor]], None]


@pytest.mark.parametrize(
    ("name", "options", "names"),
    [
        (
            "nmt_un",
            {"vocab": 40, "dim": 16, "depth": 1, "hidden": 24, "heads": 2, "shared": "all"},
            ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"),
        ),
        (
            "deepnet_nmt_ln",
            {"vocab": 40, "dim": 16, "encoder_depth": 1, "decoder_depth": 1, "hidden": 24, "heads": 2, "positions": 9},
            ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "decoder.output_projection.weight"),
        ),
        (
            "char_lm",
            {"vocab": 40, "dim": 16, "depth": 1, "hidden": 24, "heads": 2, "tied": True},
            ("model.embed_tokens.weight", "lm_head.weight"),
        ),
    ],
)
def test_built_in_architectures_that_tie(
    tmp_path: Path, name: str, options: dict[str, Any], names: tuple[str, ...]
) -> None:
    state = {key: value.clone() for key, value in state_of(name, **options).items()}
    torch.save(state, tmp_path / "c.pt")
    assert load_checkpoint(tmp_path / "c.pt", arch=name, model_args=options).arch == name
    for changed in names:
        torch.save({**state, changed: state[changed] + 1.0}, tmp_path / "c.pt")
        with pytest.raises(ArchitectureError, match="different values") as caught:
            load_checkpoint(tmp_path / "c.pt", arch=name, model_args=options)
        assert changed in str(caught.value)
        assert sum(other in str(caught.value) for other in names) >= 2


def test_the_untied_form_is_taken_where_there_is_one(tmp_path: Path) -> None:
    options = {"vocab": 40, "dim": 16, "depth": 1, "hidden": 24, "heads": 2}
    state = state_of("llama_350m_rms", **options)
    torch.save(state, tmp_path / "c.pt")
    source = load_checkpoint(tmp_path / "c.pt", arch="llama_350m_rms")
    assert source.module is not None and "tied" not in source.arch_args
    assert torch.equal(source.module.get_parameter("lm_head.weight"), state["lm_head.weight"])
    assert torch.equal(source.module.get_parameter("model.embed_tokens.weight"), state["model.embed_tokens.weight"])


@pytest.mark.parametrize(
    ("changed", "shared"),
    [
        ((), "all"),
        (("encoder.embed_tokens.weight",), "decoder"),
        (("decoder.output_projection.weight",), "none"),
        (("encoder.embed_tokens.weight", "decoder.output_projection.weight"), "none"),
    ],
)
def test_which_tables_of_a_translator_are_one_is_read_from_their_values(
    tmp_path: Path, changed: tuple[str, ...], shared: str
) -> None:
    """Averaging writes every name apart, so that memory does not tell."""
    options = {"vocab": 40, "dim": 16, "depth": 1, "hidden": 24, "heads": 2}
    state = {key: value.clone() for key, value in state_of("nmt_un", **options).items()}
    state |= {name: state[name] + 1.0 + number for number, name in enumerate(changed)}
    torch.save(state, tmp_path / "c.pt")
    source = load_checkpoint(tmp_path / "c.pt", model_args={"heads": 2})
    assert source.module is not None and source.arch_args.get("shared", "all") == shared
    own = source.module.state_dict()
    assert all(torch.equal(own[key], value) for key, value in state.items())


# --- several names that become one ---------------------------------------------------------------------------------


def test_wrappers_names_that_collide(tmp_path: Path) -> None:
    state = {name: value.clone() for name, value in OneParameter().state_dict().items()}
    twice = {**state, "embed._orig_mod.weight": state["embed.weight"].clone()}
    read(tmp_path / "c.pt", OneParameter, twice)
    twice["embed._orig_mod.weight"] += 1.0
    with pytest.raises(ArchitectureError, match=r"several tensors are embed\.weight without"):
        read(tmp_path / "c.pt", OneParameter, twice)


def test_shards_that_hold_one_name(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}'
    )
    safetensors.torch.save_file({"a": torch.zeros(2), "b": torch.ones(2)}, tmp_path / "1.safetensors")
    safetensors.torch.save_file({"b": torch.zeros(2)}, tmp_path / "2.safetensors")
    with pytest.raises(CheckpointError, match=r"2\.safetensors and another shard hold different values of b"):
        load_checkpoint(tmp_path)
