from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import pytest

from normfold.errors import GraphError
from normfold.graph.powers import Rescaling
from normfold.verify.manifest import KEY, FoldedNorm, Manifest, read_manifest

FULL = Manifest(
    version="1.2.3",
    name="vit.pt",
    path="../vit.pt",
    sha256="ab" * 32,
    arch="vit",
    arch_args={"depth": 2},
    inputs=("x:float32[B,1,8,8]",),
    ema=True,
    norms=(
        FoldedNorm("blocks.0.norm1", "UN", "folded", ("blocks.0.attn.qkv",)),
        FoldedNorm("head.norm", "LayerNorm", "kept"),
    ),
)


def holding(text: str) -> ir.Model:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 18}), ir_version=10)
    model.metadata_props[KEY] = text
    return model


def test_it_is_one_line_of_json_with_sorted_keys() -> None:
    text = FULL.dumps()
    assert text == FULL.dumps()
    assert "\n" not in text
    data = json.loads(text)
    assert list(data) == sorted(data)
    assert data["source"] == {"name": "vit.pt", "path": "../vit.pt", "sha256": "ab" * 32}
    assert data["arch_args"] == {"depth": 2}
    assert data["sites"][0] == {
        "name": "blocks.0.norm1",
        "kind": "UN",
        "status": "folded",
        "into": ["blocks.0.attn.qkv"],
    }
    assert "path" not in json.loads(replace(FULL, path=None).dumps())["source"]


def test_what_is_written_is_read() -> None:
    powers = Rescaling(
        (("h", 1, -4),), (("n", "epsilon", 1e-7),), (("g", "g.scaled", -4, ()), ("h", "h.to_square", 3, ("s",)))
    )
    for manifest in (FULL, replace(FULL, path=None, arch=None, dtype="float16", center=True, powers=powers)):
        assert read_manifest(holding(manifest.dumps()), Path("m.onnx")) == manifest
    assert FULL.folded == ("blocks.0.norm1",)
    assert read_manifest(ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), Path("m.onnx")) is None


@pytest.mark.parametrize("change", [{"sites": 3}, {"source": []}, {"task": "dance"}, {"sites": [{"status": "folded"}]}])
def test_another_tool_s_manifest_is_an_error_that_names_the_file(change: dict[str, object]) -> None:
    text = json.dumps(json.loads(FULL.dumps()) | change)
    with pytest.raises(GraphError, match=r"m\.onnx: its manifest .* name the source with --against"):
        read_manifest(holding(text), Path("m.onnx"))
