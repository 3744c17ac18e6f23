"""Norms behind and inside branches: a channel Concat, sums of convolutions, a skip beside the norm, RepVGG's blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from normfold.analysis.analyse import analyse
from normfold.analysis.plan import Plan
from normfold.export.to_onnx import export
from normfold.graph.prepare import prepare
from normfold.rewrite.graph import rewrite
from tests.export.test_to_onnx import source_of
from tests.support.graphs import FOLDED, build, check, draw, fold, kept, op_types, outcomes, partial, run, same_function

Constant = NDArray[np.generic] | tuple[int, ...]
# 5 x 7: odd, so that a stride of 2 meets the border differently on either side.
PICTURE = "g (double[B,4,5,7] x) => (double y) {{\n{}\n}}"


def norm(name: str, channels: int) -> dict[str, Constant]:
    """Statistics and affine parameters of `BatchNormalization(., {name}g, {name}b, {name}m, {name}v)`."""
    drawn = {f"{name}{part}": draw(f"{name}{part}", channels) for part in "gbm"}
    return {**drawn, f"{name}v": draw(f"{name}v", channels, positive=True)}


def normed(source: str, target: str, name: str) -> str:
    return f"{target} = BatchNormalization({source}, {name}g, {name}b, {name}m, {name}v)\n"


# A norm behind several convolutions.


def test_a_norm_behind_a_concat_folds_into_every_branch() -> None:
    text = PICTURE.format(
        "a = Conv<pads = [1, 1, 1, 1]>(x, u)\nb = Conv(x, v, c)\nd = Conv<pads = [2, 2, 2, 2]>(x, w)\n"
        f"h = Concat<axis = 1>(a, b, d)\n{normed('h', 'n', 'n')}y = Relu(n)"
    )
    constants: dict[str, Constant] = {"u": (2, 4, 3, 3), "v": (4, 4, 1, 1), "c": (4,), "w": (3, 4, 5, 5)}
    after, plan = check(text, FOLDED, **constants, **norm("n", 9))
    assert plan.sites[0].into == ("a", "b", "d") and plan.sites[0].shift == "writer"
    assert op_types(after) == ["Conv", "Conv", "Conv", "Concat", "Relu"]
    # A branch that ends in a ReLU takes its slice of a positive scale, and no shift.
    bent = text.replace("b = Conv(x, v, c)", "b0 = Conv(x, v, c)\nb = Relu(b0)")
    positive = {**norm("n", 9), "ng": draw("ng", 9, positive=True)}
    after, plan = check(bent, partial("shift-meets-activation"), **constants, **positive)
    assert plan.sites[0].shift == "add" and "BatchNormalization" not in op_types(after)
    check(bent, kept("negative-scale"), **constants, **norm("n", 9))


@pytest.mark.parametrize("operator", ["Add", "Sub"])
def test_a_norm_behind_a_sum_folds_into_every_operand(operator: str) -> None:
    """Each takes the scale, one of them the shift. Three convolutions of one tensor, added or taken away, are one."""
    text = PICTURE.format(
        f"a = Conv<pads = [1, 1, 1, 1]>(x, u)\nb = Conv(x, v, c)\nd = Conv(x, w)\n"
        f"s = {operator}(a, b)\nh = {operator}(s, d)\n{normed('h', 'n', 'n')}y = Relu(n)"
    )
    constants: dict[str, Constant] = {"u": (4, 4, 3, 3), "v": (4, 4, 1, 1), "c": (4,), "w": (4, 4, 1, 1)}
    after, plan = check(text, FOLDED, **constants, **norm("n", 4))
    assert set(plan.sites[0].into) == {"a", "b", "d"}
    assert op_types(after) == ["Conv", "Relu"]


def test_a_norm_beside_a_skip() -> None:
    """The skip carries the frame to where the branch comes back; a bent branch beside a fixed output stops it."""
    text = PICTURE.format(
        f"a = Conv(x, u)\n{normed('a', 'n', 'n')}r = Relu(n)\nk = Conv(r, v, c)\nz = Add(a, k)\ny = Conv(z, w, d)"
    )
    constants: dict[str, Constant] = {"u": (4, 4, 1, 1), "v": (4, 4, 1, 1), "c": (4,), "w": (3, 4, 1, 1), "d": (3,)}
    after, plan = check(text, FOLDED, **constants, **norm("n", 4))
    assert plan.sites[0].into == ("a", "k", "y") and op_types(after) == ["Conv", "Relu", "Conv", "Add", "Conv"]
    check(text.replace("y = Conv(z, w, d)", "y = Tanh(z)"), kept("negative-scale"), **constants, **norm("n", 4))
    # Without the ReLU it folds forward, and the skip is left alone.
    straight = text.replace("r = Relu(n)", "r = Identity(n)").replace("y = Conv(z, w, d)", "y = Tanh(z)")
    _, plan = check(straight, FOLDED, **constants, **norm("n", 4))
    assert plan.sites[0].into == ("k",)


# Parallel branches.


def block(*, stride: int = 1, group: int = 1, outputs: int = 4, identity: bool = True, last: str = "Tanh") -> str:
    """RepVGG's: a 3x3 and a 1x1 convolution, each with its norm, and a norm of the input itself."""
    of = f"group = {group}, strides = [{stride}, {stride}]"
    text = f"x0 = Tanh(x)\na = Conv<pads = [1, 1, 1, 1], {of}>(x0, u)\n{normed('a', 'an', 'a')}"
    text += f"b = Conv<{of}>(x0, v, c)\n{normed('b', 'bn', 'b')}s = Add(an, bn)\n"
    text += f"{normed('x0', 'i', 'i')}z = Add(s, i)\ny = {last}(z)" if identity else f"y = {last}(s)"
    return PICTURE.format(text)


