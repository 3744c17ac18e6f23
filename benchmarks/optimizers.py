"""Other tools that could fold norms, one at a time: python benchmarks/optimizers.py TOOL IN.onnx OUT.onnx

Each runs in a process of its own: some end it, some keep its memory. They run with their
defaults, but for `onnxsim opt-in`.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

# Of the passes that onnxsim runs only when asked to, those that merge operators and keep what is computed.
ONNXSIM_OPT_IN = (
    "adjust_add",
    "fuse_matmul_add_bias_into_gemm_batched",
    "fuse_matmul_into_conv",
    "fuse_reduce_sum_into_conv",
    "replace_einsum_with_matmul",
)


def onnxslim(source: Path, output: Path) -> None:
    import onnxslim as tool

    tool.slim(str(source), str(output))


def onnxsim(source: Path, output: Path) -> None:
    import onnx
    import onnxsim as tool

    model, _ = tool.simplify(onnx.load(source))
    onnx.save(model, output)


def onnxsim_opt_in(source: Path, output: Path) -> None:
    import onnx
    import onnxsim as tool

    model, _ = tool.simplify(onnx.load(source), extra_optimizers=list(ONNXSIM_OPT_IN))
    onnx.save(model, output)


def onnxoptimizer(source: Path, output: Path) -> None:
    import onnx
    import onnxoptimizer as tool

    onnx.save(tool.optimize(onnx.load(source), tool.get_fuse_and_elimination_passes(), fixed_point=True), output)


def _onnxruntime(source: Path, output: Path, level: str) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(output)
    options.log_severity_level = 3
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def onnxruntime_basic(source: Path, output: Path) -> None:
    _onnxruntime(source, output, "BASIC")


def onnxruntime_extended(source: Path, output: Path) -> None:
    _onnxruntime(source, output, "EXTENDED")


def onnxruntime_all(source: Path, output: Path) -> None:
    _onnxruntime(source, output, "ALL")


def onnxscript(source: Path, output: Path) -> None:
    import onnx_ir as ir
    from onnxscript import optimizer, rewriter

    model = ir.load(source)
    optimizer.optimize(model)
    model = rewriter.rewrite(model)
    optimizer.optimize(model)
    ir.save(model, output)


# Name in tables: the distribution that is needed, and how to run it.
TOOLS: dict[str, tuple[str, Callable[[Path, Path], None]]] = {
    "onnxslim": ("onnxslim", onnxslim),
    "onnxsim": ("onnxsim", onnxsim),
    "onnxsim opt-in": ("onnxsim", onnxsim_opt_in),
    "onnxoptimizer": ("onnxoptimizer", onnxoptimizer),
    "onnxruntime extended": ("onnxruntime", onnxruntime_extended),
    "onnxruntime all": ("onnxruntime", onnxruntime_all),
    "onnxscript": ("onnxscript", onnxscript),
}


def installed() -> dict[str, str]:
    """The tools that can be run here and their versions."""
    found = {}
    for name, (distribution, _) in TOOLS.items():
        try:
            found[name] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    TOOLS[sys.argv[1]][1](Path(sys.argv[2]), Path(sys.argv[3]))
