"""The judge is judged: right pairs pass on every seed, the smallest wrong weight does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from normfold.errors import CheckpointError, GraphError, InputSpecError, VerificationError
from normfold.inputs.cases import draw_cases
from normfold.inputs.spec import parse_specs
from normfold.system.spill import Rows
from normfold.verify import judge as verify
from normfold.verify import measure
from normfold.verify import truth as truths
from normfold.verify.judge import Edge
from normfold.verify.metrics import difference
from normfold.verify.runtime import Runtime
from normfold.verify.truth import Truth
from normfold.verify.yardstick import Yardstick
from tests.support.widened import widened

CHANNELS = 16
SPECS = parse_specs([f"x:float32[B,{CHANNELS}]"])

# Two ways to float64 differ by float64 rounding, but for constants that the graph stores as float32 (epsilons).
FLOAT64_AGREES = 1e-12


def check_fold(truth: Truth, before: Path, after: Path) -> Edge:
    yardstick = Yardstick.lay(truth, before)
    return yardstick.fold_edge(yardstick.measure(after))


def check_export(module: nn.Module, graph: Path) -> Edge:
    return Yardstick.lay(truths.establish(module, graph, SPECS), graph).export_edges()[0]


def weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "W1": rng.standard_normal((CHANNELS, CHANNELS)) / 4,
        "scale": rng.uniform(0.3, 2.0, CHANNELS) * rng.choice([-1, 1], CHANNELS),
        "shift": rng.standard_normal(CHANNELS),
        "W2": rng.standard_normal((CHANNELS, CHANNELS)) / 4,
        "b2": rng.standard_normal(CHANNELS),
        "W3": rng.standard_normal((CHANNELS, 4)) / 4,
    }


def save(
    path: Path, nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray], *, outputs: dict[str, int] | None = None
) -> Path:
    """A graph x -> outputs on (B, CHANNELS), weights cast to float32 last."""
    initializers = [
        numpy_helper.from_array(v.astype(np.float32) if v.dtype == np.float64 else v, k) for k, v in tensors.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", CHANNELS])],
        [helper.make_tensor_value_info(k, t, None) for k, t in (outputs or {"y": TensorProto.FLOAT}).items()],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def original(path: Path, w: dict[str, np.ndarray]) -> Path:
    """x W1, times scale plus shift, W2 + b2, Gelu, W3."""
    node = helper.make_node
    return save(
        path,
        [
            node("MatMul", ["x", "W1"], ["h"]),
            node("Mul", ["h", "scale"], ["m"]),
            node("Add", ["m", "shift"], ["n"]),
            node("Gemm", ["n", "W2", "b2"], ["u"]),
            node("Gelu", ["u"], ["v"]),
            node("MatMul", ["v", "W3"], ["y"]),
        ],
        w,
    )


def folded(path: Path, w: dict[str, np.ndarray], *, factor: float = 1.0) -> Path:
    """The same with scale and shift inside W2 and b2; `factor` spoils the largest of the new weights."""
    merged = w["scale"][:, None] * w["W2"]
    merged[np.unravel_index(np.argmax(np.abs(merged)), merged.shape)] *= factor
    node = helper.make_node
    return save(
        path,
        [
            node("MatMul", ["x", "W1"], ["h"]),
            node("Gemm", ["h", "M2", "c2"], ["u"]),
            node("Gelu", ["u"], ["v"]),
            node("MatMul", ["v", "W3"], ["y"]),
        ],
        {"W1": w["W1"], "M2": merged, "c2": w["b2"] + w["shift"] @ w["W2"], "W3": w["W3"]},
    )


def test_a_right_fold_passes_on_twenty_seeds(tmp_path: Path) -> None:
    for seed in range(20):
        w = weights(seed)
        before, after = original(tmp_path / "a.onnx", w), folded(tmp_path / "b.onnx", w)
        truth = truths.establish(None, before, SPECS, seed=100 * seed)
        for edge in Yardstick.lay(truth, before).compare(after):
            assert edge.passed, f"seed {seed}: {edge}"
            assert 0.0 < edge.relative <= edge.bound < 1e-5


def test_one_sample_is_enough_for_a_verdict(tmp_path: Path) -> None:
    w = weights(0)
    before, after = original(tmp_path / "a.onnx", w), folded(tmp_path / "b.onnx", w)
    truth = truths.establish(None, before, SPECS).only([0])
    assert [edge.passed for edge in Yardstick.lay(truth, before).compare(after)] == [True, True]
    assert not check_fold(truth, before, folded(tmp_path / "c.onnx", w, factor=1.01)).passed


@pytest.mark.parametrize("factor", [1.0001, 0.9999, -1.0, 0.0])
def test_one_perturbed_weight_fails(tmp_path: Path, factor: float) -> None:
    for seed in range(5):
        w = weights(seed)
        before, after = original(tmp_path / "a.onnx", w), folded(tmp_path / "b.onnx", w, factor=factor)
        edge = check_fold(truths.establish(None, before, SPECS), before, after)
        assert not edge.passed
        assert edge.relative > edge.bound
        assert "output 'y' is worst at B=" in edge.detail


def test_the_runtime_edge_sees_what_only_the_optimised_runtime_gets_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = weights(0)
    before, after = original(tmp_path / "a.onnx", w), folded(tmp_path / "b.onnx", w)
    wrong = folded(tmp_path / "c.onnx", w, factor=1.01)
    truth = truths.establish(None, before, SPECS)
    assert all(edge.passed for edge in Yardstick.lay(truth, before).compare(after))
    real = measure.open_session

    def fusing(path: Path, runtime: Runtime) -> object:
        return real(wrong if runtime == verify.OPTIMISED and path == after else path, runtime)

    monkeypatch.setattr(measure, "open_session", fusing)
    fold, runtime = Yardstick.lay(truth, before).compare(after)
    assert fold.passed
    assert not runtime.passed
    assert "computes it wrongly, the unfolded original it computes rightly; output 'y' is worst at" in runtime.detail


def test_a_graph_that_is_not_finite_fails(tmp_path: Path) -> None:
    w = weights(0)
    before = original(tmp_path / "a.onnx", w)
    truth = truths.establish(None, before, SPECS)
    after = folded(tmp_path / "b.onnx", w, factor=float("nan"))
    edge = check_fold(truth, before, after)
    assert not edge.passed
    assert edge.max_abs == float("inf")


def test_a_source_that_yields_nan_is_the_sources_fault(tmp_path: Path) -> None:
    w = weights(0)
    w["shift"][3] = np.nan
    with pytest.raises(CheckpointError, match="the source itself yields NaN"):
        truths.establish(None, original(tmp_path / "a.onnx", w), SPECS)


def test_a_source_that_overflows_in_its_own_precision_is_the_sources_fault(tmp_path: Path) -> None:
    w = weights(0)
    w["scale"] *= 1e30
    w["W2"] *= 1e12
    w["W3"] *= 1e-20
    before = original(tmp_path / "a.onnx", w)
    truth = truths.establish(None, before, SPECS)
    with pytest.raises(CheckpointError, match="the unfolded model itself fails"):
        check_fold(truth, before, before)


def test_a_graph_that_the_runtime_rejects(tmp_path: Path) -> None:
    w = weights(0)
    before = original(tmp_path / "a.onnx", w)
    truth = truths.establish(None, before, SPECS)
    broken = save(tmp_path / "b.onnx", [helper.make_node("MatMul", ["x", "gone"], ["y"])], {})
    with pytest.raises(VerificationError, match=r"b\.onnx: onnxruntime does not accept this graph"):
        check_fold(truth, before, broken)
    with pytest.raises(GraphError, match=r"b\.onnx: onnxruntime does not accept this graph"):
        check_fold(truth, broken, before)


def test_integer_outputs_are_compared_entry_by_entry(tmp_path: Path) -> None:
    w = weights(0)
    node = helper.make_node
    nodes = [node("MatMul", ["x", "W3"], ["s"]), node("ArgMax", ["s"], ["y"], axis=1, keepdims=0)]
    kinds = {"y": TensorProto.INT64}
    before = save(tmp_path / "a.onnx", nodes, {"W3": w["W3"]}, outputs=kinds)
    truth = truths.establish(None, before, SPECS)
    same = check_fold(truth, before, save(tmp_path / "b.onnx", nodes, {"W3": 2 * w["W3"]}, outputs=kinds))
    assert same.passed
    assert (same.max_abs, same.bound) == (0.0, 0.0)
    other = check_fold(truth, before, save(tmp_path / "b.onnx", nodes, {"W3": -w["W3"]}, outputs=kinds))
    assert not other.passed


def test_the_worst_of_several_outputs_counts(tmp_path: Path) -> None:
    w = weights(0)
    node = helper.make_node
    nodes = [node("MatMul", ["x", "W1"], ["p"]), node("MatMul", ["x", "W3"], ["q"])]
    kinds = {"p": TensorProto.FLOAT, "q": TensorProto.FLOAT}
    before = save(tmp_path / "a.onnx", nodes, {"W1": w["W1"], "W3": w["W3"]}, outputs=kinds)
    after = save(tmp_path / "b.onnx", nodes, {"W1": w["W1"], "W3": 1.001 * w["W3"]}, outputs=kinds)
    edge = check_fold(truths.establish(None, before, SPECS), before, after)
    assert not edge.passed
    assert "output 'q'" in edge.detail


def test_masks_must_stay_and_do_not_set_the_scale() -> None:
    lowest = float(np.finfo(np.float32).min)
    true = np.array([[1.0, lowest, -np.inf], [2.0, 3.0, 1.0]])
    assert difference(true.astype(np.float32), true) == 0.0
    assert difference(true + np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.0]]), true) == 0.5
    assert difference(np.where(true < -1, 0.0, true), true) == float("inf")
    assert difference(np.abs(true), true) == float("inf")
    assert difference(true[:1], true) == float("inf")
    cases = draw_cases(SPECS)[:1]
    assert truths.Truth(cases, Rows([(true,)]), "test", from_module=False).magnitudes().scales == pytest.approx(
        [np.sqrt(15 / 4)]
    )


class Norms(nn.Module):
    """What published code does inside its norms and attention: it asks for float32 by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(CHANNELS, CHANNELS)
        self.rms = nn.RMSNorm(CHANNELS)
        self.register_buffer("gain", torch.linspace(0.5, 1.5, CHANNELS))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.rms(self.first(x))
        z = torch.softmax(y.float(), dim=-1, dtype=torch.float32).type_as(x) + torch.arange(CHANNELS).to(torch.float32)
        return {"sum": z * self.gain, "halved": torch.full((CHANNELS,), 0.3) * y}


