from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from normfold.plan import Site
from normfold.report import OutputInfo, Report, SourceInfo, manifest
from normfold.verify import Edge

DOCS = Path(__file__).resolve().parent.parent / "docs" / "report.md"

SOURCE = SourceInfo(
    "some/where/vit.pt", "ab" * 32, "torch", "vit", {"depth": 2}, ("x:float32[B,1,8,8]",), trusted=False
)
SITES = (
    Site("blocks.0.norm1", "UN", 64, "folded", into=("blocks.0.attn.qkv",)),
    Site("stem.norm", "BatchNorm", 8, "partial", "shift-meets-padding", "conv: padded with zeros", ("stem.conv",)),
    Site("head.norm", "LayerNorm", 64, "kept", "token-statistics", "its statistics are not stored"),
)
FULL = Report(
    normfold="0.1.0",
    source=SOURCE,
    sites=SITES,
    nodes_before={"MatMul": 3, "Add": 4},
    nodes_after={"MatMul": 3},
    output=OutputInfo("vit.onnx", 1000, "cd" * 32, 1200),
    edges=(Edge("original -> folded", 1e-6, 2e-6, 3e-6, True, "fine"),),
    seconds={"load": 0.123456},
    warnings=("careful",),
)
# Their keys are operators and stages and the architecture's own, not fields.
OPEN = {"nodes.before", "nodes.after", "seconds", "source.arch_args"}


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
    documented = set(re.findall(r"^\| `([a-z_.\[\]0-9]+)` \|", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert len(documented) > 30
    assert fields(FULL.to_json()) == documented


def test_the_json_is_what_the_report_says() -> None:
    data = json.loads(FULL.dumps())
    assert data["schema"] == 1
    assert data["source"]["path"] == "some/where/vit.pt"
    assert data["output"] == {"path": "vit.onnx", "bytes": 1000, "sha256": "cd" * 32, "unfolded_bytes": 1200}
    assert data["sites"][1] == {
        "name": "stem.norm",
        "kind": "BatchNorm",
        "channels": 8,
        "status": "partial",
        "code": "shift-meets-padding",
        "reason": "conv: padded with zeros",
        "into": ["stem.conv"],
    }
    assert data["nodes"] == {"before": {"Add": 4, "MatMul": 3}, "after": {"MatMul": 3}}
    assert data["verification"]["edges"][0]["bound"] == 3e-6
    assert data["seconds"] == {"load": 0.1235}
    assert FULL.dumps().endswith("}\n")


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_figure_that_is_not_finite_is_null(value: float) -> None:
    report = Report("0", SOURCE, (), {}, {}, edges=(Edge("e", value, value, 1.0, passed=False),))
    edge = json.loads(report.dumps())["verification"]["edges"][0]
    assert edge["max_abs"] is None
    assert edge["relative"] is None
    assert edge["bound"] == 1.0
    assert report.failed == report.edges
    assert report.to_json()["output"] is None


def test_strict_objects_to_stored_statistics_only() -> None:
    assert FULL.unfolded == (SITES[1],)
    assert FULL.changed
    assert not Report("0", SOURCE, SITES[2:], {}, {}).changed


def test_the_manifest_is_deterministic_and_names_no_folder() -> None:
    text = manifest("0.1.0", SOURCE, SITES)
    assert text == manifest("0.1.0", SOURCE, SITES)
    assert "\n" not in text
    assert "some" not in text
    data = json.loads(text)
    assert data["source"] == {"name": "vit.pt", "sha256": "ab" * 32}
    assert data["arch_args"] == {"depth": 2}
    assert data["sites"][0] == {
        "name": "blocks.0.norm1",
        "kind": "UN",
        "status": "folded",
        "into": ["blocks.0.attn.qkv"],
    }