def weights(*, group: int = 1, outputs: int = 4, identity: bool = True) -> dict[str, Constant]:
    found: dict[str, Constant] = {"u": (outputs, 4 // group, 3, 3), "v": (outputs, 4 // group, 1, 1), "c": (outputs,)}
    return {**found, **norm("a", outputs), **norm("b", outputs), **(norm("i", 4) if identity else {})}


@pytest.mark.parametrize("last", ["Tanh", "Relu"])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_parallel_branches_become_one_convolution(group: int, last: str) -> None:
    after, plan = check(block(group=group, last=last), FOLDED, FOLDED, FOLDED, **weights(group=group))
    assert op_types(after) == ["Tanh", "Conv", last]
    assert [merge.parts for merge in plan.merges] == [("a", "b", "identity")]
    assert {name.rsplit(".", 1)[-1] for name in (t.name for t in after.graph.initializer)} == {"merged"}


@pytest.mark.parametrize(("stride", "group"), [(1, 1), (2, 1), (2, 2)])
def test_parallel_branches_without_identity(stride: int, group: int) -> None:
    sizes = {"group": group, "outputs": 6, "identity": False}
    after, plan = check(block(stride=stride, **sizes), FOLDED, FOLDED, **weights(**sizes))  # type: ignore[arg-type]
    assert op_types(after) == ["Tanh", "Conv", "Tanh"] and plan.merges[0].parts == ("a", "b")


def test_the_border_of_merged_branches_is_exact() -> None:
    """Pixel by pixel: a kernel that is not centred, or a diagonal one tap off, agrees nowhere."""
    model = build(block(stride=2, identity=False), **weights(identity=False))
    after, _ = fold(model)
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 7))
    truth, result = run(model, {"x": x})[0], run(after, {"x": x})[0]
    assert truth.shape == (2, 4, 3, 4)
    for row in (0, 1, 2):
        for column in (0, 1, 3):
            np.testing.assert_allclose(result[..., row, column], truth[..., row, column], rtol=1e-10, atol=1e-10)


# A norm of the input of the graph, whose own frame is fixed, behind a sum that a skip goes into.
BEHIND = (
    f"a = Conv<pads = [1, 1, 1, 1]>(x, u)\nb = Conv(x, v, c)\nt = Add(a, b)\ns = Add(t, x)\n{normed('s', 'n', 'n')}"
)
BEHIND_WEIGHTS: dict[str, Constant] = {"u": (4, 4, 3, 3), "v": (4, 4, 1, 1), "c": (4,), **norm("n", 4)}