def test_the_module_truth_is_float64_throughout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Norms().eval()
    truth = truths.establish(module, tmp_path / "unused.onnx", SPECS)
    assert truth.from_module
    w, b = (p.detach().numpy().astype(np.float64) for p in (module.first.weight, module.first.bias))
    for case, (total, halved) in zip(truth.cases, truth.outputs, strict=True):
        y = case.feeds["x"].astype(np.float64) @ w.T + b
        y = y / np.sqrt(np.mean(y**2, axis=-1, keepdims=True) + np.finfo(np.float32).eps)
        e = np.exp(y - y.max(axis=-1, keepdims=True))
        want = (e / e.sum(axis=-1, keepdims=True) + np.arange(CHANNELS)) * module.gain.numpy().astype(np.float64)
        np.testing.assert_allclose(total, want, rtol=FLOAT64_AGREES)
        np.testing.assert_allclose(halved, 0.3 * y, rtol=FLOAT64_AGREES)
    assert torch.get_default_dtype() == torch.float32
    assert module.first.weight.dtype == torch.float32
    assert module.rms.eps is None


def test_an_exported_program_has_a_float64_truth_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Norms().eval()
    axes = ({0: torch.export.Dim("B")},)
    program = torch.export.export(module, (torch.zeros(3, CHANNELS),), dynamic_shapes=axes).module()
    first, second = (truths.establish(m, tmp_path / "unused.onnx", SPECS) for m in (module, program))
    assert second.from_module
    np.testing.assert_allclose(first.outputs[0][1], second.outputs[0][1], rtol=1e-6)


