"""If, Loop, Scan, sequences, optionals and the model's own functions: against onnxruntime, and that they end."""

from __future__ import annotations

import os
import weakref
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from normfold.errors import CannotJudgeError
from normfold.graph.evaluator import limits
from normfold.graph.evaluator.call import EvaluationError
from normfold.graph.evaluator.evaluator import Evaluator
from tests.graph.evaluator.single import assert_same, run_session

X = np.random.default_rng(3).normal(0, 1, (4, 3)).astype(np.float32)
HEADER = '<ir_version: 8, opset_import: ["" : {opset}, "own" : 1]>\n'


def model_of(text: str, opset: int = 17) -> onnx.ModelProto:
    return onnx.parser.parse_model(HEADER.replace("{opset}", str(opset)) + text)


def check(text: str, feeds: dict[str, Any], opset: int = 17) -> tuple[Any, ...]:
    model = model_of(text, opset)
    found = Evaluator(ir.from_proto(model)).run(feeds)
    for one, other in zip(found, run_session(model, feeds), strict=True):
        assert_same(one, other)
    return found


BRANCHES = """
main (float[4,3] x, bool c) => (y, z) {
  y, z = If (c) <
    then_branch = yes () => (a, b) { a = Relu(x)  b = Neg(a) },
    else_branch = no () => (a, b) { a = Exp(x)  one = Constant<value_float = 1.0>()  b = Add(a, one) }
  >
}"""


@pytest.mark.parametrize("opset", [12, 13, 16, 21])
@pytest.mark.parametrize("condition", [True, False])
def test_if(opset: int, condition: bool) -> None:
    check(BRANCHES, {"x": X, "c": np.array(condition)}, opset)


LOOP = """
main (int64 m, bool c, float[3] start) => (last, all, firsts) {
  last, all, firsts = Loop (m, c, start) <
    body = step (int64 i, bool before, float[3] v) => (after, next, float[3] each, float[1] first) {
      two = Constant<value_float = 2.0>()
      next = Mul(v, two)
      each = Identity(next)
      zero = Constant<value_ints = [0]>()
      one = Constant<value_ints = [1]>()
      first = Slice(next, zero, one)
      limit = Constant<value_float = 20.0>()
      sum = ReduceSum<keepdims = 0>(next)
      after = Less(sum, limit)
    }
  >
}"""


@pytest.mark.parametrize("opset", [13, 16, 21])
@pytest.mark.parametrize(("trips", "condition"), [(3, True), (100, True), (0, True), (5, False), (1, True)])
def test_loop(opset: int, trips: int, condition: bool) -> None:
    feeds = {"m": np.array(trips), "c": np.array(condition), "start": np.array([1, 0.5, 0.25], np.float32)}
    found = check(LOOP, feeds, opset)
    assert found[1].shape == (len(found[2]), 3)


def test_loops_without_a_count_or_a_condition() -> None:
    feeds = {"m": np.array(4), "c": np.array(True), "start": abs(X[0])}
    for written in ('Loop ("", c, start)', 'Loop ("", "", start)'):
        check(LOOP.replace("Loop (m, c, start)", written), feeds)
    endless = LOOP.replace("after = Less(sum, limit)", "after = Identity(before)")
    check(endless.replace("Loop (m, c, start)", 'Loop (m, "", start)'), feeds)


def test_a_body_may_take_its_counter_as_a_vector() -> None:
    text = """
    main (int64[1] m, float[3] x) => (y, all) {
      t = Constant<value = bool[1] {1}>()
      y, all = Loop (m, t, x) <
        body = step (int64[1] i, bool[1] c, float[3] v) => (d, w, each) {
          d = Identity(c)
          f = Cast<to = 1>(i)
          w = Add(v, f)
          each = Shape(i)
        }
      >
    }"""
    check(text, {"m": np.array([3]), "x": X[0]})


def test_a_nested_loop_reads_the_graphs_around_it() -> None:
    text = """
    main (int64 m, float[4,3] x) => (total) {
      zero = Constant<value_float = 0.0>()
      t = Constant<value = bool {1}>()
      total = Loop (m, t, zero) <
        body = outer (int64 i, bool c, float s) => (d, r) {
          row = Gather(x, i)
          d = Identity(c)
          q = Loop (m, c, s) <
            body = inner (int64 j, bool e, float u) => (f, w) {
              f = Identity(e)
              item = Gather(row, j)
              w = Add(u, item)
            }
          >
          r = Mul(q, q)
        }
      >
    }"""
    check(text, {"m": np.array(3), "x": X})


