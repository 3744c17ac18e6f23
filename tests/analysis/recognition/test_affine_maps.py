"""Which operators are one fixed map: the spellings of exporters, and what only looks like them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from normfold.analysis.recognition.affine_maps import collapse
from normfold.graph.operators import operators
from normfold.graph.prepare import prepare
from normfold.graph.types import Op
from normfold.graph.view import Graph
from tests.support.graphs import FOLDED, build, check, draw, fold, kept, op_types, same_function


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def statistics(channels: int) -> dict[str, np.ndarray]:
    return {name: draw(name, channels, positive=name == "var") for name in ("gamma", "beta", "mean", "var")}


def affine_maps(text: str, **constants: np.ndarray | tuple[int, ...]) -> list[Op]:
    model = prepare(ir.from_proto(build(text, **constants)))
    return [op for op in collapse(Graph(model, operators(model))).ops if op.affine is not None]


SPELLINGS = {
    "UN (dynamo)": """
        t = Transpose<perm = [0, 2, 1]>(h)
        u = Unsqueeze(t, last)
        d = Div(u, root)
        m = Mul(d, gamma4)
        b = Add(m, beta4)
        r = Reshape(b, back)
        n = Transpose<perm = [0, 2, 1]>(r)""",
    "RepBN (dynamo)": """
        t = Transpose<perm = [0, 2, 1]>(h)
        p = BatchNormalization(t, gamma, beta, mean, var)
        q = Mul(alpha, t)
        s = Add(p, q)
        n = Transpose<perm = [0, 2, 1]>(s)""",
    "RepBN (language models)": """
        t = Reshape(h, rows)
        p = BatchNormalization(t, gamma, beta, mean, var)
        q = Mul(t, alpha)
        s = Add(q, p)
        n = Reshape(s, tokens)""",
    "BatchNorm between its own transposes": """
        t = Transpose<perm = [0, 2, 1]>(h)
        p = BatchNormalization(t, gamma, beta, mean, var)
        n = Transpose<perm = [0, 2, 1]>(p)""",
    "branches transposed each for itself": """
        t = Transpose<perm = [0, 2, 1]>(h)
        p = BatchNormalization(t, gamma, beta, mean, var)
        v = Transpose<perm = [0, 2, 1]>(p)
        w0 = Mul(h, alpha)
        n = Add(v, w0)""",
    "as a 1x1 image": """
        t = Transpose<perm = [0, 2, 1]>(h)
        u = Reshape(t, image)
        p = BatchNormalization(u, gamma, beta, mean, var)
        r = Reshape(p, back)
        n = Transpose<perm = [0, 2, 1]>(r)""",
}
CONSTANTS = {
    **statistics(4),
    "last": ints(-1),
    "root": draw("root", 1, 4, 1, 1, positive=True),
    "gamma4": (1, 4, 1, 1),
    "beta4": (1, 4, 1, 1),
    "back": ints(0, 4, -1),
    "alpha": np.array([0.3]),
    "rows": ints(-1, 4),
    "tokens": ints(-1, 3, 4),
    "image": ints(0, 4, 3, 1),
    "w": (4, 5),
    "c": (5,),
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("dims", ["B,3,4", "4,4,4", "4,3,4"])
def test_every_spelling_is_one_map_of_the_channels(name: str, dims: str) -> None:
    """Also where the batch, the length and the channels are equally many."""
    constants = dict(CONSTANTS)
    if dims == "4,4,4":
        constants |= {"tokens": ints(-1, 4, 4), "image": ints(0, 4, 4, 1)}
    text = f"g (double[{dims}] x) => (double y) {{\nh = Tanh(x){SPELLINGS[name]}\nk = MatMul(n, w)\ny = Add(k, c)\n}}"
    (found, bias) = affine_maps(text, **constants)
    assert found.affine is not None and found.affine.is_norm and bias.affine is not None and not bias.affine.is_norm
    assert found.affine.frame.scale.shape == (1, 1, 4)
    assert found.inputs[0] is not None and (found.inputs[0].name, found.output.name) == ("h", "n")
    after, _ = check(text, FOLDED, **constants)
    assert op_types(after) == ["Tanh", "MatMul", "Add"]


def test_a_batch_norm_over_the_wrong_axis_is_a_map_of_that_axis() -> None:
    """(N, L, C) straight into BatchNorm: the channels are L, also where L == C."""
    text = (
        "g (double[B,4,4] x) => (double y) {\nh = Tanh(x)\n"
        "n = BatchNormalization(h, gamma, beta, mean, var)\ny = MatMul(n, w)\n}"
    )
    (found,) = affine_maps(text, **statistics(4), w=(4, 5))
    assert found.affine is not None and found.affine.frame.scale.shape == (1, 4, 1)
    check(text, kept("graph-output"), **statistics(4), w=(4, 5))


def test_the_branches_of_a_sum_must_have_the_same_layout() -> None:
    """h + h', with h' square and transposed, is no fixed map of h."""
    text = """g (double[B,4,4] x) => (double y) {
        h = Tanh(x)
        m = Mul(h, a)
        t = Transpose<perm = [0, 2, 1]>(h)
        s = Add(m, t)
        y = MatMul(s, w)
    }"""
    check(text, kept("frame-conflict"), a=(4,), w=(4, 5))
    check(text.replace("Transpose<perm = [0, 2, 1]>(h)", "Identity(h)"), FOLDED, a=(4,), w=(4, 5))
    mixed = "h1 = Reshape(h, split)\nh2 = Transpose<perm = [0, 1, 3, 2]>(h1)\nt = Reshape(h2, joined)"
    text = text.replace("t = Transpose<perm = [0, 2, 1]>(h)", mixed)
    check(text, kept("frame-conflict"), a=(4,), w=(4, 5), split=ints(0, 4, 2, 2), joined=ints(0, 4, 4))


def test_different_bases_do_not_merge() -> None:
    text = """g (double[B,4] x) => (double y) {
        h = Tanh(x)
        k = Sigmoid(x)
        m = Mul(h, a)
        n = Mul(k, b)
        s = Add(m, n)
        y = MatMul(s, w)
    }"""
    maps = affine_maps(text, a=(4,), b=(4,), w=(4, 5))
    assert sorted(op.output.name or "" for op in maps) == ["m", "n"]


def test_biases_and_scalars_are_no_norms() -> None:
    text = """g (double[B,4] x) => (double y) {
        h = MatMul(x, w)
        i = Add(h, b)
        j = Mul(i, half)
        y = Tanh(j)
    }"""
    _, plan = check(text, w=(4, 4), b=(4,), half=np.array(0.5))
    assert not plan.sites and plan.is_empty
    check(text, FOLDED, w=(4, 4), b=(4,), half=draw("half", 4))


def test_position_embeddings_are_no_part_of_a_norm() -> None:
    """A map that differs along two axes ends one that differs along the channels."""
    text = """g (double[B,3,4] x) => (double y) {
        h = Tanh(x)
        m = Mul(h, a)
        n = Add(m, b)
        p = Add(n, positions)
        k = MatMul(p, w)
        y = Add(k, c)
    }"""
    after, _ = check(text, FOLDED, a=(4,), b=(4,), positions=(3, 4), w=(4, 5), c=(5,))
    assert op_types(after) == ["Tanh", "Add", "MatMul", "Add"]


def test_a_map_that_is_read_half_way_is_cut_there() -> None:
    text = """g (double[B,4] x) => (double y, double z) {
        h = Tanh(x)
        m = Mul(h, a)
        n = Add(m, b)
        p = Mul(n, d)
        y = Gemm(p, w)
        z = Gemm(n, v)
    }"""
    after, _ = check(text, FOLDED, FOLDED, a=(4,), b=(4,), d=(4,), w=(4, 5), v=(4, 2))
    assert op_types(after) == ["Tanh", "Gemm", "Gemm"]


def test_channels_of_unknown_number_are_no_site() -> None:
    text = "g (double[B,C] x) => (double[B,3] y) {\nh = Tanh(x)\nn = Mul(h, a)\ny = MatMul(n, w)\n}"
    assert affine_maps(text, a=(4,), w=(4, 3)) == []
    assert len(affine_maps(text.replace("B,C", "B,4"), a=(4,), w=(4, 3))) == 1


def test_a_map_through_a_tensor_that_another_map_moves() -> None:
    """`m` is the end of one map and the middle of another: where it changes, the other starts from its own input."""
    text = """g (double[B,4,3] x) => (double y, double z, double u) {
        h = Tanh(x)
        n = Mul(h, a)
        m = Add(n, b)
        r = Sub(m, h)
        s0 = Mul(m, rows)
        s = Add(s0, more)
        t = Mul(m, two)
        y = Tanh(s)
        z = Tanh(t)
        u = Tanh(r)
    }"""
    model = build(text, a=(4, 1), b=(4, 1), rows=(3,), more=(3,), two=np.array([2.5]))
    after, plan = fold(model, only=["m"])
    assert [(site.name, site.status) for site in plan.sites] == [
        ("m", "folded"),
        ("r", "kept"),
        ("s", "kept"),
        ("t", "kept"),
    ]
    same_function(model, after)


def test_a_batch_norm_that_takes_up_another_axis_is_no_batch_norm_any_more() -> None:
    text = """g (double[B,4,3] x) => (double y) {
        n = BatchNormalization(x, gamma, beta, mean, var)
        p = Pad<mode = "edge">(n, by)
        m = Mul(p, a)
        y = Tanh(m)
    }"""
    after, _ = check(text, kept("channels-cut"), FOLDED, **statistics(4), by=ints(0, 1, 0, 0, 0, 0), a=(3,))
    assert op_types(after) == ["Mul", "Add", "Pad", "Tanh"]