def test_a_module_that_cannot_be_doubled_takes_its_truth_from_the_graph(tmp_path: Path) -> None:
    class Baked(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.from_numpy(np.eye(CHANNELS, dtype=np.float32))

    identity = save(tmp_path / "a.onnx", [helper.make_node("Identity", ["x"], ["y"])], {})
    truth = truths.establish(Baked(), identity, SPECS)
    assert not truth.from_module
    assert "does not run in float64" in truth.method
    assert Yardstick.lay(truth, identity).export_edges()[0].passed


def test_a_module_that_refuses_a_size_is_an_input_error(tmp_path: Path) -> None:
    class OnlyEven(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 3, CHANNELS)

    with pytest.raises(InputSpecError, match=r"does not run on x \[1, 16\]"):
        truths.establish(OnlyEven(), tmp_path / "unused.onnx", SPECS)


class Mean(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0, keepdim=True) / x.shape[0]


def test_an_export_that_is_right_only_at_the_traced_size(tmp_path: Path) -> None:
    node = helper.make_node
    right = save(tmp_path / "a.onnx", [node("ReduceMean", ["x", "axis"], ["y"])], {"axis": np.array([0])})
    edge = check_export(Mean(), right)
    assert edge.passed
    assert edge.name == "checkpoint -> export"
    nodes = [node("ReduceSum", ["x", "axis"], ["s"]), node("Div", ["s", "three"], ["y"])]
    baked = save(tmp_path / "b.onnx", nodes, {"axis": np.array([0]), "three": np.array([3.0])})
    edge = check_export(Mean(), baked)
    assert not edge.passed
    assert edge.detail.startswith("disagrees at B=1; B=2; B=4; B=7; B=513 and agrees at B=3.")


def test_an_export_that_only_runs_at_the_traced_size(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    baked = save(tmp_path / "a.onnx", nodes, {"shape": np.array([3, CHANNELS])})
    edge = check_export(nn.Identity(), baked)
    assert not edge.passed
    assert "agrees at B=3" in edge.detail
    assert "Reshape" in edge.detail


def test_the_reference_computes_erf_and_gelu_in_float64(tmp_path: Path) -> None:
    for op, want in (
        ("Gelu", torch.nn.functional.gelu),
        ("Erf", torch.special.erf),
        ("Sigmoid", torch.sigmoid),
        ("Tanh", torch.tanh),
        ("Softmax", lambda x: torch.softmax(x, -1)),
    ):
        path = save(tmp_path / "a.onnx", [helper.make_node(op, ["x"], ["y"])], {})
        truth = truths.establish(None, path, SPECS)
        for case, (value,) in zip(truth.cases, truth.outputs, strict=True):
            assert value.dtype == np.float64
            expected = want(torch.from_numpy(case.feeds["x"].astype(np.float64))).numpy()
            np.testing.assert_allclose(value, expected, rtol=FLOAT64_AGREES, err_msg=op)


def test_widening_reaches_constants_casts_and_subgraphs(tmp_path: Path) -> None:
    node = helper.make_node
    branch = helper.make_graph(
        [node("Constant", [], ["c"], value_float=0.1), node("Add", ["x", "c"], ["out"])],
        "branch",
        [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
    )
    nodes = [
        node("If", ["yes"], ["a"], then_branch=branch, else_branch=branch),
        node("Cast", ["a"], ["b"], to=TensorProto.FLOAT16),
        node("Shape", ["x"], ["s"]),
        node("ConstantOfShape", ["s"], ["zeros"]),
        node("Cast", ["b"], ["wide"], to=TensorProto.FLOAT),
        node("Constant", [], ["row"], value_floats=[1.0] * CHANNELS),
        node("Add", ["wide", "zeros"], ["d"]),
        node("Mul", ["d", "row"], ["y"]),
    ]
    path = save(tmp_path / "a.onnx", nodes, {"yes": np.array(True)})
    truth = truths.establish(None, path, SPECS)
    assert truth.outputs[0][0].dtype == np.float64
    want = truth.cases[0].feeds["x"].astype(np.float64) + np.float64(np.float32(0.1))
    np.testing.assert_allclose(truth.outputs[0][0], want, rtol=FLOAT64_AGREES)
    assert widened(onnx.load(path)).graph.output[0].type.tensor_type.elem_type == TensorProto.DOUBLE