def test_a_loop_may_carry_a_sequence_and_give_strings() -> None:
    text = """
    main (int64 m, string[2] words) => (n, all) {
      t = Constant<value = bool {1}>()
      none = SequenceEmpty<dtype = 7>()
      items, all = Loop (m, t, none) <
        body = step (int64 i, bool c, seq(int64) s) => (d, r, string[2] w) {
          d = Identity(c)
          r = SequenceInsert(s, i)
          w = Identity(words)
        }
      >
      n = SequenceLength(items)
    }"""
    found = Evaluator(ir.from_proto(model_of(text))).run({"m": np.array(3), "words": np.array(["a", "b"], object)})
    assert found[0] == 3
    assert found[1].tolist() == [["a", "b"]] * 3


SCAN = """
main (float[3] s, float[4,3] x, float[3,4] y) => (last, outs) {
  last, outs = Scan <num_scan_inputs = 2, OPTIONS
    body = step (float[3] a, float[3] b, float[3] c) => (r, o) {
      p = Add(a, b)
      r = Mul(p, c)
      o = Identity(p)
    }
  > (s, x, y)
}"""


@pytest.mark.parametrize("opset", [9, 11, 16, 21])
@pytest.mark.parametrize(
    "options",
    ["", "scan_input_directions = [1, 0],", "scan_output_axes = [1],", "scan_output_directions = [1],",
     "scan_output_axes = [-1], scan_output_directions = [1], scan_input_directions = [0, 1],"],
)  # fmt: skip
def test_scan(opset: int, options: str) -> None:
    text = SCAN.replace("OPTIONS", f"scan_input_axes = [0, 1], {options}")
    check(text, {"s": X[0], "x": X, "y": np.ascontiguousarray(X.T)}, opset)


@pytest.mark.parametrize("lengths", [None, [4, 2]])
def test_scan_of_opset_8(lengths: list[int] | None) -> None:
    text = SCAN.replace("OPTIONS", "directions = [0, 1],").replace("(s, x, y)", "(n, s, x, y)")
    text = text.replace("main (float[3] s, float[4,3] x, float[3,4] y)",
                        "main (float[2,3] s, float[2,4,3] x, float[2,4,3] y, int64[2] n)")  # fmt: skip
    feeds = {"s": X[:2], "x": np.stack([X, 2 * X]), "y": np.stack([X + 1, X]), "n": np.array(lengths or [4, 4])}
    if lengths is None:
        text = text.replace("(n, s, x, y)", '("", s, x, y)')
    check(text, feeds, 8)


SEQUENCES = [
    "q = SplitToSequence(x)  y = SequenceAt(q, i)",
    "q = SplitToSequence<axis = 1, keepdims = 0>(x)  y = ConcatFromSequence<axis = 0, new_axis = 1>(q)",
    "q = SplitToSequence<axis = 0>(x, three)  y = SequenceAt(q, i)",
    "q = SplitToSequence<axis = 0>(x, sizes)  y = ConcatFromSequence<axis = -2>(q)",
    "q = SequenceConstruct(x, x, x)  r = SequenceErase(q, i)  y = SequenceAt(r, i)",
    "e = Exp(x)  q = SequenceConstruct(x, x)  r = SequenceInsert(q, e, i)  y = ConcatFromSequence<axis = 0>(r)",
    "q = SequenceConstruct(x, x)  r = SequenceErase(q)  y = SequenceLength(r)",
    "q = SequenceEmpty()  r = SequenceInsert(q, x)  y = SequenceAt(r, i)",
    "o = Optional(x)  y = OptionalGetElement(o)",
    "o = Optional(x)  y = OptionalHasElement(o)",
]


@pytest.mark.parametrize("body", SEQUENCES)
def test_sequences(body: str) -> None:
    text = f"main (float[4,3] x, int64 i, int64 three, int64[2] sizes) => (y) {{ {body} }}"
    check(text, {"x": X, "i": np.array(-1), "three": np.array(3), "sizes": np.array([1, 3])}, 18)


