"""Which direction a norm takes: the one in which fewer operators change, and the report says which."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from benchmarks.large_model import write
from normfold.analysis.analyse import analyse
from normfold.analysis.placement.propagate import _Flood
from normfold.analysis.plan import Plan
from normfold.analysis.refusal import Refuse
from normfold.export.to_onnx import export
from normfold.graph.operators import op_counts
from normfold.graph.prepare import prepare
from normfold.graph.read import read_graph
from normfold.graph.types import Model, Op
from normfold.models import create
from normfold.rewrite.graph import rewrite
from tests.export.test_to_onnx import source_of
from tests.models.test_vision import IMAGE, SMALL, pictures
from tests.support.graphs import FOLDED, as_float32, build, check, draw, fold, op_types, partial, run, run_float32

# float32 rounding over a few layers, on outputs of order 1.
FLOAT32 = 2e-5

PATCHES = """g (double[B,3,4,4] x) => (double y) {
    p = Conv<strides = [2, 2]>(x, w, c)
    r = Reshape(p, shape)
    t = Transpose<perm = [0, 2, 1]>(r)
    m = Mul(t, a)
    n = Add(m, b)
    f0 = MatMul(n, u)
    f1 = Tanh(f0)
    f2 = MatMul(f1, v)
    f = Add(f2, d)
    s = Add(n, f)
    k0 = MatMul(s, o)
    k = Add(k0, e)
    y = Tanh(k)
}"""
PATCH_SHAPES = {
    "w": (4, 3, 2, 2),
    "c": (4,),
    "a": (4,),
    "b": (4,),
    "u": (4, 6),
    "v": (6, 4),
    "d": (4,),
    "o": (4, 2),
    "e": (2,),
}


def test_a_norm_behind_a_patch_embedding_folds_into_it() -> None:
    """Forward it would change three MatMuls and a bias; the convolution takes all of it."""
    after, plan = check(PATCHES, FOLDED, shape=np.array([0, 4, -1]), **PATCH_SHAPES)
    assert plan.sites[0].into == ("p",) and plan.sites[0].shift == "writer"
    assert {tensor.name for tensor in after.graph.initializer} >= {"w.folded", "c.folded", "u", "v", "o", "d", "e"}


def test_at_a_tie_a_norm_folds_forward() -> None:
    text = "g (double[B,4] x) => (double y) {\nh = Gemm(x, v)\nn = Mul(h, a)\ny = Gemm(n, w)\n}"
    _, plan = check(text, FOLDED, v=(4, 4), a=(4,), w=(4, 3))
    assert plan.sites[0].into == ("y",)


def test_a_scale_of_zero_cannot_go_to_the_producer() -> None:
    text = """g (double[B,4] x) => (double y) {
        h = Gemm(x, v)
        n = Mul(h, a)
        k = Gemm(n, u)
        z = Gemm(n, w)
        y = Sum(k, z)
    }"""
    after, plan = check(text, FOLDED, v=(4, 4), a=np.array([1.0, 0.0, 2.0, -1.0]), w=(4, 3), u=(4, 3))
    assert set(plan.sites[0].into) == {"k", "z"} and "Mul" not in op_types(after)
    _, plan = check(text, FOLDED, v=(4, 4), a=(4,), w=(4, 3), u=(4, 3))
    assert plan.sites[0].into == ("h",)


def test_every_place_of_a_shift_is_told() -> None:
    forward = "g (double[B,4] x) => (double y) {\nh = Tanh(x)\nm = Mul(h, a)\nn = Add(m, b)\ny = Gemm(n, w, c)\n}"
    shapes = {"a": (4,), "b": (4,), "w": (4, 3), "c": (3,)}
    assert _only(check(forward, FOLDED, **shapes)[1]) == ("reader", 0)
    assert _only(check(forward.replace("n = Add(m, b)", "n = Identity(m)"), FOLDED, **shapes)[1]) == ("none", 0)
    bare = forward.replace("Gemm(n, w, c)", "MatMul(n, w)")
    assert _only(check(bare, FOLDED, **shapes)[1]) == ("reader", 3)
    backward = "g (double[B,4] x) => (double y) {\nh = Gemm(x, v, b)\nn = Mul(h, a)\nm = Add(n, d)\ny = Tanh(m)\n}"
    assert _only(check(backward, FOLDED, v=(4, 4), a=(4,), b=(4,), d=(4,))[1]) == ("writer", 0)


def _only(plan: Plan) -> tuple[str | None, int]:
    (site,) = plan.sites
    return site.shift, site.shift_elements


@cache
def vision(name: str, **options: int) -> tuple[Model, Model, Plan]:
    """A small network of the papers, with norms that are not fresh, as exported and folded."""
    torch.manual_seed(0)
    sizes = {**SMALL[name], **options} if options.get("image_size") is None else options
    model = create(name, **{"image_size": IMAGE, "classes": 10, **sizes})
    for key, tensor in model.state_dict().items():
        if key.endswith("running_var"):
            nn.init.uniform_(tensor, 0.3, 3.0)
        elif key.endswith("running_mean"):
            nn.init.normal_(tensor, std=0.3)
        elif "norm" in key and key.endswith("weight"):
            nn.init.uniform_(tensor, 0.5, 1.5)
        elif "norm" in key and key.endswith("bias"):
            nn.init.normal_(tensor, std=0.2)
    source = source_of(model.eval(), f"x:float32[B,3,{IMAGE},{IMAGE}]")
    graph = prepare(export(source))
    plan = analyse(graph, norms=source.norms)
    return graph, rewrite(graph, plan), plan


def holds(before: Model, after: Model) -> None:
    feeds = {before.graph.inputs[0].name or "": pictures(2).numpy()}
    truth, result = (run_float32(ir.to_proto(model), feeds)[0] for model in (before, after))
    assert np.abs(truth - result).max() <= FLOAT32 * max(float(np.abs(truth).max()), 1.0)


@pytest.mark.parametrize("name", ["swin_tiny_bn", "slab_swin_tiny", "pvt_tiny_prepbn"])
def test_the_norm_of_a_patch_embedding_folds_into_its_convolution(name: str) -> None:
    before, after, plan = vision(name)
    for site in (one for one in plan.sites if one.name.startswith("patch_embed")):
        convolution = site.name.removesuffix("norm") + "proj"
        assert (site.status, site.into, site.shift) == ("folded", (convolution,), "writer")
    assert any(site.name.startswith("patch_embed") for site in plan.sites)
    assert all(one.status == "folded" for one in plan.sites)
    holds(before, after)


# Nodes of the folded graphs when every norm was sent to its consumers first.
NODES = {
    "cswin_tiny_un": 185,
    "deit_tiny_prepbn": 29,
    "pvt_tiny_prepbn": 63,
    "slab_cswin_tiny": 91,
    "slab_deit_tiny": 45,
    "slab_pvt_tiny": 94,
    "slab_swin_tiny": 122,
    "swin_tiny_bn": 157,
}


QUICK = ("deit_tiny_prepbn", "slab_pvt_tiny")


def _nodes() -> list[object]:
    """Two of them in every run, the rest in the slow one."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NODES]


