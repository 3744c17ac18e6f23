"""What a verdict stands on: a truth that is true, or none; small channels, ties, half precision, what nobody tested."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from normfold.errors import CannotJudgeError, NormfoldError
from normfold.graph.evaluator import limits
from normfold.inputs.cases import draw_cases
from normfold.inputs.of_graph import graph_inputs
from normfold.inputs.spec import parse_specs
from normfold.verify import demand
from normfold.verify.judge import FOLD_EDGE, RUNTIME_EDGE, Edge
from normfold.verify.sizes import fitting
from normfold.verify.truth import Truth, establish
from normfold.verify.yardstick import Yardstick

SPECS = parse_specs(["x:float32[N,8]"])


def saved(folder: Path, text: str, *, opset: int = 17, name: str = "a", **arrays: np.ndarray) -> Path:
    """A graph in ONNX's text form, its floating arrays as float32."""
    head = "" if text.startswith("<") else f'<ir_version: 9, opset_import: ["": {opset}, "ai.onnx.ml": 3]>\n'
    model = onnx.parser.parse_model(head + text)
    for key, array in arrays.items():
        stored = array.astype(np.float32) if array.dtype == np.float64 else array
        model.graph.initializer.append(onnx.numpy_helper.from_array(stored, key))
    onnx.save(model, folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def compared(before: Path, after: Path, specs: str = "x:float32[N,8]") -> Edge:
    truth = establish(None, before, parse_specs([specs]))
    yardstick = Yardstick.lay(truth, before)
    return yardstick.fold_edge(yardstick.measure(after))


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


HEAD = "g (float[N,8] x) => (float[N,6] y) { h = MatMul(x, w)  y = Mul(h, s) }"


def test_small_channels_are_judged_apart(tmp_path: Path) -> None:
    """Doubling channels that are a ten-thousandth of the others moves the output's RMS by nothing."""
    scale = np.array([1.0, 1.0, 1e-4, 1.0, 1e-4, 1e-8])
    before = saved(tmp_path, HEAD, w=weight(8, 6), s=scale)
    for number, channel in enumerate((2, 4, 5)):
        doubled = scale.copy()
        doubled[channel] *= 2
        after = saved(tmp_path, HEAD, name=f"b{number}", w=weight(8, 6), s=doubled)
        edge = compared(before, after)
        assert not edge.passed
        assert f"channel {2 if channel == 4 else channel}" in edge.detail
    again = saved(tmp_path, HEAD, name="c", w=weight(8, 6) * 4, s=scale / 4)
    assert compared(before, again).passed


def test_channels_of_one_size_are_judged_together(tmp_path: Path) -> None:
    before = saved(tmp_path, HEAD, w=weight(8, 6), s=np.ones(6))
    assert establish(None, before, SPECS).parts == ()


def test_a_saturated_softmax_may_round(tmp_path: Path) -> None:
    """Entries of exactly 1 and 0: the original makes no error at all, and the last bit of a 1 is no fault."""
    text = "g (float[N,8] x) => (float[N,2000] y) { h = Gemm(x, w, b)  y = Softmax(h) }"
    w, b = weight(8, 2000), np.zeros(2000)
    b[7] = 60.0
    before = saved(tmp_path, text, w=w, b=b)
    twin = "g (float[N,8] x) => (float[N,2000] y) { h = Gemm(x, w, b)  s = Softmax(h)  y = Mul(s, below) }"
    below = np.array(1.0 - 2.0**-24, np.float32)
    assert compared(before, saved(tmp_path, twin, name="b", w=w, b=b, below=below)).passed
    wrong = np.array(0.9999, np.float32)
    assert not compared(before, saved(tmp_path, twin, name="c", w=w, b=b, below=wrong)).passed


@pytest.mark.parametrize("op", ["ArgMax<axis=1,keepdims=0>(t)", "ArgMin<axis=1,keepdims=0>(t)"])
def test_ties_are_undecided_and_all_else_is_not(tmp_path: Path, op: str) -> None:
    """Two equal columns: which of them is the largest is decided by rounding."""
    text = f"g (float[N,8] x) => (int64[N] y) {{ h = MatMul(x, w)  t = Mul(h, s)  y = {op} }}"
    w = weight(8, 6)
    w[:, 3] = w[:, 1]
    before = saved(tmp_path, text, w=w, s=np.ones(6))
    scale = np.array([1.0, 1.0, 1.0, 1.0 + 2.0**-22, 1.0, 1.0])
    # Folded, the factor of a hair turns every tie to one side.
    right = saved(tmp_path, text, name="b", w=w * scale, s=np.ones(6))
    truth = establish(None, before, SPECS, cases=draw_cases(SPECS, count=40))
    yardstick = Yardstick.lay(truth, before)
    undecided = sum(int(mask.sum()) for (mask,) in truth.undecided or () if mask is not None)
    assert undecided > 0
    assert yardstick.fold_edge(yardstick.measure(right)).passed
    wrong = w.copy()
    wrong[:, [0, 2]] = w[:, [2, 0]]
    assert not yardstick.fold_edge(yardstick.measure(saved(tmp_path, text, name="c", w=wrong, s=np.ones(6)))).passed


def test_an_output_that_only_rounding_decides_has_no_verdict(tmp_path: Path) -> None:
    w = np.repeat(weight(8, 1), 6, axis=1)
    text = "g (float[N,8] x) => (int64[N] y) { h = MatMul(x, w)  y = ArgMax<axis=1,keepdims=0>(h) }"
    with pytest.raises(CannotJudgeError, match="is decided by rounding"):
        establish(None, saved(tmp_path, text, w=w), SPECS)


def test_a_model_that_amplifies_rounding_has_no_verdict_and_the_place_is_named(tmp_path: Path) -> None:
    text = """g (float[N,8] x) => (float[N,8] y)
        { a = Add(x, big)  b = Sub(a, big)  c = Relu(b)  y = MatMul(c, w) }"""
    before = saved(tmp_path, text, w=weight(8, 8), big=np.float32([3e6]))
    with pytest.raises(CannotJudgeError, match=r"no verdict on output 'y'.*first tensor .* is [ab] \((Add|Sub)\)") as e:
        Yardstick.lay(establish(None, before, SPECS), before)
    assert "--no-verify" in str(e.value) and e.value.exit_code == 2
    mild = saved(tmp_path, text, name="b", w=weight(8, 8), big=np.float32([3.0]))
    assert compared(mild, mild).passed


HALF = """g (float[N,8] x) => (float[N,6] y)
    { a = Cast<to=10>(x)  h = MatMul(a, w)  t = Mul(h, s)  y = Cast<to=1>(t) }"""


def test_a_half_precision_body_is_judged_by_what_it_can_hold(tmp_path: Path) -> None:
    w, s = weight(8, 6).astype(np.float16), (1.0 + 0.5 * np.abs(weight(6))).astype(np.float16)
    before = saved(tmp_path, HALF, w=w, s=s)
    folded = "g (float[N,8] x) => (float[N,6] y) { a = Cast<to=10>(x)  h = MatMul(a, w)  y = Cast<to=1>(h) }"
    right = (w.astype(np.float64) * s).astype(np.float16)
    assert compared(before, saved(tmp_path, folded, name="b", w=right)).passed
    wrong = right.copy()
    wrong[:, 2] *= np.float16(1.05)
    assert not compared(before, saved(tmp_path, folded, name="c", w=wrong)).passed


def test_half_precision_that_is_only_stored_is_no_excuse(tmp_path: Path) -> None:
    """Weights in float16, cast to float32 before anything is computed: float32's bound."""
    text = "g (float[N,8] x) => (float[N,6] y) { w = Cast<to=1>(v)  y = MatMul(x, w) }"
    before = saved(tmp_path, text, v=weight(8, 6).astype(np.float16))
    yardstick = Yardstick.lay(establish(None, before, SPECS), before)
    assert yardstick.body.eps == 2.0**-23
    assert yardstick.bounds(yardstick.own())[0] < 1e-5


def test_what_the_samples_did_not_reach_is_said(tmp_path: Path) -> None:
    text = """g (float[N,8] x, int64[N] ids) => (float[N,8] y) {
        e = Gather(table, ids)
        dead = Relu(off)
        xd = Mul(x, dead)
        h = MatMul(xd, w)
        s = ReduceSum<keepdims=0>(x)
        rare = Greater(s, huge)
        z = If (rare) <then_branch = t () => (float[N,8] z) { z = Neg(h) },
                       else_branch = e () => (float[N,8] z) { z = Identity(h) }>
        never = Greater(x, huge)
        k = Where(never, e, z)
        y = Add(k, e)
    }"""
    off = np.where(np.arange(8) < 3, -1.0, 1.0)
    path = saved(tmp_path, text, table=weight(5000, 8), off=off, w=weight(8, 8), huge=np.float32(1e9))
    specs = parse_specs(["x:float32[N<=9,8]", "ids:int64[N<=9]<5000"])
    missed = establish(None, path, specs).unexercised
    assert any(line.startswith("branches never taken: then of ") for line in missed)
    assert any(line.startswith("conditions with one outcome only: ") and "False" in line for line in missed)
    assert any(line.startswith("rows of a table never read: 4,9") and "table" in line for line in missed)
    assert any(line.startswith("channels that were 0 in every sample: 3 of 8") for line in missed)
    whole = establish(None, path, parse_specs(["x:float32[N,8]", "ids:int64[N]<40"])).unexercised
    assert any("rows of a table never read: 4,960 of 5,000" in line for line in whole)


def test_what_a_norm_reads_as_zero_is_said(tmp_path: Path) -> None:
    """Behind a Relu that never opens: folded, the norm is a part of the layer that reads it."""
    text = """g (float[N,8] x) => (float[N,6] y)
        { h = Gemm(x, w, b)  r = Relu(h)  n = BatchNormalization(r, s, t, m, v)  y = MatMul(n, u) }"""
    closed = np.where(np.arange(8) < 3, -100.0, 1.0)
    rows = {name: np.abs(weight(8, seed=number)) + 0.5 for number, name in enumerate("stmv")}
    path = saved(tmp_path, text, w=weight(8, 8), b=closed, u=weight(8, 6), **rows)
    assert establish(None, path, SPECS).unexercised == ("channels that were 0 in every sample: 3 of 8, in r (3 of 8)",)


def test_rows_of_every_kind_of_table_are_watched(tmp_path: Path) -> None:
    tables = {"words": weight(50, 8), "places": weight(99, 8), "kinds": weight(2, 8), "s": np.ones(8)}
    embed = "com.microsoft.EmbedLayerNormalization (ids, kind, words, places, kinds, s, s)"
    body = f"{{ e, m = {embed}  c = Cast<to=7>(ids)  n = Unsqueeze(c, last)  g = GatherND(words, n)  y = Add(e, g) }}"
    text = f"g (int32[B,L] ids, int32[B,L] kind) => (float[B,L,8] y) {body}"
    model = f'<ir_version: 9, opset_import: ["": 17, "com.microsoft": 1]>\n{text}'
    path = saved(tmp_path, model, last=np.array([2]), **tables)
    specs = graph_inputs(ir.load(path), path)
    assert list(map(str, specs)) == ["ids:int32[B,L]<50", "kind:int32[B,L]<2"]
    assert establish(None, path, fitting(specs, path)).unexercised == ()
    few = establish(None, path, parse_specs(["ids:int32[B,L<=9]<40", "kind:int32[B,L<=9]<1"])).unexercised
    assert few == ("rows of a table never read: 11 of 52, in words (10 of 50), kinds (1 of 2)",)


def test_a_small_vocabulary_is_read_whole(tmp_path: Path) -> None:
    text = "g (int64[B,L] ids) => (float[B,L,8] y) { y = Gather(table, ids) }"
    path = saved(tmp_path, text, table=weight(900, 8))
    assert establish(None, path, parse_specs(["ids:int64[B,L]<900"])).unexercised == ()
    limited = establish(None, path, parse_specs(["ids:int64[B,L<=8]<900"])).unexercised
    assert limited and "rows of a table never read" in limited[0]


SEQUENCE = "g (float[N,8] x) => (seq(float[]) y) { h = MatMul(x, w)  y = SequenceConstruct(h, x) }"


def test_sequences_are_compared_element_by_element(tmp_path: Path) -> None:
    w = weight(8, 6)
    before = saved(tmp_path, SEQUENCE, w=w)
    assert compared(before, before).passed
    wrong = w.copy()
    wrong[0, 0] *= 1.01
    assert not compared(before, saved(tmp_path, SEQUENCE, name="b", w=wrong)).passed
    swapped = SEQUENCE.replace("(h, x)", "(x, h)")
    assert not compared(before, saved(tmp_path, swapped, name="c", w=w)).passed


def test_memory_is_estimated_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "g (float[N,8] x) => (float[N,6] y) { t = Tile(x, r)  h = MatMul(t, w)  y = Slice(h, z, e, a) }"
    arrays = {"r": np.array([1, 100_000]), "w": weight(800_000, 6), "z": np.array([0]), "e": np.array([6])}
    path = saved(tmp_path, text, **arrays, a=np.array([1]))
    monkeypatch.setattr(demand, "available_memory", lambda: 600 << 20)
    with pytest.raises(CannotJudgeError, match=r"GB of memory to run in float64, and 0.6 GB are free"):
        establish(None, path, SPECS)


@pytest.mark.parametrize("body", ["y_out = Concat<axis=0>(v, v)", "y_out = Add(v, v)"])
def test_loops_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setattr(limits, "MOST_RUNS", 20_000)
    monkeypatch.setattr(limits, "MOST_ELEMENTS", 1 << 24)
    text = f"""g (float[N,8] x) => (float[M,8] y) {{ n = Constant<value_int = 9000000000>()
        y = Loop (n, , x) <body = b (int64 i, bool c, float[K,8] v) => (bool c_out, float[L,8] y_out)
            {{ c_out = Identity(c)  {body} }}> }}"""
    with pytest.raises(CannotJudgeError, match="normfold stops there"):
        establish(None, saved(tmp_path, text), SPECS)


def test_an_operator_that_is_not_known_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, "g (float[N,8] x) => (float[N,8] y) { n = RandomNormalLike(x)  y = Add(x, n) }")
    with pytest.raises(CannotJudgeError, match=r"RandomNormalLike.*--no-verify"):
        establish(None, path, SPECS)