FUNCTION = """
main (float[4,3] x, bool c) => (y, z) {
  y = own.outer<slope = 0.5>(x, c)
  z = own.outer(x, c)
}
<opset_import: ["" : 17, "own" : 1], domain: "own">
outer <slope: float = 0.25> (a, flag) => (r) {
  r = If (flag) <
    then_branch = yes () => (s) { s = own.inner<alpha: float = @slope>(a) },
    else_branch = no () => (s) { s = Elu<alpha: float = @slope>(a) }
  >
}
<opset_import: ["" : 17, "own" : 1], domain: "own">
inner <alpha, beta> (a) => (r) {
  p = LeakyRelu<alpha: float = @alpha>(a)
  r = HardSigmoid<alpha: float = @alpha, beta: float = @beta>(p)
}"""


@pytest.mark.parametrize("condition", [True, False])
def test_functions_with_attributes(condition: bool) -> None:
    check(FUNCTION, {"x": X, "c": np.array(condition)})


def test_an_empty_optional_has_no_element() -> None:
    evaluator = Evaluator(
        ir.from_proto(model_of("main (optional(float[2]) x) => (y) { y = OptionalHasElement(x) }", 18))
    )
    assert evaluator.run({"x": None})[0].tolist() is False
    assert evaluator.run({"x": X[0]})[0].tolist() is True
    evaluator = Evaluator(
        ir.from_proto(model_of("main (optional(float[2]) x) => (y) { y = OptionalGetElement(x) }", 18))
    )
    with pytest.raises(EvaluationError, match="no element"):
        evaluator.run({"x": None})


BOMB = """
main (int64 m, float[3] x) => (y) {
  t = Constant<value = bool {1}>()
  y STACK = Loop (m, t, x) <body = step (int64 i, bool c, float[3] v) => (BODY) { NODES }>
}"""


@pytest.mark.parametrize(
    ("stack", "outputs", "nodes", "why"),
    [
        ("", "c, v", "", "runs more than"),
        ("", "d, w", "d = Identity(c)  w = Identity(v)", "runs more than"),
        ("", "d, w", "d = Identity(c)  w = Concat<axis = 0>(v, v)", "memory are free|numbers for one input"),
        (", s", "d, w, e", "d = Identity(c)  w = Identity(v)  k = Constant<value_ints = [4000000]>()  e = Expand(i, k)",
         "memory are free|numbers for one input|runs more than"),
    ],
    ids=["empty body", "small body", "doubling", "stack"],
)  # fmt: skip
def test_bombs_end(stack: str, outputs: str, nodes: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_RUNS", 2_000)
    monkeypatch.setattr(limits, "available_memory", lambda: 1 << 29)
    text = BOMB.replace("STACK", stack).replace("BODY", outputs).replace("NODES", nodes)
    evaluator = Evaluator(ir.from_proto(model_of(text)))
    with pytest.raises(CannotJudgeError, match=why):
        evaluator.run({"m": np.array(2**62), "x": X[0]})


def test_a_loop_frees_what_its_body_made() -> None:
    text = BOMB.replace("STACK", "").replace("BODY", "d, w").replace(
        "NODES", "d = Identity(c)  a = Exp(v)  b = Neg(a)  e = Sigmoid(b)  w = Add(e, a)")  # fmt: skip
    made: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def watch(node: Any, read: Any, written: Any) -> None:
        nonlocal most
        made.extend(weakref.ref(value) for value in written if value.ndim)
        most = max(most, sum(one() is not None for one in made))

    Evaluator(ir.from_proto(model_of(text))).run({"m": np.array(50), "x": X[0]}, watch=watch)
    assert len(made) > 200
    assert most <= 4  # the state of before, and what the body has not used up


def test_a_value_behind_a_failing_branch_is_named() -> None:
    text = BRANCHES.replace("a = Relu(x)", "s = Constant<value_ints = [5]>()  a = Reshape(x, s)")
    with pytest.raises(EvaluationError, match="Reshape"):
        Evaluator(ir.from_proto(model_of(text))).run({"x": X, "c": np.array(True)})


def test_as_many_threads_as_there_are_free_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """And as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    try:
        for load, threads in ((0.2, 4), (1.5, 3), (9.0, 1)):
            monkeypatch.setattr(os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
            with limits.free_processors():
                assert torch.get_num_threads() == threads
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
