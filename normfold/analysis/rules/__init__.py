"""The operator table: one row per ONNX operator. What is not listed is a wall: only the identity frame passes.

A new operator is one function that says how a frame passes through it, one row here, and its tests:
docs/extending/operator.md does that step by step.
"""

from __future__ import annotations

import numpy as np

from normfold.analysis.refusal import Refuse, refuse
from normfold.analysis.rules.attention import AttentionRule
from normfold.analysis.rules.axis_maps import AxisMap
from normfold.analysis.rules.base import Rule, Wall
from normfold.analysis.rules.batch_norm import BatchNormRule
from normfold.analysis.rules.carry import CarryRule, PadRule
from normfold.analysis.rules.contract import EinsumRule, MatMulRule
from normfold.analysis.rules.join import JoinRule
from normfold.analysis.rules.layout import (
    expand,
    filling,
    fills_with_infinity,
    gather,
    gather_elements,
    gather_nd,
    pad,
    reshape,
    reverse_sequence,
    same,
    slices,
    summed_up,
    transpose,
)
from normfold.analysis.rules.linear import ConvRule, GemmRule
from normfold.analysis.rules.normalize import ChannelNormalizeRule, MeanVarianceRule, NormalizeRule
from normfold.analysis.rules.pointwise import AddRule, AffineRule, SumRule, negated
from normfold.analysis.rules.power import PowerRule
from normfold.analysis.rules.prelu import PReluRule
from normfold.analysis.rules.product import ProductRule
from normfold.analysis.rules.reduce import averaged, counts_padding, pooled, pooled_to_one, summed
from normfold.analysis.rules.resample import (
    depth_to_space,
    resized,
    sampled,
    samples_zeros,
    space_to_depth,
    tiled,
    weighs_unevenly,
)
from normfold.analysis.rules.tie import ClipRule, TieRule
from normfold.analysis.rules.transposed import ConvTransposeRule
from normfold.graph.types import Op
from normfold.graph.view import Graph


def _between_float_types(graph: Graph, op: Op) -> Refuse | None:
    if all(value is None or graph.is_floating(value) for value in (op.inputs[0], op.output)):
        return None
    return refuse(op, "not-floating", "one side of it is integers, or has no more than eight bits")


def _inactive(graph: Graph, op: Op) -> AxisMap | Refuse:
    """Dropout, which at inference does nothing; since opset 12 an input can switch it on."""
    training = op.inputs[2] if len(op.inputs) > 2 else None
    if training is None or (graph.is_constant(training) and not np.any(graph.constant(training))):
        return same(graph, op)
    return refuse(op, "training-mode", "drops elements at random")


def _fills_with_a_number(graph: Graph, op: Op) -> Refuse | None:
    """A scale passes a Pad that fills with 0, with an infinite number or with values of the tensor itself."""
    if op.text("mode", "constant") != "constant" or filling(graph, op) == 0.0 or fills_with_infinity(graph, op):
        return None
    return refuse(op, "fill-value", "fills with a number that would have to change with the scale")


def _fills_with_zeros(graph: Graph, op: Op) -> Refuse | None:
    if op.text("mode", "constant") != "constant" or fills_with_infinity(graph, op):
        return None
    return refuse(op, "shift-meets-padding", "zero padding would not receive the shift")


def _some_become_zero(graph: Graph, op: Op) -> Refuse | None:
    return refuse(op, "shift-meets-padding", "the zeros that it writes would not receive the shift")


def _zero_stays_zero(graph: Graph, op: Op) -> Refuse | None:
    return refuse(op, "shift-meets-activation", "a shift moves the point where it bends")


def _adds_up_the_shift(graph: Graph, op: Op) -> Refuse | None:
    return refuse(op, "uneven-taps", "every position holds another multiple of a shift")


def _powers_mix(graph: Graph, op: Op) -> Refuse | None:
    return refuse(op, "shift-meets-activation", "works on the sizes of its elements, which a shift changes")


def _negated(graph: Graph, op: Op) -> float:
    return -1.0


_RESIZE = (
    "antialias",
    "axes",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "keep_aspect_ratio_policy",
    "mode",
    "nearest_mode",
)
_REDUCE = ("axes", "keepdims", "noop_with_empty_axes")
_WINDOW = ("auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides")
_POOL = (*_WINDOW, "storage_order")

