"""Float16 at the end: what the conversion does to a graph, what it refuses, and the yardstick of what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper
from typer.testing import CliRunner

from normfold import errors
from normfold.analysis.analyse import analyse
from normfold.bench.variants import FOLDED, collect
from normfold.graph.float16 import to_half
from normfold.graph.prepare import prepare
from normfold.pipeline import run as pipeline
from normfold.pipeline.early import check_dtype
from normfold.rewrite.graph import rewrite
from normfold.verify.judge import EXPORT_EDGE, FOLD_EDGE, HALF_EDGE, RUNTIME_EDGE
from normfold.verify.manifest import KEY as MANIFEST_KEY
from tests.analysis.placement.test_float16_range import BLOCKS, post_norm
from tests.paths import FIXTURES
from tests.pipeline.test_fixtures_fold import folded, held_out, right
from tests.support.graphs import as_float32, build, draw, session
from tests.verify.command import change, graph, verify

RUN = CliRunner()


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(to_half(ir.from_proto(as_float32(model))))


def content(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_everything_becomes_float16_and_keeps_its_name() -> None:
    text = "g (double[B,4] x) => (double[B,3] y) {\nh = Tanh(x)\nc = Constant<value_float = 3.0>()\nm = Mul(h, c)\n"
    text += "k = Cast<to = 1>(m)\ny = MatMul(k, w)\n}"
    model = build(text, w=(4, 3))
    model.metadata_props.add(key="made", value="by hand")
    model.graph.node[0].name = "first"
    half = halved(model)
    onnx.checker.check_model(half, full_check=True)
    assert [(value.name, value.type.tensor_type.elem_type) for value in (*half.graph.input, *half.graph.output)] == [
        ("x", TensorProto.FLOAT16),
        ("y", TensorProto.FLOAT16),
    ]
    assert {array.dtype for array in content(half).values()} == {np.dtype(np.float16)}
    assert [node.op_type for node in half.graph.node] == ["Tanh", "Mul", "Cast", "MatMul"]
    assert half.graph.node[0].name == "first" and half.metadata_props[0].value == "by hand"
    found = session(half.SerializeToString()).run(None, {"x": np.ones((2, 4), np.float16)})[0]
    exact = 3.0 * np.tanh(1.0) * draw("w", 4, 3).sum(0)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found[0], exact, atol=2.0**-8)  # a few ULP of numbers up to 8


def test_operators_that_stay_in_float32_get_casts_in_their_place() -> None:
    half = halved(build("g (double[B,4] x) => (double[B,4] y) {\nh = Tanh(x)\nm = Max(h, w)\ny = Neg(m)\n}", w=(4,)))
    onnx.checker.check_model(half, full_check=True)
    kinds = [node.op_type for node in half.graph.node]
    assert kinds.count("Cast") == 3 and kinds.index("Max") < kinds.index("Neg") == len(kinds) - 1
    session(half.SerializeToString())


def test_constants_are_cast_to_the_nearest_number() -> None:
    """The converter alone makes 6e-8 out of what is smaller, and 65504 out of what is larger."""
    values = np.array([1e-9, -1e-9, 0.1, 65504.0, 65519.0, -3.4028235e38, 6e-5])
    half = halved(build("g (double[B,7] x) => (double[B,7] y) {\ny = Add(x, w)\n}", w=values))
    expected = np.array([0.0, 0.0, 0.1, 65504.0, 65504.0, -65504.0, 6e-5]).astype(np.float16)
    np.testing.assert_array_equal(content(half)["w"], expected)


@pytest.mark.parametrize("value", [65520.0, -1e9])
def test_a_constant_beyond_the_range_is_an_error_that_names_it(value: float) -> None:
    model = build("g (double[B,2] x) => (double[B,2] y) {\ny = Add(x, offset)\n}", offset=np.array([1.0, value]))
    with pytest.raises(errors.GraphError, match=r"offset holds .* float16 ends at 65504"):
        halved(model)
    inside = build(
        "g (double[B,2] x, bool c) => (double[B,2] y) {\ny = If (c) <then_branch = t () => (double[B,2] u) "
        "{\nbig = Constant<value = double {65520.0}>()\nu = Add(x, big)\n}, else_branch = e () => (double[B,2] v) "
        "{\nv = Neg(x)\n}>\n}"
    )
    single = ir.from_proto(inside)
    for node in single.graph.all_nodes():
        if node.op_type == "Constant":
            tensor = ir.Tensor(np.array([value], np.float32))
            node.attributes["value"] = ir.AttrTensor("value", tensor)
    with pytest.raises(errors.GraphError, match=r"big .*holds"):
        to_half(single)


def test_new_weights_are_rounded_once() -> None:
    """float64 to float32 to float16 takes the wrong neighbour where the first rounding makes a tie."""
    text = "g (double[B,256] x) => (double[B,256] y) {\nh = Tanh(x)\nn = Mul(h, a)\ny = MatMul(n, w)\n}"
    model = prepare(ir.from_proto(as_float32(build(text, a=(256,), w=(256, 256)))))
    found = content(ir.to_proto(to_half(rewrite(model, analyse(model)))))["w.folded"]
    a, w = (draw(name, *shape).astype(np.float32).astype(float) for name, shape in (("a", (256,)), ("w", (256, 256))))
    exact = a[:, None] * w
    assert np.any(exact.astype(np.float32).astype(np.float16) != exact.astype(np.float16)), "no such case was drawn"
    np.testing.assert_array_equal(found, exact.astype(np.float16))


@pytest.mark.parametrize(("dtype", "says"), [("bfloat16", "no bfloat16 operators"), ("int8", "float32, float16")])
def test_other_types_are_refused(tmp_path: Path, dtype: str, says: str) -> None:
    with pytest.raises(errors.UsageError, match=says):
        pipeline.fold(graph(tmp_path / "in.onnx"), tmp_path / "out.onnx", dtype=dtype)
    assert not (tmp_path / "out.onnx").exists()
    assert check_dtype("float32") is None and check_dtype("float16") == "float16"


def test_the_torch_module_is_not_converted(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="--emit-torch"):
        pipeline.fold(
            graph(tmp_path / "in.onnx"), tmp_path / "out.onnx", dtype="float16", emit_torch=tmp_path / "out.pt"
        )


def told(path: Path) -> dict[str, Any]:
    found = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return dict(json.loads(found[MANIFEST_KEY]))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, pipeline.Report]]:
    folder, runs = tmp_path_factory.mktemp("half"), {}

    def make(name: str) -> tuple[Path, pipeline.Report]:
        if name not in runs:
            output = folder / f"{name}.onnx"
            runs[name] = output, pipeline.fold(FIXTURES / f"{name}.pt", output, dtype="float16")
        return runs[name]

    return make


NAMES = ["vit_un", pytest.param("char_lm_prepbn", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_folds_into_float16(made: Callable[[str], tuple[Path, pipeline.Report]], name: str) -> None:
    output, report = made(name)
    assert {site.status for site in report.sites} == {"folded"} and len(report.sites) == 7
    assert [edge.name for edge in report.edges] == [EXPORT_EDGE, HALF_EDGE, FOLD_EDGE, RUNTIME_EDGE]
    assert not report.failed and report.dtype == told(output)["dtype"] == "float16"
    models = onnx.load(output), ir.to_proto(folded(name).after)
    half, single = (sum(a.nbytes for a in content(m).values() if a.dtype.kind == "f") for m in models)
    assert 2 * half == single
    x, y = held_out(name)
    source = folded(name).source
    assert source.module is not None
    with torch.no_grad():
        expected = right(source.module(torch.from_numpy(x)).numpy(), y)
    feed = x.astype(np.float16) if x.dtype.kind == "f" else x
    answers = session(output).run(None, {source.inputs[0].name: feed})[0]
    assert answers.dtype == np.float16 and abs(right(answers.astype(np.float32), y) - expected) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_verify_holds_it_to_the_float16_error_of_its_source(
    made: Callable[[str], tuple[Path, pipeline.Report]], tmp_path: Path, name: str
) -> None:
    """By its source, and by the recorded outputs alone; not when a weight is changed."""
    output, _ = made(name)
    source = FIXTURES / f"{name}.pt"
    passed = verify(output, "--against", source, "--json", tmp_path / "v.json", "--samples", 16)
    assert passed.exit_code == 0, passed.output
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert [edge["name"] for edge in verdict["edges"]][:3] == [EXPORT_EDGE, HALF_EDGE, FOLD_EDGE]
    assert any("float16" in note for note in verdict["notes"])
    far = tmp_path / "far" / "away"
    far.mkdir(parents=True)
    alone = far / "alone.onnx"
    alone.write_bytes(output.read_bytes())
    recorded = verify(alone)
    assert recorded.exit_code == 0 and "recorded" in recorded.output
    change(alone, swap_rows)
    failed = verify(alone)
    assert failed.exit_code == 1 and "FAILED" in failed.output


def swap_rows(model: onnx.ModelProto) -> None:
    """Two channels of the largest folded weight change places."""
    tensor = max((t for t in model.graph.initializer if t.name.endswith(".folded")), key=lambda t: len(t.raw_data))
    array = numpy_helper.to_array(tensor).copy()
    array[[0, 1]] = array[[1, 0]]
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def test_an_onnx_source_too(tmp_path: Path) -> None:
    """Found through the manifest, judged on real inputs of float32; to find a fault it is folded into float16 again."""
    source, output = graph(tmp_path / "source.onnx"), tmp_path / "out.onnx"
    report = pipeline.fold(source, output, dtype="float16")
    assert [edge.name for edge in report.edges] == [HALF_EDGE, FOLD_EDGE, RUNTIME_EDGE]
    assert report.output is not None and report.output.unfolded_bytes is not None
    assert report.output.unfolded_bytes < source.stat().st_size
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "real.npz", x=rng.standard_normal((5, 16)).astype(np.float32))
    passed = verify(output, "--inputs", tmp_path / "real.npz", "--json", tmp_path / "v.json")
    assert passed.exit_code == 0, passed.output
    assert json.loads((tmp_path / "v.json").read_text())["samples"][0] == "real.npz row 0"
    change(output, swap_rows)
    failed = verify(output)
    assert failed.exit_code == 1 and "was changed since" in " ".join(failed.output.split())


def test_a_float16_model_without_a_manifest_is_told_by_its_outputs(tmp_path: Path) -> None:
    source = graph(tmp_path / "source.onnx")
    ir.save(to_half(ir.load(source)), tmp_path / "theirs.onnx")
    found = verify(tmp_path / "theirs.onnx", "--against", source)
    assert found.exit_code == 0 and HALF_EDGE in found.output
    # float16 held against float16 is converted no further.
    again = verify(tmp_path / "theirs.onnx", "--against", tmp_path / "theirs.onnx")
    assert again.exit_code == 0 and HALF_EDGE not in again.output


def test_a_model_that_float16_cannot_run_is_not_written(tmp_path: Path) -> None:
    """Its weights fit; the numbers between them do not."""

    def enlarge(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name in ("W2", "b2"):
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(3e4), tensor.name))

    source = change(graph(tmp_path / "source.onnx"), enlarge)
    pipeline.fold(source, tmp_path / "single.onnx")
    with pytest.raises(errors.GraphError, match=r"float16 ends at 65504; no power of two helps: .*Gelu"):
        pipeline.fold(source, tmp_path / "half.onnx", dtype="float16")
    assert not (tmp_path / "half.onnx").exists()


def test_scales_are_bounded_by_the_type_that_is_written(tmp_path: Path) -> None:
    """A float32 graph whose stream gathers eight to the sixth: into float16 it folds with powers of two."""
    onnx.save(post_norm(8.0, dtype=TensorProto.FLOAT), tmp_path / "in.onnx")
    single = pipeline.fold(tmp_path / "in.onnx", tmp_path / "single.onnx")
    assert [site.status for site in single.sites] == ["folded"] * BLOCKS
    half = pipeline.fold(tmp_path / "in.onnx", tmp_path / "half.onnx", dtype="float16")
    assert [site.status for site in half.sites] == ["folded"] * BLOCKS
    assert not half.failed


def test_what_cannot_be_looked_at_is_bounded_by_64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise errors.GraphError("an operator of another domain")

    monkeypatch.setattr("normfold.analysis.placement.calibrate.calibrate", refuse)
    onnx.save(post_norm(8.0), tmp_path / "in.onnx")
    report = pipeline.fold(tmp_path / "in.onnx", tmp_path / "out.onnx")
    assert [site.code for site in report.sites].count("scale-range") == 3
    assert any("bounded by 2^6" in warning and "another domain" in warning for warning in report.warnings)


def test_bench_takes_a_file_that_was_folded_into_float16(tmp_path: Path) -> None:
    pipeline.fold(graph(tmp_path / "source.onnx"), tmp_path / "out.onnx", dtype="float16", verify=False)
    work = tmp_path / "work"
    work.mkdir()
    found = collect(tmp_path / "out.onnx", work)
    assert found.inputs[0].dtype == "float16" and FOLDED in {variant.name for variant in found.found}
    for variant in found.found:
        assert ort.InferenceSession(variant.file).get_inputs()[0].type == "tensor(float16)"
