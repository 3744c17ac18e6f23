"""Folders as the Hugging Face hub has them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from normfold.checkpoint.load import load_checkpoint
from normfold.errors import ArchitectureError, CheckpointError
from tests.checkpoint.test_authors_files import LLAMA, state_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """LLaMA with PRepBN in two shards."""
    path = tmp_path / "llama"
    path.mkdir()
    state = state_of("llama_350m_prepbn", **LLAMA)
    names = sorted(state)
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        safetensors.torch.save_file({name: state[name] for name in part}, path / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(part, file))
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "llama", "num_attention_heads": 2, "rms_norm_eps": 1e-6, "hidden_size": 16}
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    (path / "tokenizer.json").write_text("{}")
    return path


def test_a_folder_of_shards(folder: Path) -> None:
    source = load_checkpoint(folder)
    assert (source.arch, source.format) == ("llama_350m_prepbn", "safetensors")
    assert {**LLAMA, **source.arch_args} == source.arch_args | LLAMA == source.arch_args
    assert [str(spec) for spec in source.inputs] == ["ids:int64[B,L]<40"]
    assert source.module is not None
    state = state_of("llama_350m_prepbn", **LLAMA)
    assert all(torch.equal(value, state[name]) for name, value in source.module.state_dict().items())
    files = ["config.json", *(f"model-0000{n}-of-00002.safetensors" for n in (1, 2)), "model.safetensors.index.json"]
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in files]
    assert source.sha256 == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    state = state_of("llama_350m_rms", **LLAMA)
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert load_checkpoint(tmp_path, arch="llama_350m_rms").format == "torch"
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    assert load_checkpoint(tmp_path, arch="llama_350m_rms").format == "safetensors"


def test_the_configuration_says_what_shapes_do_not(tmp_path: Path) -> None:
    """Newer files leave `inv_freq` out, and nothing but config.json knows the heads and the eps."""
    state = state_of("llama_350m_rms", **LLAMA)
    kept = {name: value for name, value in state.items() if not name.endswith("inv_freq")}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(ArchitectureError, match="do not show heads"):
        load_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2, "rms_norm_eps": 1e-5}')
    source = load_checkpoint(tmp_path)
    assert source.module is not None
    assert source.arch_args["heads"] == 2
    assert {part.eps for part in source.module.modules() if isinstance(part, nn.RMSNorm)} == {1e-5}


def spoiled(folder: Path, what: str) -> None:
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    name = next(iter(places))
    if what == "shard":
        (folder / places[name]).unlink()
    elif what == "tensor":
        index.write_text(json.dumps({"weight_map": {**places, "extra.weight": places[name]}}))
    elif what == "outside":
        index.write_text(json.dumps({"weight_map": {**places, name: "../other.safetensors"}}))
    elif what == "no map":
        index.write_text("{}")
    elif what == "not JSON":
        (folder / "config.json").write_text("<html>")
    else:
        index.unlink()


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("shard", r"model-0000\d-of-00002\.safetensors is missing"),
        ("tensor", r"lacks 1 tensors of its index \(extra\.weight\)"),
        ("outside", r"'\.\./other\.safetensors', which is not a file of its folder"),
        ("no map", "has no weight_map"),
        ("not JSON", r"config\.json is not JSON"),
        ("no index", r"is a directory without model\.safetensors or pytorch_model\.bin"),
    ],
)
def test_a_folder_that_is_not_whole(folder: Path, what: str, complaint: str) -> None:
    spoiled(folder, what)
    with pytest.raises(CheckpointError, match=complaint) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