def test_a_norm_behind_the_sum_goes_into_the_convolution() -> None:
    """It has nowhere to go alone: the skip is the graph's input, and negative scales do not pass the ReLU."""
    after, plan = check(PICTURE.format(BEHIND + "y = Relu(n)"), FOLDED, **BEHIND_WEIGHTS)
    assert op_types(after) == ["Conv", "Relu"] and plan.sites[0].into == ("a",)
    assert [merge.parts for merge in plan.merges] == [("a", "b", "identity")]
    again, plan = fold(after)
    assert plan.is_empty and again.SerializeToString() == after.SerializeToString()
    # As the output of the model it keeps that name.
    after, _ = check(PICTURE.format(BEHIND.replace("n = Batch", "y = Batch")), FOLDED, **BEHIND_WEIGHTS)
    assert op_types(after) == ["Conv"] and after.graph.node[0].output == ["y"]


def test_a_sum_that_others_read_keeps_the_norm_behind_it() -> None:
    text = PICTURE.format(BEHIND + "y = Relu(n)\ne = Sigmoid(s)").replace("(double y)", "(double y, double e)")
    model = build(text, **BEHIND_WEIGHTS)
    after, plan = fold(model)
    assert outcomes(plan) == [kept("negative-scale")] and op_types(after).count("BatchNormalization") == 1
    same_function(model, after)


def test_a_norm_behind_the_sum_that_was_not_asked_for_stays() -> None:
    text = PICTURE.format(
        f"a = Conv<pads = [1, 1, 1, 1]>(x, u)\n{normed('a', 'm', 'm')}s = Add(m, x)\n{normed('s', 'n', 'n')}y = Relu(n)"
    )
    model = build(text, u=(4, 4, 3, 3), **norm("m", 4), **norm("n", 4))
    graph = prepare(ir.from_proto(model))
    plan = analyse(graph, only={"m"})
    after = ir.to_proto(rewrite(graph, plan))
    assert outcomes(plan) == [FOLDED, kept("not-asked")]
    assert op_types(after) == ["Conv", "BatchNormalization", "Relu"]
    same_function(model, after)


def test_a_dead_channel_goes_into_the_sum() -> None:
    """A channel with scale 0 keeps its norm from folding alone; the merged kernel has zeros there."""
    dead = {**weights(), "ig": draw("ig", 4) * [1.0, 0.0, 1.0, 1.0], "bg": draw("bg", 4) * [0.0, 1.0, 1.0, 1.0]}
    after, plan = check(block(), FOLDED, FOLDED, FOLDED, **dead)
    assert op_types(after) == ["Tanh", "Conv", "Tanh"] and plan.sites[2].into
    # Alone, its channel is silenced in front of it.
    text = PICTURE.format(f"a = Conv(x, u)\n{normed('a', 'n', 'n')}y = Tanh(n)")
    gone = {**norm("n", 4), "ng": draw("ng", 4) * [1.0, 0.0, 1.0, 1.0]}
    assert outcomes(fold(build(text, u=(4, 4, 1, 1), **gone))[1]) == [FOLDED]


@pytest.mark.parametrize("inner", ["Add", "Sub"])
@pytest.mark.parametrize("outer", ["Add", "Sub"])
def test_a_scaled_sum_inside_a_sum_is_one_convolution(inner: str, outer: str) -> None:
    """FastViT's token mixer: x + gain * (BN(conv(x)) + BN(x) - BN(x)); a shift of it counts once."""
    text = PICTURE.format(
        f"x0 = Tanh(x)\nc = Conv<group = 4, pads = [1, 1, 1, 1]>(x0, u)\n"
        f"{normed('c', 'cn', 'p')}{normed('x0', 'xn', 'q')}"
        f"s = {inner}(cn, xn)\ng = Mul(s, gain)\nk = Add(g, shift)\nz = {outer}(x0, k)\ny = Tanh(z)"
    )
    constants: dict[str, Constant] = {"u": (4, 1, 3, 3), "gain": draw("gain", 4, 1, 1), "shift": draw("shift", 4, 1, 1)}
    after, plan = check(text, *[FOLDED] * 3, **constants, **norm("p", 4), **norm("q", 4))
    assert op_types(after) == ["Tanh", "Conv", "Tanh"] and plan.merges[0].parts


