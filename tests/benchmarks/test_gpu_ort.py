"""The GPU study in onnxruntime, rehearsed on the CPU: the stored graphs, and the cells that run them."""

from __future__ import annotations

import io
import itertools
import time
import zipfile
from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from benchmarks import gpu_cells, gpu_graphs, gpu_ort
from benchmarks.gpu_models import FOLDED, LIMIT, PUBLISHED, TINY, UNFOLDED, Model
from benchmarks.gpu_ort import FORWARD, GENERATE, GENERATE_CACHED, GRAPH, GRAPHS, OPSETS, PLAIN, STORED, VARIANTS, Cell

MODELS = {model.name: model for model in (*TINY, *PUBLISHED)}
LARGEST, LARGEST_IN_ALL = 1_000_000, 5_000_000


def archives() -> list[str]:
    return [
        name
        for model in MODELS.values()
        for name in ((model.name, f"{model.name}{gpu_ort.CACHED}") if model.generates else (model.name,))
    ]


def members(name: str) -> set[str]:
    with zipfile.ZipFile(GRAPHS / f"{name}.zip") as archive:
        return set(archive.namelist()) - {"notes.json"}


def test_every_network_has_its_graphs_and_they_are_small() -> None:
    sizes = [(GRAPHS / f"{name}.zip").stat().st_size for name in archives()]
    assert max(sizes) < LARGEST and sum(sizes) < LARGEST_IN_ALL
    wanted = {
        f"{form}/{opset}/{variant}.onnx" for form in gpu_graphs.FORMATS for opset in STORED for variant in VARIANTS
    }
    for name in archives():
        assert members(name) == wanted, name


@pytest.mark.parametrize("name", archives())
def test_the_folded_graph_has_fewer_operators(name: str) -> None:
    for opset in OPSETS:
        count = {
            variant: len(gpu_ort.read(name, "float32", opset, variant).graph.node)
            for variant in (UNFOLDED, FOLDED, LIMIT)
        }
        assert count[LIMIT] <= count[FOLDED] < count[UNFOLDED], (opset, count)
        model = gpu_ort.read(name, "float32", opset, FOLDED)
        norms = {"BatchNormalization", "LayerNormalization", "RMSNormalization"}
        assert not norms & {node.op_type for node in model.graph.node}


def run(model: onnx.ModelProto, sizes: dict[str, int]) -> list[np.ndarray[Any, Any]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {}
    for entry in session.get_inputs():
        shape = [each if isinstance(each, int) else sizes.get(each, 0) for each in entry.shape]
        dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}[entry.type]
        feeds[entry.name] = np.ones(shape, dtype)
    return session.run(None, feeds)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "tiny_llama" else pytest.mark.slow)
        for name in archives()
        if name.startswith("tiny_")
    ],
)
def test_the_graphs_run_at_every_opset_with_the_weights_that_are_filled_in(name: str) -> None:
    for form, opset, variant in itertools.product(gpu_graphs.FORMATS, OPSETS, VARIANTS):
        model = gpu_ort.fill(gpu_ort.read(name, form, opset, variant))
        if opset != gpu_ort.DEFAULT:
            assert model.opset_import[0].version == int(opset)
        outputs = run(model, {"B": 2, "L": 8})
        assert all(np.isfinite(output).all() and str(output.dtype) == form for output in outputs), (
            form,
            opset,
            variant,
        )


def test_a_graph_that_could_not_be_made_says_why() -> None:
    with pytest.raises(KeyError, match="there is no float32/12"):
        gpu_ort.read("tiny_deit", "float32", "12", FOLDED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny_swin", "tiny_llama"])
def test_the_stored_graphs_are_what_export_and_fold_give(name: str) -> None:
    content = gpu_graphs.make(MODELS[name], cached=False)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in sorted(members(name)):
            if f"/{gpu_ort.DEFAULT}/" in member:
                continue  # which opset that is depends on the onnxruntime that is installed
            made = onnx.load_model_from_string(archive.read(member))
            stored = gpu_ort.read(name, *member.removesuffix(".onnx").split("/"))
            assert operators(made) == operators(stored), member


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize(
    ("name", "workload", "mode", "column"),
    [
        ("tiny_deit", FORWARD, PLAIN, "float16"),
        ("tiny_deit", FORWARD, GRAPH, "tf32"),
        ("tiny_llama", GENERATE, PLAIN, "float32"),
        ("tiny_llama", GENERATE_CACHED, PLAIN, "float32"),
    ],
)
def test_a_cell_is_measured(name: str, workload: str, mode: str, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cells, "FEWEST_ROUNDS", 6)
    model: Model = MODELS[name]
    cell = Cell(name, workload, mode, column, 1, "18")
    found = gpu_ort.measure(cell, model, "cpu", deadline=time.monotonic() + 60.0)
    assert list(found["variants"]) == list(VARIANTS)
    for variant in found["variants"].values():
        assert variant["median_ms"] > 0.0 and variant["version"] == 18, variant
        assert ("tokens_per_second" in variant) == (workload != FORWARD)
        assert (variant["operators"] is None) == model.generates
    assert {(each["of"], each["to"]) for each in found["ratios"]} >= {("folded", "layernorm"), ("folded", "unfolded")}


def test_a_variant_whose_graph_is_missing_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_cells, "FEWEST_ROUNDS", 6)
    cell = Cell("tiny_deit", FORWARD, PLAIN, "float32", 1, "12")
    found = gpu_ort.measure(cell, MODELS["tiny_deit"], "cpu", deadline=time.monotonic() + 60.0)
    assert all("there is no float32/12" in variant["error"] for variant in found["variants"].values())
    assert found["ratios"] == [] and found["rounds"] == 0


def test_the_default_opset_comes_first() -> None:
    plan = gpu_ort.cells(PUBLISHED)
    assert plan[0] == Cell("swin_t", FORWARD, PLAIN, "float32", 1, gpu_ort.DEFAULT)
    assert {cell.opset for cell in plan} == {"default", "17", "18", "21", "23"}
    assert {cell.mode for cell in plan} == {PLAIN, GRAPH}
    assert len({cell.key for cell in plan}) == len(plan)