def test_the_truth_of_parts_and_masks_stays_with_its_cases(tmp_path: Path) -> None:
    scale = np.array([1.0, 1.0, 1e-4, 1.0, 1e-4, 1e-8])
    truth = establish(None, saved(tmp_path, HEAD, w=weight(8, 6), s=scale), SPECS)
    few = truth.only([1, 3])
    assert isinstance(few, Truth)
    assert few.parts == truth.parts
    assert len(few.outputs) == len(few.cases) == 2
    assert np.array_equal(few.pieces(few.outputs[0])[1], truth.outputs[1][0][:, [2, 4]])


def test_what_a_sigmoid_presses_against_zero_is_judged_before_it(tmp_path: Path) -> None:
    text = "g (float[N,8] x) => (float[N,6] y) { h = MatMul(x, w)  a = Add(h, b)  y = Sigmoid(a) }"
    bias = np.full(6, -30.0)
    before = saved(tmp_path, text, w=weight(8, 6), b=bias)
    specs = parse_specs(["x:float32[N,8]"])
    yardstick = Yardstick.lay(establish(None, before, specs), before)
    assert yardstick.before is not None
    after = saved(tmp_path, text.replace(" a ", " z ").replace("(a)", "(z)"), name="b", w=weight(8, 6), b=bias)
    assert [edge.name for edge in yardstick.compare(after) if edge.passed] == [
        FOLD_EDGE,
        f"{FOLD_EDGE}, before Sigmoid",
        RUNTIME_EDGE,
    ]
    wrong = saved(tmp_path, text, name="c", w=weight(8, 6) * 1.01, b=bias)
    assert [edge.passed for edge in yardstick.compare(wrong)] == [True, False, True]
    # Only there: what is not at its end has no need of it.
    open_end = saved(tmp_path, text, name="d", w=weight(8, 6), b=bias / 30)
    assert Yardstick.lay(establish(None, open_end, specs), open_end).before is None


