"""Where a failed model begins to be wrong: the tensor, behind legitimate frames, and the norm."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from normfold.inputs.spec import parse_specs
from normfold.pipeline import run as pipeline
from normfold.verify import localise
from normfold.verify.judge import Edge
from normfold.verify.truth import establish
from normfold.verify.yardstick import Yardstick

CHANNELS = 12
NORMS = 5
SPECS = parse_specs([f"x:float32[B,L=9,{CHANNELS}]"])

# Copies the graph and, where it is asked to fold `bad`, spoils a weight: a folder with one fault.
FAULTY = """
import shutil, sys
import onnx
from onnx import numpy_helper
words = sys.argv[1:]
place = words[words.index("--output") + 1]
only = [words[i + 1] for i, word in enumerate(words) if word == "--only"]
model = onnx.load(words[0])
if {bad!r} in only:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.5, tensor.name))
onnx.save(model, place)
"""


def network(path: Path) -> Path:
    """Residual blocks x + Gelu(norm(x) W + b) V: every norm folds."""
    rng = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {}
    nodes, current = [], "x"
    for i in range(NORMS):
        for name in ("W", "V"):
            tensors[f"{name}{i}"] = rng.standard_normal((CHANNELS, CHANNELS)) / 4
        for name, low, high in (("scale", 0.5, 2.0), ("shift", -1.0, 1.0), ("bias", -1.0, 1.0)):
            tensors[f"{name}{i}"] = rng.uniform(low, high, CHANNELS)
        for op, inputs, output in (
            ("Mul", [current, f"scale{i}"], f"m{i}"),
            ("Add", [f"m{i}", f"shift{i}"], f"n{i}"),
            ("MatMul", [f"n{i}", f"W{i}"], f"p{i}"),
            ("Add", [f"p{i}", f"bias{i}"], f"u{i}"),
            ("Gelu", [f"u{i}"], f"g{i}"),
            ("MatMul", [f"g{i}", f"V{i}"], f"r{i}"),
            ("Add", [current, f"r{i}"], f"x{i}" if i < NORMS - 1 else "y"),
        ):
            nodes.append(helper.make_node(op, inputs, [output], f"node_{output}"))
        current = f"x{i}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "L", CHANNELS])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "L", CHANNELS])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def spoil(path: Path, name: str) -> Path:
    model = onnx.load(path)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith(name))
    values = numpy_helper.to_array(tensor).copy()
    values.flat[7] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Yardstick, Path, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("folded")
    source = network(folder / "source.onnx")
    report = pipeline.fold(source, folder / "model.onnx")
    assert [site.status for site in report.sites] == ["folded"] * NORMS
    yardstick = Yardstick.lay(establish(None, source, SPECS), source)
    return yardstick, folder / "model.onnx", tuple(site.name for site in report.sites)


def failed(yardstick: Yardstick, model: Path) -> Edge:
    edge = yardstick.fold_edge(yardstick.measure(model))
    assert not edge.passed
    return edge


def test_every_tensor_of_a_right_fold_is_explained(
    folded: tuple[Yardstick, Path, tuple[str, ...]], tmp_path: Path
) -> None:
    """Shifts have moved within the folded regions, and no tensor is taken for wrong."""
    yardstick, model, _ = folded
    for case in yardstick.truth.cases[:4]:
        found = localise.first_tensor(yardstick, model, case, 0.0, tmp_path)
        assert (found.tensor, found.after) == (None, "y")


@pytest.mark.parametrize("block", range(NORMS))
def test_the_first_wrong_tensor(folded: tuple[Yardstick, Path, tuple[str, ...]], tmp_path: Path, block: int) -> None:
    yardstick, model, _ = folded
    wrong = spoil(Path(shutil.copy(model, tmp_path / "wrong.onnx")), f"W{block}")
    fault = localise.localise(yardstick, wrong, failed(yardstick, wrong), (), tmp_path)
    # The product or the sum behind the spoilt weight, whichever of the two both graphs have.
    assert fault.tensor in (f"p{block} (MatMul)", f"u{block} (Add)")
    assert fault.relative is not None and fault.bound is not None and fault.relative > 10 * fault.bound
    assert fault.site is None and fault.note == ""


def test_a_wrong_bias_shows_behind_the_next_curve(
    folded: tuple[Yardstick, Path, tuple[str, ...]], tmp_path: Path
) -> None:
    """A wrong bias looks like a frame of its own, until an operator that allows none reads it."""
    yardstick, model, _ = folded
    wrong = spoil(Path(shutil.copy(model, tmp_path / "wrong.onnx")), "node_u2")
    fault = localise.localise(yardstick, wrong, failed(yardstick, wrong), (), tmp_path)
    assert fault.tensor == "g2 (Gelu)"


@pytest.mark.parametrize("number", [0, 2, NORMS - 1])
def test_the_first_norm_whose_folding_fails(
    folded: tuple[Yardstick, Path, tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    yardstick, model, sites = folded
    script = tmp_path / "faulty.py"
    script.write_text(FAULTY.format(bad=sites[number]))
    monkeypatch.setattr(localise, "FOLD_COMMAND", (sys.executable, str(script)))
    assert localise.first_site(yardstick, model, sites, tmp_path) == (sites[number], "")


def test_a_model_that_was_changed_after_it_was_folded(
    folded: tuple[Yardstick, Path, tuple[str, ...]], tmp_path: Path
) -> None:
    """The real folder, in its own process: folded again it passes, so the file is what is wrong."""
    yardstick, model, sites = folded
    wrong = spoil(Path(shutil.copy(model, tmp_path / "wrong.onnx")), "W1")
    site, note = localise.first_site(yardstick, wrong, sites, tmp_path)
    assert site is None
    assert "wrong.onnx was changed since" in note and "It differs in W1" in note


def test_a_folder_that_fails_costs_no_verdict(
    folded: tuple[Yardstick, Path, tuple[str, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yardstick, model, sites = folded
    for folder in ((sys.executable, "-c", "raise SystemExit('no folder here')"), ("/no/such/program",)):
        monkeypatch.setattr(localise, "FOLD_COMMAND", folder)
        site, note = localise.first_site(yardstick, model, sites, tmp_path)
        assert site is None
        assert note.startswith("Which norm it is cannot be said")


def test_the_judge_starts_the_folder_as_a_program_of_its_own() -> None:
    help_text = subprocess.run([*localise.FOLD_COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    for option in ("--only", "--output", "--no-verify", "--force"):
        assert option in help_text
