"""benchmarks/zoo.py: what it says of rows, how it resumes, and one model by both exporters."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks.compatibility_page import Row, Tried
from benchmarks.fill_in import filled_in
from benchmarks.zoo import PART, behind, longer, measured, notes_of, page, read, rows_of, source_of
from benchmarks.zoo_models import ARCHITECTURES, Tensors, draw_constants
from tests.paths import DOCS

SIM = Tried(left=1, nodes=3, right=True, running={"Gemm": 2, "Relu": 1})
ROW = Row(
    name="timm: a",
    group="dynamo",
    norms=2,
    folded=0,
    partial={},
    kept={"wall": 2},
    statistics=0,
    left=2,
    nodes=(5, 5),
    error=0.0,
    bound=1.0,
    tools={"onnxsim": SIM},
    running={"MatMul": 2, "Add": 2, "Relu": 1},
)


def test_a_right_result_with_fewer_norms_is_told() -> None:
    assert behind(ROW) == ["onnxsim"]
    assert behind(replace(ROW, left=1)) == behind(replace(ROW, tools={"onnxsim": replace(SIM, right=False)})) == []


def test_the_operators_that_a_shorter_result_has_not() -> None:
    assert longer(ROW) == ("onnxsim", {"MatMul": 2, "Add": 2, "Gemm": -2})
    assert longer(replace(ROW, running={"MatMul": 3})) is None
    assert longer(replace(ROW, tools={"onnxsim": replace(SIM, right=False)})) is None


def test_the_last_line_of_a_model_counts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read(path) == {}
    lines = [
        {"name": "timm: a", "note": "no result in 1 s"},
        {"name": "timm: a", "exports": {"dynamo": asdict(ROW), "torchscript": {"note": "no export: why"}}},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_text(text + text.splitlines()[0][:20], encoding="utf-8")  # as if it had been ended on the way
    told = list(read(path).values())
    assert rows_of(told) == [ROW]
    assert list(notes_of(told)) == ["timm: a, torchscript: no export: why"]
    assert list(notes_of(lines[:1])) == ["timm: a: no result in 1 s"]


def test_a_constant_that_would_hide_a_fault_is_drawn() -> None:
    module = torch.nn.ParameterDict({"scale": torch.full((64,), 1e-6), "token": torch.zeros(64), "w": torch.rand(64)})
    kept = module["w"].clone()
    draw_constants(module)
    assert 0.5 < module["scale"].mean() < 1.5 and 0.0 < module["token"].std() < 0.1
    assert torch.equal(module["w"], kept)


def test_a_model_that_returns_many_things_returns_its_tensors() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"a": x, "again": x, "many": [x + 1, x.argmax()], "name": "no tensor"}

    a, b = Tensors(Model(), "x")(torch.ones(2))
    assert a.tolist() == [1.0, 1.0] and b.tolist() == [2.0, 2.0]


def test_a_tenth_of_the_weights_is_negative() -> None:
    pytest.importorskip("transformers")
    module = source_of("transformers: resnet basic").module
    assert module is not None
    norms = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    weights = torch.cat([norm.weight for norm in norms])
    assert 0.05 < (weights < 0).double().mean() < 0.15
    assert all(norm.running_var is not None and bool((norm.running_var != 1.0).all()) for norm in norms)


def test_one_model() -> None:
    pytest.importorskip("timm")
    told = measured("timm: test_resnet", tools=["onnxruntime extended"])
    rows = rows_of([told])
    assert [row.group for row in rows] == ["dynamo", "torchscript"]
    for row in rows:
        assert row.right and row.norms and row.left == 0
        assert row.tools["onnxruntime extended"].right
    assert any(line.startswith("| timm: test_resnet | dynamo |") for line in page([told]))


def test_the_page_holds_what_it_says() -> None:
    text = filled_in(DOCS / "compatibility.md", PART)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in cells if row[0] in ARCHITECTURES]
    assert len({row[0] for row in rows}) >= 150
    for name, exporter, norms, nodes, own, *tools, why in rows:
        left = int(own.partition(" ·")[0])
        assert exporter in ("dynamo", "torchscript") and left <= int(norms) and int(nodes)
        assert "wrong" not in own
        right = [int(tool.partition(" ·")[0]) for tool in tools if "·" in tool and "wrong" not in tool]
        assert why or all(left <= count for count in right), name
