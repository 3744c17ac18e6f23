"""The ONNX project's own tests go through the folder and come out with the outputs that they were recorded with."""

from __future__ import annotations

import random
import zlib
from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case.test_case import TestCase

from tests.random.onnx_backend import Outcome, cases, check, model_of
from tests.support.graphs import fold, parse, run_float32

SAMPLE = 200
SEED = 0

# Two runs in float32, fifty layers deep, beside the largest logit.
FLOAT32 = 1e-3


def with_batch_norm() -> list[TestCase]:
    """Of the data folders: a model of the node cases is a single operator."""
    found = [case for case in cases() if case.kind != "node"]
    return [case for case in found if any(node.op_type == "BatchNormalization" for node in model_of(case).graph.node)]


def summary(outcomes: list[Outcome]) -> str:
    counts = Counter(outcome.verdict for outcome in outcomes)
    changed = sum(outcome.changed for outcome in outcomes)
    folded, norms = sum(outcome.folded for outcome in outcomes), sum(outcome.norms for outcome in outcomes)
    return f"{len(outcomes)} models: {dict(counts)}; {changed} changed, {folded} of {norms} norms folded"


def run(chosen: list[TestCase], *, least_changed: int) -> None:
    outcomes = [check(case) for case in chosen]
    print(summary(outcomes))
    bad = [o for o in outcomes if o.verdict in ("wrong", "crashed", "refused")]
    assert not bad, "\n".join(f"{o.case.kind}/{o.case.name}: {o.verdict}: {o.why}" for o in bad)
    assert sum(o.verdict == "right" for o in outcomes) > 0.7 * len(outcomes)
    assert sum(o.changed for o in outcomes) >= least_changed
    assert all(o.folded for o in outcomes if o.changed)


def test_sequences_stay_sequences() -> None:
    """onnx-ir's shape inference made tensors of them, and no runtime loaded the graph."""
    text = """
        g (float[B, 4] x) => (float[B, 3] y) {
            n = BatchNormalization<epsilon = 1e-5>(x, gamma, beta, mean, var)
            h = MatMul(n, w)
            parts = SequenceConstruct(h, h)
            first = Constant<value = int64 {0}>()
            y = SequenceAt(parts, first)
        }"""
    rng = np.random.default_rng(0)
    statistics = {name: rng.uniform(0.5, 2.0, 4).astype(np.float32) for name in ("gamma", "beta", "mean", "var")}
    weight = rng.standard_normal((4, 3)).astype(np.float32)
    model = parse(text.replace("MatMul(n, w)", "Gemm(n, w, b)"), w=weight, b=np.ones(3, np.float32), **statistics)
    folded, plan = fold(model)
    assert [site.status for site in plan.sites] == ["folded"]
    feeds = {"x": rng.standard_normal((5, 4))}
    (before,), (after,) = run_float32(model, feeds), run_float32(folded, feeds)
    assert np.abs(after - before).max() < FLOAT32 * np.abs(before).max()


def test_a_sample_keeps_its_recorded_outputs() -> None:
    always = with_batch_norm()
    assert len(always) == 9
    others = [case for case in cases() if case not in always]
    run([*always, *random.Random(SEED).sample(others, SAMPLE - len(always))], least_changed=4)


@pytest.mark.slow
def test_all_keep_their_recorded_outputs() -> None:
    assert len(cases()) > 2000
    run(list(cases()), least_changed=4)


@pytest.mark.parametrize("name", ["resnet50", "shufflenet", "inception_v2", "densenet121"])
def test_the_light_models_with_weights_that_tell(name: str) -> None:
    """Their own weights are one number a tensor, and their recorded outputs nearly uniform: here they are drawn."""
    model = drawn(model_of(next(case for case in cases() if case.name == f"test_{name}")))
    folded, plan = fold(model)
    folds = [site.status == "folded" for site in plan.sites]
    # In a DenseNet a norm stands before its ReLU, which half of these scales do not pass.
    assert any(folds) and (all(folds) or name == "densenet121")
    stored = {tensor.name for tensor in model.graph.initializer}
    (value,) = (value for value in model.graph.input if value.name not in stored)
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    feeds = {value.name: np.random.default_rng(0).standard_normal(shape)}
    (before,), (after,) = run_float32(model, feeds), run_float32(folded, feeds)
    assert before.std() > 1e-3
    assert np.abs(after - before).max() < FLOAT32 * np.abs(before).max()


def drawn(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with random weights where it fills them with one number, logits for its output and no softmax."""
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    variances = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    last = model.graph.node[-1]
    filled = [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
    kept = [node for node in model.graph.node if node.op_type not in ("ConstantOfShape", "Softmax")]
    made = [
        numpy_helper.from_array(_weight(node, tensors[node.input[0]], variances), node.output[0]) for node in filled
    ]
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(kept)
    result.graph.initializer.extend(made)
    # Weights that are inputs as well could be overridden, and norms with such statistics stay.
    fed = [value for value in result.graph.input if value.name not in tensors]
    del result.graph.input[:]
    result.graph.input.extend(fed)
    result.ir_version = 4
    if last.op_type == "Softmax":
        result.graph.output[0].name = last.input[0]
    return result


def _weight(node: onnx.NodeProto, shape: np.ndarray, variances: set[str]) -> np.ndarray:
    rng = np.random.default_rng(zlib.crc32(node.output[0].encode()))
    if node.output[0] in variances:
        return rng.uniform(0.5, 2.0, shape).astype(np.float32)
    fan_in = max(1, int(np.prod(shape[1:])))
    return (rng.standard_normal(shape) * (2.0 / fan_in) ** 0.5).astype(np.float32)
