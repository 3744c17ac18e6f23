from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normfold.analysis.fixed import FixedNorm
from normfold.analysis.frames.powers import Room
from normfold.analysis.plan import Merge, Site, Spread, Untied
from normfold.pipeline import run as pipeline
from normfold.report.report import GraphReport, OutputInfo, Report, SourceInfo
from normfold.verify.judge import Edge
from tests.paths import DOCS
from tests.verify.test_truth import saved, weight

PAGE = DOCS / "report.md"

SOURCE = SourceInfo(
    "some/where/vit.pt", "ab" * 32, "torch", "vit", {"depth": 2}, ("x:float32[B,1,8,8]",), trusted=False
)
SITES = (
    Site("blocks.0.norm1", "UN", 64, "folded", into=("blocks.0.attn.qkv",), shift="reader", shift_elements=192),
    Site(
        "stem.norm", "BatchNorm", 8, "partial", "shift-meets-padding", "conv: padded with zeros", ("stem.conv",), "add"
    ),
    Site("head.norm", "LayerNorm", 64, "kept", "token-statistics", "its statistics are not stored"),
)
GRAPH = GraphReport(
    name="",
    inputs=SOURCE.inputs,
    sites=SITES,
    nodes_before={"MatMul": 3, "Add": 4},
    nodes_after={"MatMul": 3},
    output=OutputInfo("vit.onnx", 1000, "cd" * 32, 1200),
    edges=(Edge("original -> folded", 1e-6, 2e-6, 3e-6, True, "fine"),),
    untied=(Untied("table", 4096),),
    room=(Room("add_3", 4, 4000.0), Room("zero", 0, 0.0)),
    spreads=(Spread("blocks.0.fc1.weight", 1.25, 3.5, 1.5), Spread("head.weight", 1.5, 1.25)),
    fixed=(FixedNorm("n", "blocks.0.norm2", True, 1e12, 1.5e-9),),
    merged=(Merge("add", "x", "conv", (), "stem.conv", ("stem.conv", "stem.point", "identity")),),
)
FULL = Report("0.1.0", SOURCE, (GRAPH,), seconds={"load": 0.123456}, warnings=("careful",))
# Their keys are operators and stages and the architecture's own, not fields.
NODES = {f"{of}nodes.{when}" for of in ("", "graphs[].") for when in ("before", "after")}
OPEN = {*NODES, "seconds", "source.arch_args"}


def fields(value: Any, prefix: str = "") -> set[str]:
    """Every field of a report as docs/report.md spells it: `sites[].name`."""
    if isinstance(value, list):
        return {name for item in value for name in fields(item, f"{prefix}[]")}
    if not isinstance(value, dict) or prefix in OPEN:
        return set()
    found = set()
    for key, item in value.items():
        name = f"{prefix}.{key}" if prefix else key
        found |= {name} | fields(item, name)
    return found


def test_every_field_is_documented_and_every_documented_field_exists() -> None:
    documented = set(re.findall(r"^\| `([a-z_.\[\]0-9]+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert len(documented) > 30
    assert fields(FULL.to_json()) == documented


def test_the_json_is_what_the_report_says() -> None:
    data = json.loads(FULL.dumps())
    assert data["schema"] == 1
    assert data["source"]["path"] == "some/where/vit.pt"
    assert data["output"] == {
        "path": "vit.onnx",
        "bytes": 1000,
        "sha256": "cd" * 32,
        "unfolded_bytes": 1200,
        "data": [],
    }
    assert data["sites"][1] == {
        "graph": None,
        "name": "stem.norm",
        "kind": "BatchNorm",
        "channels": 8,
        "status": "partial",
        "code": "shift-meets-padding",
        "reason": "conv: padded with zeros",
        "into": ["stem.conv"],
        "shift": "add",
        "shift_elements": 0,
    }
    assert [one["equalized"] for one in data["spreads"]] == [1.5, None]
    assert data["untied"] == [{"graph": None, "name": "table", "bytes": 4096}]
    assert data["merged"] == [{"graph": None, "into": "stem.conv", "branches": ["stem.conv", "stem.point", "identity"]}]
    assert data["nodes"] == {"before": {"Add": 4, "MatMul": 3}, "after": {"MatMul": 3}}
    assert data["verification"]["edges"][0]["bound"] == 3e-6
    assert data["seconds"] == {"load": 0.1235}
    assert FULL.dumps().endswith("}\n")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_figure_that_is_not_finite_is_null(value: float) -> None:
    graph = GraphReport("", (), (), {}, {}, edges=(Edge("e", value, value, 1.0, passed=False),))
    report = Report("0", SOURCE, (graph,))
    edge = json.loads(report.dumps())["verification"]["edges"][0]
    assert edge["max_abs"] is None
    assert edge["relative"] is None
    assert edge["bound"] == 1.0
    assert report.failed == report.edges
    assert report.to_json()["output"] is None


def test_strict_objects_to_stored_statistics_only() -> None:
    assert FULL.unfolded == (SITES[1],)
    assert FULL.changed
    assert not Report("0", SOURCE, (replace(GRAPH, sites=SITES[2:], spreads=()),)).changed


def test_what_no_sample_reached_is_in_the_report(tmp_path: Path) -> None:
    text = "g (float[N,8] x) => (float[N,6] y) { dead = Relu(off)  z = Mul(x, dead)  y = MatMul(z, w) }"
    off = np.where(np.arange(8) < 3, -1.0, 1.0)
    path = saved(tmp_path, text, off=off, w=weight(8, 6))
    told = pipeline.fold(path, tmp_path / "b.onnx").to_json()["unexercised"]
    assert told == ["channels that were 0 in every sample: 3 of 8, in z (3 of 8)"]
    assert pipeline.fold(path, tmp_path / "c.onnx", verify=False).to_json()["unexercised"] is None
    alive = saved(tmp_path, text, name="d", off=abs(off), w=weight(8, 6))
    assert pipeline.fold(alive, tmp_path / "e.onnx").to_json()["unexercised"] == []


def test_two_graphs_are_told_apart_and_summed() -> None:
    edge = Edge("original -> folded", 1e-6, 9e-6, 3e-6, passed=False)
    second = GraphReport("decoder", ("ids:int64[B]",), SITES[:1], {"MatMul": 2}, {"MatMul": 1}, edges=(edge,))
    report = Report("0", SOURCE, (replace(GRAPH, name="encoder"), second), task="encoder-decoder")
    data = report.to_json()
    assert data["task"] == "encoder-decoder"
    assert data["output"] is None
    assert [graph["name"] for graph in data["graphs"]] == ["encoder", "decoder"]
    assert [graph["output"] and graph["output"]["path"] for graph in data["graphs"]] == ["vit.onnx", None]
    assert data["graphs"][1]["inputs"] == ["ids:int64[B]"]
    assert [site["graph"] for site in data["sites"]] == ["encoder"] * 3 + ["decoder"]
    assert [edge["graph"] for edge in data["verification"]["edges"]] == ["encoder", "decoder"]
    assert data["nodes"] == {"before": {"Add": 4, "MatMul": 5}, "after": {"MatMul": 4}}
    assert report.failed == (edge,)
