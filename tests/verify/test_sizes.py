"""Sizes that a graph can take are found, not assumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from normfold.errors import CannotJudgeError, InputSpecError
from normfold.graph.evaluator import limits
from normfold.inputs.of_graph import graph_inputs
from normfold.inputs.spec import InputSpec
from normfold.verify import sizes
from normfold.verify.sizes import fitting
from tests.verify.test_truth import saved, weight

POOLED = """g (float[B,3,H,W] x) => (float[A,C,D,E] y)
    { a = MaxPool<kernel_shape=[8,8],strides=[8,8]>(x)  u = Resize(a, , s)  y = Add(u, x) }"""
TABLE = """g (int64[B,L] x) => (float[A,C,D] y) { a = Gather(t, x)  s = Shape(x)  n = Gather(s, one)
    p = Slice(pt, zero, n, zero)  y = Add(a, p) }"""
# The axis of the state counts samples too, and is not its first.
STATE = """g (float[B,N] x, float[1,S,4] h) => (float[A,C,D,E] y)
    { a = Unsqueeze(x, axis)  y = LSTM<hidden_size=4>(a, w, r, , , h, h) }"""
HALVED = """g (float[B,3,H] x) => (float[A,C,D] y)
    { a = MaxPool<kernel_shape=[8], strides=[8], auto_pad="SAME_UPPER">(x)
      p = MaxPool<kernel_shape=[2], strides=[2]>(x)  u = Resize(a, , s)  y = Add(u, p) }"""
ROUNDED = """g (float[B,3,H] x) => (float[A,C,D] y)
    { a = MaxPool<kernel_shape=[2], strides=[2], auto_pad="SAME_UPPER">(x)
      b = MaxPool<kernel_shape=[2], strides=[2], auto_pad="SAME_UPPER">(a)  u = Resize(b, , s)  y = Add(u, a) }"""
RATES = """g (float[N,L] x, int64 rate) => (float[N,C] y) { c = Equal(rate, r)
    y = If (c) <then_branch = t () => (float[N,C] z) { p = THEN  z = MatMul(p, w) },
                else_branch = e () => (float[N,C] z) { q = MatMul(x, v)  z = Neg(q) }> }"""


@pytest.mark.parametrize(
    ("text", "arrays", "found"),
    [
        ("g (float[B,8] x) => (float[A,C] y) { y = MatMul(x, w) }", {"w": weight(8, 4)}, ["x:float32[B,8]"]),
        (
            "g (float[B,3,H,W] x) => (float[A,C,D,E] y) { y = Conv(x, w) }",
            {"w": weight(4, 3, 5, 5)},
            ["x:float32[B=5,3,H=7>=5,W=11>=5]"],
        ),
        (POOLED, {"s": np.float32([1, 1, 8, 8])}, ["x:float32[B=5,3,H=8*n=8,W=8*n=8]"]),
        ("g (float[B,N] x) => (float[A,C] y) { y = MatMul(x, w) }", {"w": weight(512, 4)}, ["x:float32[B=3,512]"]),
        ("g (float[N,4] x) => (float[A,C] y) { y = Reshape(x, s) }", {"s": np.array([3, 4])}, ["x:float32[3,4]"]),
        (
            TABLE,
            {"t": weight(50, 4), "pt": weight(40, 4), "one": np.array([1]), "zero": np.array([0])},
            ["x:int64[B=3,L=5<=40]<50"],
        ),
        (
            "g (float[B1,L1] x, float[B2,L2] z) => (float[A,C] y) { y = Concat<axis=0>(x, z)  q = Mul(x, z) }",
            {},
            ["x:float32[B1,L1]", "z:float32[B1,L1]"],
        ),
        (
            STATE,
            {"w": weight(1, 16, 512), "r": weight(1, 16, 4), "axis": np.array([0])},
            ["x:float32[B=3,512]", "h:float32[1,B=3,4]"],
        ),
        # onnxruntime makes a window of its own where the padded input is smaller than one.
        (
            "g (float[B,3,H] x) => (float[A,C,D] y) { y = MaxPool<kernel_shape=[8], strides=[8]>(x) }",
            {},
            ["x:float32[B=5,3,H=8>=8]"],
        ),
        # At two and three pixels one of the two is broadcast, which nobody means.
        (HALVED, {"s": np.float32([1, 1, 4])}, ["x:float32[B=5,3,H=8*n=8]"]),
        # Halves are rounded up: three of four sizes below a multiple work too, as the traced one does.
        (ROUNDED, {"s": np.float32([1, 1, 2])}, ["x:float32[B=5,3,H=4*n=4]"]),
    ],
    ids=["any", "least", "multiple", "single", "batch", "limit", "equal", "state", "window", "island", "rounded"],
)
def test_what_an_axis_may_be(tmp_path: Path, text: str, arrays: dict[str, np.ndarray], found: list[str]) -> None:
    path = saved(tmp_path, text, **arrays)
    specs = fitting(graph_inputs(ir.load(path), path), path)
    assert list(map(str, specs)) == found


CACHE = """g (float[B,S,8] x, float[B,P,8] past, float[B,T] mask) => (float[A,C,D] y)
    { k = Concat<axis=1>(past, x)  t = Transpose<perm=[0,2,1]>(k)  a = MatMul(x, t)  m = Unsqueeze(mask, one)
      b = Add(a, m)  p = Softmax<axis=-1>(b)  y = MatMul(p, k) }"""


@pytest.mark.parametrize("name", ["T", "P + S", "past_length + S"])
def test_a_mask_is_as_long_as_a_cache_and_what_comes_to_it(tmp_path: Path, name: str) -> None:
    """At one position and none before it everything runs, and shows nothing."""
    path = saved(tmp_path, CACHE, one=np.array([1]))
    model = ir.load(path)
    past = "past_length" if "past" in name else "P"
    model.graph.inputs[1].shape, model.graph.inputs[2].shape = ir.Shape(["B", past, 8]), ir.Shape(["B", name])
    specs = fitting(graph_inputs(model, path), path)
    whole = "S+P" if name == "T" else f"{past}+S"
    assert list(map(str, specs)) == ["x:float32[B,S,8]", f"past:float32[B,{past},8]", f"mask:float32[B,{whole}]"]


def test_a_size_that_happens_to_be_a_sum_is_none(tmp_path: Path) -> None:
    path = saved(tmp_path, POOLED, s=np.float32([1, 1, 8, 8]))
    specs = tuple(InputSpec.parse(text) for text in ("x:float32[B=3,3,H=5,W=8]",))
    assert "+" not in str(fitting(specs, path)[0])


def test_sizes_between_two_steps_are_found(tmp_path: Path) -> None:
    """A convolution without padding in front of pairs of fours: 7, 11, 15, ..."""
    text = "g (float[N,4,L] x) => (float[A,C,D,E] y) { c = Conv(x, w)  y = Reshape(c, s) }"
    path = saved(tmp_path, text, w=weight(4, 4, 4), s=np.array([0, 0, -1, 4]))
    assert list(map(str, fitting(graph_inputs(ir.load(path), path), path))) == ["x:float32[N=3,4,7]"]


def test_attention_is_not_tried_at_sizes_that_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16,000 positions the scores are a gigabyte; of a network that only adds they are nothing."""
    tried: list[int] = []

    def run(session: Any, names: Any, feeds: Any) -> Any:
        tried.append(feeds["x"].shape[1])
        raise ValueError("too short")

    monkeypatch.setattr(sizes, "run_session", run)
    texts = ["{ t = Transpose(x)  y = MatMul(t, x) }", "{ y = Add(x, x) }"]
    for text, most in zip(texts, (4096, 16000), strict=True):
        path = saved(tmp_path, f"g (float[1,L] x) => (float[A,C] y) {text}")
        with pytest.raises(InputSpecError):
            fitting(graph_inputs(ir.load(path), path), path)
        assert max(tried) == most
        tried.clear()


