"""The grid reaches what it is about: without any one attribute some row comes out differently."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir
import pytest

from normfold.graph.evaluator.evaluator import Evaluator
from tests.graph.evaluator import grid
from tests.graph.evaluator.agreement import Case, types_of
from tests.graph.evaluator.compare import bounds, compare
from tests.graph.evaluator.single import run_session

# Attributes that change no number, and why.
WITHOUT_EFFECT: Mapping[str, tuple[str, ...]] = {
    "the weights say it": ("kernel_shape", "hidden_size", "rotary_embedding_dim", "num_outputs"),
    "all is float64": ("stash_type", "softmax_precision", "precision", "output_datatype", "output_dtype"),
    "the same numbers in another type or order": ("mask_index_type", "sorted"),
    "only for training": ("ratio", "momentum"),
    "onnxruntime does not run it, or not otherwise": (
        "layout",
        "multi_class",
        "locale",
        "zeros",
        "scale of RotaryEmbedding",
    ),
    "no kernel": ("alpha of Swish", "alpha of SwiGLU"),
    "one tensor after the other": ("axis of ConcatFromSequence",),
}


@pytest.mark.slow
def test_every_attribute_shows_in_some_row() -> None:
    shown, there = set(), set()
    for case in grid.cases():
        node = case.model.graph.node[0]
        names = {attribute.name for attribute in node.attribute if not attribute.HasField("g")}
        if len(case.model.graph.node) != 1 or not names:
            continue
        there |= {(node.domain, node.op_type, name) for name in names}
        todo = {name for name in names if (node.domain, node.op_type, name) not in shown}
        shown |= {(node.domain, node.op_type, name) for name in _showing(case, todo)}
    allowed = {name for names in WITHOUT_EFFECT.values() for name in names}
    silent = {(d, op, name) for d, op, name in there - shown if not {name, f"{name} of {op}"} & allowed}
    assert len(shown) > 250
    assert not silent, sorted(silent)


def _showing(case: Case, names: set[str]) -> Iterator[str]:
    """Those attributes without which the evaluator does not come to what onnxruntime makes of the whole node."""
    for variant in grid.variants(case) if names else ():
        try:
            found = run_session(variant.model, variant.feeds)
        except Exception:  # whatever it says, another opset may do
            continue
        for name in names:
            model = onnx.ModelProto()
            model.CopyFrom(variant.model)
            kept = [attribute for attribute in model.graph.node[0].attribute if attribute.name != name]
            del model.graph.node[0].attribute[:]
            model.graph.node[0].attribute.extend(kept)
            try:
                truth = Evaluator(ir.from_proto(model)).run(variant.feeds)
            except Exception:  # it cannot do without
                yield name
                continue
            if compare(truth, found, bounds(through=types_of(variant.model))):
                yield name
        return