def test_a_weight_that_one_row_in_a_hundred_and_fifty_reads_is_judged(tmp_path: Path) -> None:
    """A unit that is silent but for the largest of its sums; what is wrong behind it shows in no other row."""
    text = """g (float[B,3,12,10] x) => (float[B,6] y)
        { f = Flatten(x)  n = LpNormalization(f)  h = MatMul(n, w)  a = Add(h, b)  r = Relu(a)  y = MatMul(r, v) }"""
    w, v, wrong = weight(360, 5), weight(5, 6), weight(5, 6)
    b = np.array([-2.475 * np.sqrt(np.square(w[:, 0]).mean()), *weight(4)])
    wrong[0, 0] *= 1.001
    before = saved(tmp_path, text, w=w, b=b, v=v)
    after = saved(tmp_path, text, name="b", w=w, b=b, v=wrong)
    specs = parse_specs(["x:float32[B,3,12,10]"])
    for seed in (0, 200):
        yardstick = Yardstick.lay(establish(None, before, specs, cases=draw_cases(specs, seed=seed, count=32)), before)
        assert not yardstick.fold_edge(yardstick.measure(after)).passed, seed


def test_channels_that_rounding_has_lost_are_not_judged_apart(tmp_path: Path) -> None:
    """A channel that is the difference of two large ones, of a ten-millionth of them, has no digit left in float32;
    one of a hundred-thousandth has, and doubling it is a fault.
    """
    text = "g (float[N,8] x) => (float[N,2] y) { h = MatMul(x, w)  y = MatMul(h, v) }"
    first, specs = weight(8, 1), parse_specs(["x:float32[N,8]"])

    def laid(apart: float) -> Yardstick:
        both = np.concatenate([first, first * (1 + apart)], 1)
        path = saved(tmp_path, text, name="a", w=both, v=np.array([[1.0, 1.0], [1.0, -1.0]]))
        truth = establish(None, path, specs)
        assert truth.parts
        return Yardstick.lay(truth, path)

    assert not laid(2e-7).truth.parts
    kept = laid(1e-5)
    assert kept.truth.parts and kept.original.own.worst[1] > 0.005 * kept.scales[1]
    doubled = saved(
        tmp_path,
        text,
        name="b",
        w=np.concatenate([first, first * (1 + 1e-5)], 1),
        v=np.array([[1.0, 2.0], [1.0, -2.0]]),
    )
    assert not kept.fold_edge(kept.measure(doubled)).passed