def test_a_bomb_is_found_before_onnxruntime_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "available_memory", lambda: 1 << 30)
    run = sizes.run_session
    ran: list[str] = []

    def counted(*given: Any) -> Any:
        ran.append("run")
        return run(*given)

    monkeypatch.setattr(sizes, "run_session", counted)
    text = "g (float[N,4] x) => (float[A] y) { p = Pad(x, pads)  y = ReduceMax<keepdims=0>(p) }"
    path = saved(tmp_path, text, pads=np.array([0, 0, 0, 10**9]))
    with pytest.raises(CannotJudgeError, match=r"\(Pad\): a tensor of .* takes .* GB"):
        fitting(graph_inputs(ir.load(path), path), path)
    assert not ran
    mild = saved(tmp_path, text, name="b", pads=np.array([0, 0, 0, 10]))
    assert list(map(str, fitting(graph_inputs(ir.load(mild), mild), mild))) == ["x:float32[N,4]"] and ran


def test_a_graph_that_runs_at_no_size_says_what_to_do(tmp_path: Path) -> None:
    path = saved(tmp_path, "g (float[N] x) => (float[A] y) { y = Reshape(x, s) }", s=np.array([7919]))
    with pytest.raises(InputSpecError, match=r"at any size that was tried.*--input"):
        fitting(graph_inputs(ir.load(path), path), path)