TABLE: dict[str, Rule] = {
    # Fixed maps, sums, products.
    "Affine": AffineRule(),
    "BatchNormalization": BatchNormRule(),
    "Neg": CarryRule(same, times=_negated, fixed_map=negated),
    "Add": AddRule(+1.0, in_statistic="step"),
    "Sub": AddRule(-1.0),
    "Sum": SumRule(),
    "Mean": SumRule(mean=True),
    "Mul": ProductRule(+1.0),
    "Div": ProductRule(-1.0),
    # One of several operands, or of bounds.
    "Where": TieRule(first=1, positive=False),
    "Min": TieRule(first=0, positive=True),
    "Max": TieRule(first=0, positive=True, in_statistic="step"),
    "Clip": ClipRule(),
    # Contractions, lookups, and norms with a statistic.
    "MatMul": MatMulRule(),
    "Einsum": EinsumRule(),
    "Attention": AttentionRule(),
    "Gemm": GemmRule(),
    "Conv": ConvRule(),
    "ConvTranspose": ConvTransposeRule(),
    "Gather": CarryRule(gather, attributes=["axis"], mean_passes=True),
    "GatherND": CarryRule(gather_nd, attributes=["batch_dims"], mean_passes=True),
    "GatherElements": CarryRule(gather_elements, attributes=["axis"]),
    "LayerNormalization": NormalizeRule(centred=True),
    "RMSNormalization": NormalizeRule(centred=False),
    "InstanceNormalization": ChannelNormalizeRule(grouped=False),
    "GroupNormalization": ChannelNormalizeRule(grouped=True),
    "MeanVarianceNormalization": MeanVarianceRule(),
    # Layout.
    "Identity": CarryRule(same, rearranges=True, in_statistic="same", mean_passes=True),
    "Dropout": CarryRule(_inactive, attributes=["seed", "ratio"], mean_passes=True),
    "Cast": CarryRule(
        same,
        attributes=["to", "saturate", "round_mode"],
        scale=_between_float_types,
        shift=_between_float_types,
        in_statistic="same",
        mean_passes=True,
    ),
    "CastLike": CarryRule(
        same, attributes=["saturate", "round_mode"], scale=_between_float_types, shift=_between_float_types
    ),
    "Transpose": CarryRule(transpose, attributes=["perm"], rearranges=True, mean_passes=True),
    "Reshape": CarryRule(reshape, attributes=["allowzero"], rearranges=True, mean_passes=True),
    "Flatten": CarryRule(reshape, attributes=["axis"], rearranges=True, mean_passes=True),
    "Squeeze": CarryRule(reshape, attributes=["axes"], rearranges=True, mean_passes=True),
    "Unsqueeze": CarryRule(reshape, attributes=["axes"], rearranges=True, mean_passes=True),
    "Expand": CarryRule(expand, mean_passes=True),
    "Slice": CarryRule(slices, attributes=["starts", "ends", "axes"], mean_passes=True),
    "Pad": PadRule(pad, attributes=["mode", "pads", "value"], scale=_fills_with_a_number, shift=_fills_with_zeros),
    "Trilu": CarryRule(same, attributes=["upper"], shift=_some_become_zero),
    "CumSum": CarryRule(summed_up, attributes=["exclusive", "reverse"], shift=_adds_up_the_shift),
    "ReverseSequence": CarryRule(reverse_sequence, attributes=["batch_axis", "time_axis"]),
    "Concat": JoinRule(joined=-1),
    "Split": JoinRule(joined=0),
    # Activations.
    "Relu": CarryRule(same, positive=True, shift=_zero_stays_zero),
    "LeakyRelu": CarryRule(same, attributes=["alpha"], positive=True, shift=_zero_stays_zero),
    "PRelu": PReluRule(),
    "Abs": CarryRule(same, absolute=True, shift=_powers_mix),
    # Pooling and reductions.
    "MaxPool": CarryRule(pooled, attributes=_POOL, positive=True),
    "GlobalMaxPool": CarryRule(pooled_to_one, positive=True),
    "AveragePool": CarryRule(pooled, attributes=[*_POOL, "count_include_pad"], shift=counts_padding),
    "GlobalAveragePool": CarryRule(pooled_to_one, mean_passes=True),
    "LpPool": CarryRule(pooled, attributes=[*_WINDOW, "p"], absolute=True, shift=_powers_mix),
    "GlobalLpPool": CarryRule(pooled_to_one, attributes=["p"], absolute=True, shift=_powers_mix),
    "ReduceMean": CarryRule(averaged, attributes=_REDUCE, in_statistic="mean", mean_passes=True),
    "ReduceSum": CarryRule(averaged, attributes=_REDUCE, times=summed, in_statistic="reduction"),
    "ReduceMax": CarryRule(averaged, attributes=_REDUCE, positive=True),
    "ReduceMin": CarryRule(averaged, attributes=_REDUCE, positive=True),
    "ReduceL1": CarryRule(averaged, attributes=_REDUCE, absolute=True, shift=_powers_mix),
    "ReduceL2": CarryRule(averaged, attributes=_REDUCE, absolute=True, shift=_powers_mix, in_statistic="reduction"),
    # Other sizes.
    "Tile": CarryRule(tiled),
    "Resize": CarryRule(resized, attributes=_RESIZE, shift=weighs_unevenly),
    "Upsample": CarryRule(resized, attributes=["mode", "scales"]),
    "GridSample": CarryRule(sampled, attributes=["align_corners", "mode", "padding_mode"], shift=samples_zeros),
    "DepthToSpace": CarryRule(depth_to_space, attributes=["blocksize", "mode"]),
    "SpaceToDepth": CarryRule(space_to_depth, attributes=["blocksize"]),
    # Parts of a LayerNorm or RMSNorm that is written out.
    "ReduceSumSquare": CarryRule(
        averaged, attributes=_REDUCE, absolute=True, power=2.0, shift=_powers_mix, in_statistic="reduction"
    ),
    "Sqrt": PowerRule(0.5),
    "Reciprocal": PowerRule(-1.0),
    "Pow": PowerRule(),
}
WALL = Wall()


def rule_of(op_type: str) -> Rule:
    """The row of an operator; of one that has none, that of a wall."""
    return TABLE.get(op_type, WALL)