@pytest.mark.parametrize("name", _nodes())
def test_no_direction_costs_an_operator(name: str) -> None:
    before, after, plan = vision(name)
    assert all(site.status == "folded" for site in plan.sites)
    assert sum(op_counts(after).values()) <= NODES[name]
    holds(before, after)


def test_every_norm_of_a_t2t_network_folds() -> None:
    """The residual stream, a class token and a picture with positions, carries the shift of the first norm."""
    before, after, plan = vision("t2t_vit_14_un", depth=2)
    assert Counter(site.status for site in plan.sites) == {"folded": 9}
    assert next(site for site in plan.sites if site.name == "blocks.0.norm1").shift == "writer"
    holds(before, after)


STREAM = """g (double[B,4] x) => (double y) {
    u = MatMul(x, wu)
    r = Add(u, bu)
    n = BatchNormalization(r, g, b, m, v)
    k = MatMul(n, w)
    t = Tanh(k)
    f = MatMul(t, wf)
    fb = Add(f, bf)
    z = Add(r, fb)
    nz = BatchNormalization(z, g, b, m, v)
    o = MatMul(nz, wo)
    y = Add(o, bo)
}"""


@pytest.mark.parametrize(("gamma", "var", "place"), [(1.0, 100.0, "writer"), (0.01, 1.0, "add")])
def test_a_stream_is_as_large_as_the_norm_that_reads_it_has_seen(gamma: float, var: float, place: str) -> None:
    """Its writers' weights are small. It holds 10, and is to carry b / a of 10; or it holds 1, and is to carry 100."""
    stored = {"g": np.full(4, gamma), "b": np.ones(4), "m": np.full(4, 0.5), "v": var * np.array([1.0, 1.2, 0.9, 1.1])}
    shapes = {"wu": (4, 4), "bu": (4,), "wf": (40, 4), "bf": (4,)}
    small = {name: draw(name, *shape) * 0.01 for name, shape in shapes.items()}
    outcome = FOLDED if place == "writer" else partial("narrow-add")
    _, plan = check(STREAM, outcome, FOLDED, w=(4, 40), wo=(4, 3), bo=(3,), **stored, **small)
    assert plan.sites[0].shift == place


