"""The Attention operator: its probabilities times its values."""

from __future__ import annotations

from typing import final

import numpy as np

from normfold.analysis.rules.base import OUT, Demands, Rule, Surroundings, to_rank_of
from normfold.graph.types import Op
from normfold.graph.view import Graph

VALUES, PAST_VALUES, PRESENT_VALUES = 2, 5, 2


@final
class AttentionRule(Rule):
    """`Y = softmax(scale * Q K^T + mask) V`: a scale on the channels of V is one on those of Y; no shift passes.

    Queries and keys meet in a product of two tensors and a softmax, and keep the identity. Values are (N, heads, S, C)
    or (N, S, heads * C); where queries share them, Y is wider there, and a frame that differs between heads does not
    fit. A cache of values holds what other runs have written: then nothing passes.
    """

    attributes = frozenset(
        {
            "is_causal",
            "kv_num_heads",
            "q_num_heads",
            "qk_matmul_output_mode",
            "scale",
            "softcap",
            "softmax_precision",
        }
    )

    def ports(self, graph: Graph, op: Op) -> tuple[int, ...]:
        value = op.inputs[VALUES] if len(op.inputs) > VALUES else None
        return (VALUES, OUT) if value is not None and not graph.is_constant(value) else (OUT,)

    def scale(self, at: Surroundings) -> Demands:
        op = at.op
        cached = len(op.inputs) > PAST_VALUES and op.inputs[PAST_VALUES] is not None
        present = op.outputs[PRESENT_VALUES] if len(op.outputs) > PRESENT_VALUES else None
        kept = present is not None and (at.graph.readers(present) or present in at.graph.outputs)
        if cached or kept or VALUES not in self.ports(at.graph, op):
            return at.refuse("two-tensors", "keeps its values in a cache, or they are constant")
        port, other = (VALUES, OUT) if VALUES in at.known else (OUT, VALUES)
        array = at.known[port]
        if array.shape[-2] != 1:
            return at.refuse("two-tensors", "contracts the channels of the norm with its probabilities")
        if to_rank_of(at.graph, at.value(other), array) is None:
            return at.refuse("two-tensors", "shares heads of its values among queries")
        return {other: array}

    def shift(self, at: Surroundings) -> Demands:
        if any(np.any(array != 0.0) for array in at.known.values()):
            return at.refuse("two-tensors", "multiplies two tensors, neither of them constant")
        return {}