TWINS = {
    # What is different, and the constants that go with it.
    "stride": (
        "b = Conv<group = 1, strides = [1, 1]>(x0, v, c)",
        "b = Conv<strides = [2, 2], pads = [2, 3, 2, 3]>(x0, v, c)",
        {},
    ),
    "padding": (
        "b = Conv<group = 1, strides = [1, 1]>(x0, v, c)",
        "b = Conv<pads = [0, 0, 2, 2]>(x0, v, c)",
        {"v": (4, 4, 3, 3)},
    ),
    "group": ("b = Conv<group = 1,", "b = Conv<group = 2,", {"v": (4, 2, 1, 1)}),
    "input": ("b = Conv<group = 1, strides = [1, 1]>(x0, v, c)", "x1 = Sigmoid(x)\nb = Conv(x1, v, c)", {}),
    "tap": (
        "b = Conv<group = 1, strides = [1, 1]>(x0, v, c)",
        "b = Conv<dilations = [2, 2], pads = [2, 2, 2, 2]>(x0, v, c)",
        {"v": (4, 4, 3, 3)},
    ),
    "nonlinear": ("s = Add(an, bn)", "bt = Tanh(bn)\ns = Add(an, bt)", {}),
    "product": ("s = Add(an, bn)", "s = Mul(an, bn)", {}),
}


@pytest.mark.parametrize("name", TWINS)
def test_branches_that_are_no_single_convolution_stay(name: str) -> None:
    before, now, constants = TWINS[name]
    text = block(identity=name not in ("stride",))
    assert before in text
    model = build(text.replace(before, now), **{**weights(identity="i = " in text), **constants})
    after, plan = fold(model)
    assert not plan.merges and op_types(after).count("Conv") == 2
    same_function(model, after)


def test_a_padding_that_only_shifts_the_taps_merges() -> None:
    """The 1x1 kernel lies in the corner of the 3x3 one, where that reads the same pixel."""
    text = block(identity=False).replace("pads = [1, 1, 1, 1], ", "pads = [0, 0, 2, 2], ")
    after, plan = check(text, FOLDED, FOLDED, **weights(identity=False))
    assert op_types(after) == ["Tanh", "Conv", "Tanh"]
    assert [branch.taps for branch in plan.merges[0].branches] == [((0, 1, 2), (0, 1, 2)), ((0,), (0,))]


def test_a_branch_that_others_read_stays() -> None:
    text = block(identity=False).replace("=> (double y)", "=> (double y, double e)").replace("y = Tanh(s)", "{0}")
    both = text.replace("{0}", "y = Tanh(s)\ne = Sigmoid(an)")
    model = build(both, **weights(identity=False))
    after, plan = fold(model)
    assert not plan.merges and op_types(after).count("Conv") == 2
    same_function(model, after)
    sums = text.replace("{0}", "y = Tanh(s)\ne = Sigmoid(s)")
    after, plan = check(sums, FOLDED, FOLDED, **weights(identity=False))
    assert op_types(after).count("Conv") == 1


def test_a_weight_that_others_read_is_not_summed() -> None:
    """Merged it would be there twice."""
    text = block(identity=False).replace("y = Tanh(s)", "t = Tanh(s)\ny = Conv(t, v)")
    model = build(text, **weights(identity=False))
    after, plan = fold(model)
    assert not plan.merges and op_types(after).count("Conv") == 3
    same_function(model, after)
    own = text.replace("Conv(t, v)", "Conv(t, w)")
    after, plan = check(own, FOLDED, FOLDED, w=(4, 4, 1, 1), **weights(identity=False))
    assert len(plan.merges) == 1 and op_types(after).count("Conv") == 2


def test_without_a_norm_branches_stay_byte_for_byte() -> None:
    text = PICTURE.format("a = Conv<pads = [1, 1, 1, 1]>(x, u)\nb = Conv(x, v, c)\ns = Add(a, b)\ny = Tanh(s)")
    constants: dict[str, Constant] = {"u": (4, 4, 3, 3), "v": (4, 4, 1, 1), "c": (4,)}
    model = build(text, **constants)
    after, plan = fold(model)
    assert plan.is_empty and op_types(after) == ["Conv", "Conv", "Add", "Tanh"]
    # A norm elsewhere in the graph is no reason either.
    text = text.replace("y = Tanh(s)", f"t = Tanh(s)\nk = Conv(t, w)\n{normed('k', 'n', 'n')}y = Tanh(n)")
    after, plan = check(text, FOLDED, **constants, w=(4, 4, 1, 1), **norm("n", 4))
    assert not plan.merges and op_types(after).count("Conv") == 3