def test_a_step_that_rounding_decides_is_no_fault(tmp_path: Path) -> None:
    """A sum falls to the other side of a step in one sample, which is then off by a thousand times its rounding."""
    text = """g (float[N,64] x) => (float[N,6] y)
        { h = MatMul(x, v)  q = QuantizeLinear(h, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(d, w) }"""
    turned = text.replace("MatMul(x, v)", "MatMul(t, v)").replace("{", "{ t = Gather<axis=1>(x, order)")
    steps = {"s": np.float32(2.0**-12), "z": np.int16(0)}
    order, v, w = np.random.default_rng(1).permutation(64), weight(64, 12) / 8, weight(12, 6)
    specs = parse_specs(["x:float32[N,64]"])
    before = saved(tmp_path, text, opset=21, v=v, w=w, **steps)
    yardstick = Yardstick.lay(establish(None, before, specs, cases=draw_cases(specs, count=40)), before)
    right = saved(tmp_path, turned, opset=21, name="b", v=v[order], w=w, order=order, **steps)
    edge = yardstick.fold_edge(yardstick.measure(right))
    assert edge.passed
    held = replace(yardstick, body=replace(yardstick.body, steps=False))
    assert not held.fold_edge(held.measure(right)).passed
    w[2, 1] *= 1.001
    wrong = saved(tmp_path, text, opset=21, name="c", v=v, w=w, **steps)
    assert not yardstick.fold_edge(yardstick.measure(wrong)).passed