def questions_asked(blocks: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many operators the floods ask, over all norms of a decoder without biases."""
    write(folder / "deep.onnx", blocks=blocks, channels=4, hidden=4, heads=2, vocabulary=8)
    asked = Counter[str]()

    class Counting(_Flood):
        def _ask(self, op: Op) -> Refuse | None:
            asked[op.type] += 1
            return super()._ask(op)

    monkeypatch.setattr("normfold.analysis.placement.propagate._Flood", Counting)
    plan = analyse(prepare(read_graph(folder / "deep.onnx")))
    assert {site.status for site in plan.sites} == {"folded"} and len(plan.sites) == 2 * blocks + 1
    return asked.total()


def test_a_residual_stream_is_not_walked_to_its_end_for_every_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shift goes to a writer of the stream: of four times the blocks, four times the operators are asked."""
    short, long = (questions_asked(blocks, tmp_path, monkeypatch) for blocks in (10, 40))
    assert long <= 4 * short + short / 10


CENTRED = """g (double[B,4,5,7] x) => (double y) {
    a = Conv(x, u, c)
    n = BatchNormalization<epsilon = 0.0078125>(a, gamma, beta, mean, var)
    k = Conv(n, v, d)
    y = Tanh(k)
}"""
CONVOLUTIONS = {"u": (4, 4, 1, 1), "c": (4,), "v": (3, 4, 1, 1), "d": (3,)}


@pytest.mark.parametrize(("mean", "beta", "place"), [(5.0, 0.1, "writer"), (0.1, 5.0, "reader")])
def test_of_two_free_places_a_shift_takes_the_one_that_costs_no_digits(mean: float, beta: float, place: str) -> None:
    """A reader of `a * x` with its large mean rounds more than one of the norm's output, and the other way around."""
    ones = np.ones(4)
    constants = {"gamma": draw("gamma", 4), "beta": beta * ones, "mean": mean * ones, "var": ones}
    after, plan = check(CENTRED, FOLDED, **CONVOLUTIONS, **constants)
    assert op_types(after) == ["Conv", "Conv", "Tanh"] and plan.sites[0].shift == place


def test_a_fold_rounds_no_more_than_its_original() -> None:
    """What is averaged behind a norm loses its deviations and keeps its mean, and the digits that this costs."""
    text = CENTRED.replace("k = Conv(n, v, d)", "p = GlobalAveragePool(n)\nk = Conv(p, v, d)")
    rng = np.random.default_rng(0)
    constants = {"gamma": np.ones(4), "beta": np.zeros(4), "mean": np.full(4, 30.0), "var": np.ones(4)}
    weights = {
        "u": np.eye(4)[:, :, None, None],
        "c": np.full(4, 30.0),
        "v": rng.normal(size=(3, 4, 1, 1)),
        "d": np.zeros(3),
    }
    model = build(text, **constants, **weights)
    after, _ = fold(model)
    own, candidate = [], []
    for seed in range(20):
        x = np.random.default_rng(seed).normal(size=(2, 4, 5, 7)).astype(np.float32)
        truth = run(model, {"x": x.astype(np.float64)})[0]
        for found, graph in ((own, model), (candidate, after)):
            found.append(np.square(run_float32(as_float32(graph), {"x": x})[0] - truth).mean())
    assert np.mean(candidate) <= 1.5 * np.mean(own)
