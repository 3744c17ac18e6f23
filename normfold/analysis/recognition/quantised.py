"""Quantised graphs: their weights are integers under fixed steps, and a change of frame would be rounded anew."""

from __future__ import annotations

import re

from normfold.analysis.refusal import Refuse
from normfold.graph.view import Graph

# The standard operators, and those that runtimes add for integers (com.microsoft and others name theirs alike).
_INTEGERS = re.compile(
    r"(QuantizeLinear|DequantizeLinear|DynamicQuantize\w+|QLinear\w+|QGemm|QAttention|QMoE|QEmbed\w+|QOrdered\w+"
    r"|\w+Integer(ToFloat)?|Quantize(BFP|WithOrder)|Dequantize(BFP|WithOrder)|\w+NBits|\w+Bnb4|\w+FpQ4|\w+Quantized)$"
)


def quantised(graph: Graph) -> Refuse | None:
    """Why nothing of a graph that is quantised, or calls a quantised one, is folded; None for any other graph."""
    for node in graph.nodes():
        if _INTEGERS.match(node.op_type):
            where = f"{node.name or node.outputs[0].name} ({node.op_type})"
            return Refuse("quantised", f"{where}: the graph is quantised; fold before quantising")
    return None