def test_integers_that_a_model_does_not_take_are_named(tmp_path: Path) -> None:
    """A length that divides is drawn as 0: nothing in the file says what it may be, and the user can."""
    text = "g (float[8] x, int64[1] n) => (float[8] y) { f = Cast<to=1>(n)  m = Mul(x, f)  y = Div(m, f) }"
    path = saved(tmp_path, text)
    specs = parse_specs(["x:float32[8]", "n:int64[1]<2"])
    zeros = [replace(case, feeds={**case.feeds, "n": np.array([0])}) for case in draw_cases(specs, count=2)]
    with pytest.raises(NormfoldError, match=r'n from 0 to 0; .*--input "n:int64\[...\]\{1,2,3\}"'):
        establish(None, path, specs, cases=zeros)
    assert zeros[0].integers and not replace(zeros[0], origin="a.npz row 0").integers


def test_a_mask_of_integers_hides_no_whole_row(tmp_path: Path) -> None:
    """Under -1e9 everywhere nothing is left of float32's scores, and the bound of every weight was made of that."""
    text = """g (float[B,L,8] x, int64[B,L] mask) => (float[B,L,8] y) {
        t = Transpose<perm=[0,2,1]>(x)  a = MatMul(x, t)  f = Cast<to=1>(mask)  o = Sub(one, f)  h = Mul(o, low)
        m = Unsqueeze(h, axis)  b = Add(a, m)  p = Softmax<axis=-1>(b)  v = MatMul(x, w)  y = MatMul(p, v) }"""
    constants = {"one": np.float32(1), "low": np.float32(-1e9), "axis": np.array([1])}
    path = saved(tmp_path, text, w=weight(8, 8), **constants)
    yardstick = Yardstick.lay(establish(None, path, graph_inputs(ir.load(path), path)), path)
    assert yardstick.bounds(yardstick.own())[0] < 1e-4
    assert {0, 1} == {number for case in yardstick.truth.cases for number in case.feeds["mask"].flat}
