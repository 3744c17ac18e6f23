"""The yardstick: how the error of the original is measured, and what does not hide behind it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from normfold.inputs.cases import draw_cases
from normfold.inputs.spec import parse_specs
from normfold.verify import judge as verify
from normfold.verify import measure
from normfold.verify import truth as truths
from normfold.verify.measure import Own, rounded_anew
from normfold.verify.yardstick import Yardstick
from tests.support.graphs import as_float32, build, draw
from tests.verify.test_judge import SPECS, check_fold, folded, original, save, weights


def test_a_network_that_amplifies_rounding_is_judged_by_several_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large scores before a softmax: the largest error of one run says little about that of the next."""
    node = helper.make_node
    scores = [node("MatMul", ["x", "W1"], ["h"]), node("Mul", ["h", "scale"], ["m"])]
    tail = [node("Softmax", ["u"], ["v"]), node("MatMul", ["v", "W3"], ["y"])]
    grown = 0
    for seed in range(10):
        w = {name: value for name, value in weights(seed).items() if name != "shift"}
        w["W2"] *= 60.0
        before = save(tmp_path / "a.onnx", [*scores, node("Gemm", ["m", "W2", "b2"], ["u"]), *tail], w)
        w["W2"] = w.pop("scale")[:, None] * w["W2"]
        after = save(tmp_path / "b.onnx", [scores[0], node("Gemm", ["h", "W2", "b2"], ["u"]), *tail], w)
        truth = truths.establish(None, before, SPECS)
        with monkeypatch.context() as patch:
            patch.setattr(measure, "NEIGHBOURS", 0)
            single = check_fold(truth, before, after)
        several = check_fold(truth, before, after)
        assert several.passed, f"seed {seed}: {several}"
        assert several.bound >= single.bound
        grown += several.bound > 1.5 * single.bound
    assert grown >= 3


def test_neighbours_are_one_step_away_and_nothing_else() -> None:
    case = draw_cases(parse_specs(["x:float32[B,4]", "ids:int64[B]<9"]))[0]
    moved = case.moved(1)
    x, near = case.feeds["x"], moved.feeds["x"]
    assert near.dtype == np.float32
    assert (near != x).all()
    assert (np.nextafter(x, near) == near).all()
    assert moved.feeds["ids"] is case.feeds["ids"]
    assert case.moved(0) is case
    assert not np.array_equal(near, case.moved(2).feeds["x"])


def test_an_original_with_a_small_error_by_chance_is_run_again(tmp_path: Path) -> None:
    """An original that seems three times as exact as it is: a right fold passes all the same, a wrong one does not."""
    w = weights(0)
    before, after = original(tmp_path / "a.onnx", w), folded(tmp_path / "b.onnx", w)
    wrong = folded(tmp_path / "c.onnx", w, factor=1.001)
    honest = Yardstick.lay(truths.establish(None, before, SPECS), before)
    plain = honest.measure(after)
    ulps = tuple(ulp / 1000 for ulp in honest.original.ulps)
    needed = plain.own.worst[0] / 2 / 1.5
    own = Own((needed,), tuple((error / 3,) for (error,) in honest.original.own.samples))
    lucky = replace(honest, original=replace(honest.original, ulps=ulps, own=own))
    assert plain.own.worst[0] > lucky.bounds(lucky.own())[0] * lucky.scales[0]
    assert lucky.fold_edge(plain).passed
    assert not lucky.fold_edge(lucky.measure(wrong)).passed


def test_weights_rounded_anew_are_where_rounding_puts_them() -> None:
    weights = {"w": np.linspace(0.5, 1.5, 12_001, dtype=np.float32), "fixed": np.eye(40, dtype=np.float32)}
    moved = rounded_anew(weights, seed=1)
    steps = np.abs(moved["w"].view(np.int32) - weights["w"].view(np.int32))
    assert moved["w"].dtype == np.float32 and set(steps.tolist()) == {0, 1}
    # Some are drawn twice, and count once.
    assert 0.07 < steps.mean() < 1 / 12
    assert np.array_equal(moved["fixed"], weights["fixed"])
    assert not np.array_equal(moved["w"], rounded_anew(weights, seed=2)["w"])


def test_a_network_that_reads_tokens_is_run_again_with_other_weights(tmp_path: Path) -> None:
    table = draw("table", 11, 6)
    model = build(
        "agraph (int64[B] ids) => (float[] y) { e = Gather(table, ids)  y = MatMul(e, w) }", table=table, w=(6, 5)
    )
    onnx.save(as_float32(model), tmp_path / "a.onnx")
    specs = parse_specs(["ids:int64[B]<11"])
    truth = truths.establish(None, tmp_path / "a.onnx", specs)
    single = measure.measure(truth, tmp_path / "a.onnx", verify.PLAIN, moved=[8] * len(truth.cases))
    several = measure.rerun(truth, tmp_path / "a.onnx", verify.PLAIN, runs=8)
    assert single.own == measure.measure(truth, tmp_path / "a.onnx", verify.PLAIN).own
    # Weights that onnxruntime reads after they were freed would be anything.
    assert all(one < more < 10 * one for (more,), (one,) in zip(several.samples, single.own.samples, strict=True))


def test_a_fault_does_not_hide_behind_one_sample_that_amplifies(tmp_path: Path) -> None:
    """A thousand times the error in one sample, the original's as the fold's: every other one is judged by itself."""
    w = weights(0)
    before = original(tmp_path / "a.onnx", w)
    wrong = folded(tmp_path / "b.onnx", w, factor=1.001)
    honest = Yardstick.lay(truths.establish(None, before, SPECS), before)
    own = honest.original.own
    loud = replace(honest, original=replace(honest.original, own=Own((1.0,), ((1.0,), *own.samples[1:]))))
    edge = loud.fold_edge(loud.measure(wrong))
    assert not edge.passed
    assert "its root mean square error is" in edge.detail
    assert max(edge.outputs[0].relative) < edge.bound
    assert loud.fold_edge(loud.measure(folded(tmp_path / "c.onnx", w))).passed