def test_dimensions_without_a_name_are_apart(tmp_path: Path) -> None:
    path = saved(tmp_path, "g (float[N,C,H,W] x) => (float[A,D,E,F] y) { y = Relu(x) }")
    model = ir.load(path)
    model.graph.inputs[0].shape = ir.Shape(["-1", 3, "?", "?"])
    assert str(graph_inputs(model, path)[0]) == "x:float32[x_0,3,x_2,x_3]"


def test_numbers_in_names_that_are_none(tmp_path: Path) -> None:
    """A file from a stranger: a superscript two, five thousand digits, signs with nothing between them."""
    path = saved(tmp_path, "g (float[N,4] x) => (float[A,C] y) { y = Relu(x) }")
    model = ir.load(path)
    found = {}
    for name in ("\u00b2*h", f"{'9' * 5000}*h", f"N+{'9' * 5000}", "N++2", "+", "1+N", "N + 2"):
        model.graph.inputs[0].shape = ir.Shape(["N", name])
        found[name[:9]] = str(graph_inputs(model, path)[0])[:22]
    assert found.pop("N + 2") == "x:float32[N,N+2]"
    assert len(found) == 6 and not any("+" in text for text in found.values())


def test_multiples_that_a_graph_states_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path, POOLED, s=np.float32([1, 1, 8, 8]))
    model = ir.load(path)
    model.graph.inputs[0].shape = ir.Shape(["B", 3, "8*h", "8*w"])
    specs = graph_inputs(model, path)
    assert [str(spec) for spec in specs] == ["x:float32[B,3,hx8=8*n,wx8=8*n]"]
    assert fitting(specs, path) == specs


def test_numbers_that_decide_a_branch_are_drawn(tmp_path: Path) -> None:
    text = """g (float[N,8] x, int64 rate) => (float[N,8] y) { c = Equal(rate, r)
        y = If (c) <then_branch = t () => (float[N,8] z) { z = Neg(x) },
                    else_branch = e () => (float[N,8] z) { z = Abs(x) }> }"""
    path = saved(tmp_path, text, r=np.array(16000))
    assert str(graph_inputs(ir.load(path), path)[1]) == "rate:int64[]{16000,16001}"


@pytest.mark.parametrize(
    ("then", "sizes", "numbers"),
    [("Slice(x, one, nine, one)", ["x:float32[N=3,32]"], (7, 8)), ("Identity(x)", ["x:float32[N=3,8]"], (7,))],
    ids=["both", "one"],
)
def test_sizes_fit_every_branch_or_the_first(
    tmp_path: Path, then: str, sizes: list[str], numbers: tuple[int, ...]
) -> None:
    constants = {"r": np.array(7), "one": np.array([1]), "nine": np.array([9])}
    path = saved(tmp_path, RATES.replace("THEN", then), w=weight(8, 4), v=weight(32, 4), **constants)
    specs = fitting(graph_inputs(ir.load(path), path), path)
    assert [str(spec) for spec in specs[:1]] == sizes
    assert specs[1].values == numbers


@pytest.mark.parametrize(
    "body",
    [
        "a = Unsqueeze(x, axis)  b = Expand(a, shape)  c = Equal(b, range)  y = Cast<to=1>(c)",
        "a = Cast<to=7>(x)  y = OneHot(a, depth, ends)",
        "a = Reshape(x, shape)  y = Gather(table, a)",
        "a = Cast<to=7>(x)  b = Unsqueeze(a, axis)  y = GatherND(table, b)",
        """y = TfIdfVectorizer<mode="TF", min_gram_length=1, max_gram_length=1, max_skip_count=0, ngram_counts=[0],
            ngram_indexes=[0, 1], pool_int64s=[3, 7]>(x)""",
        "y = ai.onnx.ml.LabelEncoder<keys_int64s=[3, 7], values_floats=[0.5, 1.5]>(x)",
    ],
    ids=["equal", "one-hot", "table", "nd", "n-grams", "labels"],
)
def test_the_vocabulary_of_an_integer_input_is_found(tmp_path: Path, body: str) -> None:
    arrays = {
        "axis": np.array([2]),
        "shape": np.array([1, 1, 1]),
        "range": np.arange(9, dtype=np.int32),
        "depth": np.array(9),
        "ends": np.array([0.0, 1.0]),
        "table": weight(9, 4),
    }
    path = saved(tmp_path, f"g (int32[N,L] x) => (float[A,C,D] y) {{ {body} }}", **arrays)
    assert str(graph_inputs(ir.load(path), path)[0]) == "x:int32[N,L]<9"