def test_a_norm_that_was_not_asked_for_stays_in_its_branch() -> None:
    model = build(block(identity=False), **weights(identity=False))
    graph = prepare(ir.from_proto(model))
    plan = analyse(graph, only={"an"})
    assert outcomes(plan) == [FOLDED, kept("not-asked")] and not plan.merges
    after = ir.to_proto(rewrite(graph, plan))
    assert op_types(after).count("BatchNormalization") == 1
    same_function(model, after)


def test_folding_merged_branches_again_changes_nothing() -> None:
    after, _ = fold(build(block(), **weights()))
    again, plan = fold(after)
    assert plan.is_empty and again.SerializeToString() == after.SerializeToString()


def test_a_long_chain_of_sums_is_walked_once() -> None:
    """As long as Python's stack would not bear; and nothing is merged."""
    links = "\n".join(f"s{k + 1} = Add(s{k}, r{k})\nr{k + 1} = Tanh(r{k})" for k in range(1500))
    text = PICTURE.format(f"s0 = Conv(x, u)\nr0 = Tanh(x)\n{links}\n{normed('s1500', 'n', 'n')}y = Tanh(n)")
    after, plan = fold(build(text, u=(4, 4, 1, 1), **norm("n", 4)))
    assert not plan.merges and op_types(after).count("Conv") == 1


# As torch writes it.


class RepVGG(nn.Module):
    """arXiv 2101.03697, figure 2, at training time."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        options: dict[str, Any] = {"stride": stride, "groups": groups, "bias": False}
        self.dense = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, **options), nn.BatchNorm2d(outputs))
        self.point = nn.Sequential(nn.Conv2d(inputs, outputs, 1, **options), nn.BatchNorm2d(outputs))
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs and stride == 1 else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dense(x) + self.point(x)
        return torch.relu(y if self.identity is None else y + self.identity(x))


class QARepVGG(nn.Module):
    """arXiv 2212.01593, figure 4: one norm inside, one behind the sum."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        options: dict[str, Any] = {"stride": stride, "bias": False}
        self.dense = nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, **options), nn.BatchNorm2d(outputs))
        self.point = nn.Conv2d(inputs, outputs, 1, **options)
        self.skips = inputs == outputs and stride == 1
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dense(x) + self.point(x)
        return torch.relu(self.norm(y + x if self.skips else y))


Folded = tuple[onnx.ModelProto, onnx.ModelProto, Plan]


def folded(net: nn.Module) -> Folded:
    """Exported with drawn norms, and folded; float64 throughout: exact means exact."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, 0.5)
            nn.init.normal_(module.bias)
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    source = source_of(net.double().eval(), "x:float64[B,3,11,13]")
    graph = prepare(export(source))
    plan = analyse(graph, norms=source.norms)
    return ir.to_proto(graph), ir.to_proto(rewrite(graph, plan)), plan


def test_qarepvgg_is_a_chain_of_convolutions() -> None:
    torch.manual_seed(0)
    before, after, plan = folded(nn.Sequential(QARepVGG(3, 8, stride=2), QARepVGG(8, 8), QARepVGG(8, 8)))
    assert op_types(before).count("BatchNormalization") == 6 and outcomes(plan) == [FOLDED] * 6
    assert op_types(after) == ["Conv", "Relu"] * 3
    same_function(before, after, (1, 3))


@pytest.fixture(scope="module")
def repvgg() -> Folded:
    torch.manual_seed(0)
    net = nn.Sequential(
        RepVGG(3, 8, stride=2), RepVGG(8, 8), RepVGG(8, 8, groups=2), RepVGG(8, 12, stride=2, groups=4), RepVGG(12, 12)
    )
    return folded(net)


def test_repvgg_is_a_chain_of_convolutions(repvgg: Folded) -> None:
    before, after, plan = repvgg
    assert op_types(before).count("BatchNormalization") == 13
    assert outcomes(plan) == [FOLDED] * 13
    assert op_types(after) == ["Conv", "Relu"] * 5
    same_function(before, after, (1, 3))
