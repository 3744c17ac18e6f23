"""Which opset a model is exported in: the newest that the runtime it is meant for executes as it is written.

A runtime that has no kernel for an operator of the newest opset takes it apart into older ones, which is slower than
what the exporter would have written in an older opset: onnxruntime 1.32 has Attention of opsets 23 and 24, and expands
that of 25 (docs/decisions/0023-opset.md).
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import onnx
import onnx.parser
import onnx_ir as ir
from onnxscript import version_converter

from normfold.export.targets import LOWEST_OPSET, check_target
from normfold.system.ort import onnxruntime

# Operators that torch.onnx writes where the opset has them, and takes apart itself where it does not.
_WRITTEN = {
    "Attention": "(float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v) => (float[1,2,4,8] y) "
    "{y = Attention(q, k, v)}",
    "Gelu": "(float[2,4] x) => (float[2,4] y) {y = Gelu(x)}",
    "GroupNormalization": "(float[2,4,3] x, float[4] w, float[4] b) => (float[2,4,3] y) "
    "{y = GroupNormalization<num_groups = 2>(x, w, b)}",
    "LayerNormalization": "(float[2,4] x, float[4] w) => (float[2,4] y) {y = LayerNormalization(x, w)}",
    "RMSNormalization": "(float[2,4] x, float[4] w) => (float[2,4] y) {y = RMSNormalization(x, w)}",
}


def opset_for(target: str | None, opset: int | None) -> tuple[int, str]:
    """The opset to export in, and why. opset: what the user asked for. Raises UsageError for an unknown target."""
    chosen = check_target(target)
    if opset is not None:
        return opset, "as asked for"
    return fastest_opset() if chosen.opset is None else (chosen.opset, chosen.why)


@cache
def fastest_opset() -> tuple[int, str]:
    """The newest opset of which the installed onnxruntime expands no operator that it executes in another, and why."""
    runtime = f"onnxruntime {onnxruntime().__version__}"
    versions = range(newest_opset(), LOWEST_OPSET - 1, -1)
    left_out: list[str] = []
    for version in versions:
        expanded = [name for name in _WRITTEN if _is_executed(name, version) is False and _is_known(name)]
        if not expanded:
            why = f"the newest that {runtime} executes as it is written"
            return version, f"{why} ({'; '.join(left_out)})" if left_out else why
        left_out.append(f"{version}: it has no {' or '.join(expanded)}")
    return LOWEST_OPSET, f"the oldest that torch exports, for {runtime} expands operators of all others"


def _is_known(name: str) -> bool:
    """Whether the runtime executes the operator in any opset: one that it always expands decides nothing."""
    return any(_is_executed(name, version) for version in range(LOWEST_OPSET, newest_opset() + 1))


@cache
def _is_executed(name: str, version: int) -> bool | None:
    """Whether the operator is still there in the graph that onnxruntime is about to run; None before it existed."""
    try:
        if onnx.defs.get_schema(name, version, "").deprecated:
            return None
    except onnx.defs.SchemaError:
        return None
    text = f'<ir_version: 10, opset_import: ["" : {version}]> probe {_WRITTEN[name]}'
    runtime = onnxruntime()
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    with tempfile.TemporaryDirectory(prefix="normfold-") as folder:
        written = Path(folder) / "run.onnx"
        options.optimized_model_filepath = str(written)
        model = onnx.parser.parse_model(text).SerializeToString()
        try:
            runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        # onnxruntime's exceptions have no common base but Exception; whichever it is, it does not execute this.
        except Exception:
            return False
        return any(node.op_type == name for node in onnx.load(written).graph.node)


@cache
def newest_opset() -> int:
    """The newest opset that the installed onnxruntime loads and the exporter can convert to."""
    found, runtime = LOWEST_OPSET, onnxruntime()
    for version in range(LOWEST_OPSET, onnx.defs.onnx_opset_version() + 1):
        model = ir.from_proto(_tiny(LOWEST_OPSET))
        with silenced():
            try:
                version_converter.convert_version(model, version)
                options = runtime.SessionOptions()
                options.log_severity_level = 4
                runtime.InferenceSession(
                    _tiny(version).SerializeToString(), options, providers=["CPUExecutionProvider"]
                )
            # onnxruntime's exceptions have no common base but Exception; whichever it is, this opset is not for us.
            except Exception:
                break
        if model.opset_imports.get("") != version:
            break
        found = version
    return found


def _tiny(opset: int) -> onnx.ModelProto:
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "probe", info[:1], info[1:])
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep torch's and onnxscript's prints, logs and warnings away from the user, and from being made errors.

    They speak of the exporter's own internals (deprecated helpers, absent torchvision, graphs of failed traces). What
    they might mean for the result is measured afterwards: the graph is compared with the module.
    """
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(record=True),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        logging.disable(before)
