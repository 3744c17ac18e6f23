"""What norms are called: after the checkpoint's modules, else after what the exporter left, else after operators."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_ir as ir
import pytest

from normfold.analysis.analyse import analyse
from normfold.analysis.plan import Site
from normfold.graph.prepare import prepare
from normfold.graph.scopes import CLASSES, SCOPES, classes, scopes
from tests.support.graphs import build, draw

TEXT = """g (double[B,4,3] x) => (double y) {
    h = Tanh(x)
    p = BatchNormalization(h, gamma, beta, mean, var)
    q = Mul(h, alpha)
    n = Add(p, q)
    k = Conv(n, w)
    l = LayerNormalization(k, g)
    y = Tanh(l)
}"""


@dataclass(frozen=True)
class Module:
    name: str
    kind: str
    channels: int = 4
    keeps_statistic: bool = False


def model(paths: dict[str, list[str]], kinds: dict[str, list[str]] | None = None) -> onnx.ModelProto:
    """The graph, with the scopes that torch.onnx leaves: of every module on the way down, and of the operation."""
    statistics = {name: draw(name, 4, positive=name == "var") for name in ("gamma", "beta", "mean", "var")}
    built = build(TEXT, **statistics, alpha=draw("alpha", 1), w=(4, 4, 1), g=(3,))
    for node in built.graph.node:
        output = node.output[0]
        node.name = f"node_{output}"
        if output in paths:
            node.metadata_props.add(key=SCOPES, value=str(["", *paths[output], "op"]))
            node.metadata_props.add(
                key=CLASSES, value=str(["Net", *(kinds or {}).get(output, paths[output]), "aten.op"])
            )
    return built


def sites(proto: onnx.ModelProto, *norms: Module) -> tuple[Site, ...]:
    return analyse(prepare(ir.from_proto(proto)), norms=norms).sites


NORM = {"p": ["blocks.0", "blocks.0.norm1", "blocks.0.norm1.norm2", "blocks.0.norm1.norm2.bn"]}
NORM |= {"q": NORM["p"][:3], "n": NORM["p"][:3], "k": ["blocks.0", "blocks.0.fc"], "l": ["norm"]}


def test_a_site_belongs_to_the_outermost_norm_module_of_all_its_operators() -> None:
    norms = [Module("blocks.0.norm1", "PRepBN"), Module("norm", "LayerNorm", 3)]
    first, second = sites(model(NORM), *norms)
    assert (first.name, first.kind, first.channels, first.status) == ("blocks.0.norm1", "PRepBN", 4, "folded")
    assert first.into == ("blocks.0.fc",)
    assert (second.name, second.kind, second.status, second.code) == ("norm", "LayerNorm", "kept", "statistic")


def test_without_a_checkpoint_classes_decide() -> None:
    kinds = {
        "p": ["Block", "slab.LinearNorm", "slab.RepBN", "torch.nn.modules.batchnorm.BatchNorm1d"],
        "q": ["Block", "slab.LinearNorm", "slab.RepBN"],
        "n": ["Block", "slab.LinearNorm", "slab.RepBN"],
        "k": ["Block", "Linear"],
        "l": ["torch.nn.LayerNorm"],
    }
    assert [(site.name, site.kind) for site in sites(model(NORM, kinds))] == [
        ("blocks.0.norm1", "PRepBN"),
        ("norm", "LayerNorm"),
    ]


def test_without_names_operators_decide() -> None:
    assert [(site.name, site.kind, site.into) for site in sites(model({}))] == [
        ("node_n", "RepBN", ("node_k",)),
        ("node_l", "LayerNorm", ()),
    ]


def test_norms_that_no_operator_stands_for_are_listed() -> None:
    norms = [
        Module("blocks.0.norm1", "PRepBN"),
        Module("norm", "LayerNorm", 3),
        Module("spare", "UN"),
        Module("blocks.0.fc", "BatchNorm"),
    ]
    found = {site.name: site for site in sites(model(NORM), *norms)}
    assert [site.name for site in sites(model(NORM), *norms)] == ["blocks.0.norm1", "norm", "spare", "blocks.0.fc"]
    assert (found["spare"].status, found["spare"].code) == ("kept", "not-in-graph")
    assert (found["blocks.0.fc"].status, found["blocks.0.fc"].code) == ("kept", "not-affine")
    found = {site.name: site for site in sites(model({}), *norms)}
    assert found["norm"].code == "statistic", "a LayerNorm that was exported as plain operators"


ROW = """g (double[B,4,3] x) => (double y) {
    h = Tanh(x)
    p = BatchNormalization(h, gamma, beta, mean, var)
    q = BatchNormalization(p, gamma, beta, mean, var)
    s = Mul(q, layer)
    y = Conv(s, w)
}"""


def test_norms_in_a_row_are_one_map_and_each_is_named() -> None:
    """So is a norm with a scale of the channels behind it, which is none."""
    statistics = {name: draw(name, 4, positive=name == "var") for name in ("gamma", "beta", "mean", "var")}
    built = build(ROW, **statistics, layer=(4, 1), w=(4, 4, 1))
    assert [(site.name, site.kind, site.status) for site in sites(built)] == [
        ("p", "BatchNorm", "folded"),
        ("q", "BatchNorm", "folded"),
    ]
    for node in built.graph.node:
        path = {"p": "block.bn1", "q": "block.bn2", "s": "block.scale"}.get(node.output[0], "block")
        node.metadata_props.add(key=SCOPES, value=str(["", "block", path, "op"]))
    norms = [Module("block.bn1", "BatchNorm"), Module("block.bn2", "BatchNorm")]
    assert [(site.name, site.status) for site in sites(built, *norms)] == [
        ("block.bn1", "folded"),
        ("block.bn2", "folded"),
    ]
    # Asked for one of the two, neither can go.
    for only, code in ((("block.bn1",), "not-asked"), (("block.bn1", "block.bn2"), None)):
        found = analyse(prepare(ir.from_proto(built)), norms=norms, only=only).sites
        assert [site.code for site in found] == [code, code]
    # Alone with what scales it, a norm keeps its name.
    built.graph.node[3].input[0] = "p"
    assert [(site.name, site.kind, site.status) for site in sites(built, *norms)] == [
        ("block.bn1", "BatchNorm", "folded"),
        ("block.bn2", "BatchNorm", "kept"),
    ]


def test_group_scaling_is_a_statistic_that_stays() -> None:
    norms = [Module("blocks.0.norm1", "PowerNorm", keeps_statistic=True), Module("norm", "LayerNorm", 3)]
    first, _ = sites(model(NORM), *norms)
    assert (first.status, first.code) == ("partial", "statistic")


@pytest.mark.parametrize("text", ["", "[", "3", "{}", "not a list", "['a'"])
def test_damaged_metadata_is_no_name(text: str) -> None:
    built = model({})
    for node in built.graph.node:
        node.metadata_props.add(key=SCOPES, value=text)
        node.metadata_props.add(key=CLASSES, value=text)
    graph = prepare(ir.from_proto(built))
    assert all(scopes(node) == classes(node) == () for node in graph.graph)
    assert [site.name for site in sites(built)] == ["node_n", "node_l"]
