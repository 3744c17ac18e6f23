"""What other tools make of the weights of a folded network before int8, beside `fold --equalize`, on the same files.

    python -m benchmarks.equalization [--tool NAME=PYTHON ...] [--write]

NAME is aimet, onnxsim, neural-compressor or nncf, PYTHON the interpreter of an environment with it, for they want
different versions of the same packages: pip install aimet-onnx; onnxsim; onnx-neural-compressor prettytable psutil
py-cpuinfo pydantic transformers; nncf. Without any, the table has normfold's rows alone.

For each of the trained fixtures convnet_bn and vit_bn: the unfolded export, the folded graph, the folded graph with
`--equalize`, and the folded graph as each tool leaves it. AIMET: cross-layer equalization. onnxsim: the same, then that
of linear layers. neural-compressor: SmoothQuant of matrix products with alpha 0.5, its factors folded where it can;
Conv, which it does by default as well, is left out, for behind a depthwise one it computes something else (version
1.0). NNCF has no equalization of its own to call, so it quantises the whole (channel alignment, for the Transformer
SmoothQuant, bias correction). Told of each: weights that it changed, operators that it added to those that run in
float32, the largest difference of float32 outputs relative to their largest, and held-out accuracy in float32 and in
int8 by onnxruntime: static (QDQ, 100 samples) and dynamic, one scale for each tensor.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

import normfold
from benchmarks.fill_in import fill_in
from normfold.checkpoint.load import load_checkpoint
from normfold.export.to_onnx import export
from normfold.graph.write import save

FIXTURES = Path(__file__).parent.parent / "fixtures"
PAGE = Path(__file__).parent.parent / "docs" / "guides" / "int8.md"
# Network, and the data that it was not trained on.
NETWORKS = {"convnet_bn": "mnist", "vit_bn": "digits"}
# The newest that the three tools read.
OPSET = 18
CALIBRATION, BATCH = 100, 10
# Of a tool's quantised graph, what int8 brings.
_OF_INT8 = {"QuantizeLinear", "DequantizeLinear"}

# Each takes a model, where to put its own, and calibration data.
TOOLS = {
    "aimet": """
import sys, onnx
from aimet_onnx.cross_layer_equalization import equalize_model
model = onnx.load(sys.argv[1])
equalize_model(model)
onnx.save(model, sys.argv[2])
""",
    "onnxsim": """
import sys, onnx, onnxsim
from onnxsim.quark_cle import equalize_linear_layers
onnx.save(equalize_linear_layers(onnxsim.cross_layer_equalize(onnx.load(sys.argv[1]))), sys.argv[2])
""",
    "neural-compressor": """
import sys, numpy as np, onnx
from onnx_neural_compressor.algorithms.smoother.core import Smoother
from onnx_neural_compressor.data_reader import CalibrationDataReader
class Reader(CalibrationDataReader):
    def __init__(self): self.rewind()
    def get_next(self): return next(self.left, None)
    def rewind(self): self.left = iter({"x": part} for part in np.split(np.load(sys.argv[3])["x"], 10))
made = Smoother(sys.argv[1], Reader()).transform(alpha=0.5, calib_iter=10, op_types=["MatMul", "Gemm"])
onnx.save(getattr(made, "model", made), sys.argv[2])
""",
    "nncf": """
import sys, numpy as np, nncf, onnx
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
data = nncf.Dataset([{"x": part} for part in np.split(np.load(sys.argv[3])["x"], 10)])
each = AdvancedQuantizationParameters(weights_quantization_params=QuantizationParameters(per_channel=False))
kind = {"model_type": nncf.ModelType.TRANSFORMER} if "vit" in sys.argv[1] else {}
onnx.save(nncf.quantize(onnx.load(sys.argv[1]), data, advanced_parameters=each, **kind), sys.argv[2])
""",
}


@dataclass(frozen=True)
class Held:
    """Inputs and answers that a network was not trained on."""

    x: np.ndarray[Any, Any]
    y: np.ndarray[Any, Any]

    def right(self, model: Path) -> float:
        """The share of answers that are right."""
        return float((outputs(model, self.x).argmax(1) == self.y).mean())


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, x: np.ndarray[Any, Any]) -> None:
        self.left = iter(np.split(x[:CALIBRATION], CALIBRATION // BATCH))

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.left, None)
        return None if batch is None else {"x": batch}


def outputs(model: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The first output of a graph."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run(None, {"x": x})[0]
    return found


def quantised(model: Path, held: Held) -> dict[str, float]:
    """Accuracy in int8, static and dynamic."""
    with tempfile.TemporaryDirectory() as folder:
        place = {name: Path(folder) / f"{name}.onnx" for name in ("bare", "prepared", "static", "dynamic")}
        # The shapes that a tool has written for tensors of its own need not be theirs.
        bare = onnx.load(model)
        bare.graph.ClearField("value_info")
        onnx.save(bare, place["bare"])
        quant_pre_process(place["bare"], place["prepared"], skip_symbolic_shape=True)
        quantize_static(
            place["prepared"],
            place["static"],
            _Batches(held.x),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=False,
        )
        kinds = ["MatMul", "Gemm", "Conv"]
        quantize_dynamic(
            place["prepared"],
            place["dynamic"],
            weight_type=QuantType.QUInt8,
            per_channel=False,
            op_types_to_quantize=kinds,
        )
        return {name: held.right(place[name]) for name in ("static", "dynamic")}


def changed(before: Path, after: Path) -> int:
    """How many weights of two axes or more have other numbers; those that were renamed are found by their shapes."""
    old, new = (_weights(path) for path in (before, after))
    left = [array for name, array in new.items() if name not in old or not _same(old[name], array)]
    gone = [array for name, array in old.items() if name not in new or not _same(array, new[name])]
    return sum(not any(_same(array, other) for other in gone) for array in left)


def _weights(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}
    return {name: array for name, array in arrays.items() if array.ndim > 1 and array.dtype.kind == "f"}


def _same(first: np.ndarray[Any, Any], second: np.ndarray[Any, Any]) -> bool:
    return first.shape == second.shape and np.allclose(first, second, rtol=1e-6, atol=0.0)


def added(before: Path, after: Path) -> int:
    """How many more operators run in float32."""
    old, new = (Counter(node.op_type for node in onnx.load(path).graph.node) for path in (before, after))
    return sum(count for kind, count in new.items() if kind not in _OF_INT8) - sum(old.values())


def row(name: str, model: Path, start: Path, held: Held, *, whole: bool = False) -> str:
    """A line of the table. start: what the tool began with. whole: the tool has quantised it too."""
    if whole:
        return f"| {name} | | {added(start, model)} | | | {held.right(model):.3f} | |"
    exact, found = outputs(start, held.x), outputs(model, held.x)
    apart = float(np.abs(found - exact).max() / np.abs(exact).max())
    shares = quantised(model, held)
    figures = f"{held.right(model):.3f} | {shares['static']:.3f} | {shares['dynamic']:.3f}"
    if model == start:
        return f"| {name} | | | | {figures} |"
    return f"| {name} | {changed(start, model)} | {added(start, model)} | {apart:.0e} | {figures} |"


def rows(network: str, tools: Mapping[str, Path], folder: Path) -> Iterator[str]:
    """The lines of one network."""
    checkpoint = FIXTURES / f"{network}.pt"
    arrays = np.load(FIXTURES / f"{NETWORKS[network]}_heldout.npz")
    held = Held(arrays["x"], arrays["y"])
    place = {name: folder / f"{network}.{name}.onnx" for name in ("unfolded", "folded", "equalized", *tools)}
    save(export(load_checkpoint(checkpoint), opset=OPSET), place["unfolded"])
    normfold.fold(checkpoint, place["folded"], opset=OPSET)
    normfold.fold(checkpoint, place["equalized"], opset=OPSET, equalize=True)
    yield row(f"{network}, not folded", place["unfolded"], place["unfolded"], held)
    yield row(f"{network}, folded", place["folded"], place["folded"], held)
    yield row("... and `--equalize`", place["equalized"], place["folded"], held)
    np.savez(folder / "calibration.npz", x=held.x[:CALIBRATION])
    for tool, python in tools.items():
        command = [python, "-c", TOOLS[tool], place["folded"], place[tool], folder / "calibration.npz"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode:
            yield f"| ... and {tool} | failed: {done.stderr.strip().splitlines()[-1][:80]} | | | | | |"
        else:
            yield row(f"... and {tool}", place[tool], place["folded"], held, whole=tool == "nncf")


def version(python: Path, package: str) -> str:
    """The version of a package in another environment."""
    asked = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=PYTHON", help=", ".join(TOOLS))
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    asked = parser.parse_args()
    tools = {name: Path(python) for name, _, python in (one.partition("=") for one in asked.tool)}
    packages = {
        "aimet": "aimet-onnx",
        "onnxsim": "onnxsim",
        "neural-compressor": "onnx-neural-compressor",
        "nncf": "nncf",
    }
    lines = [
        "| model | weights changed | operators added | apart | float32 | static | dynamic |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for network in NETWORKS:
            lines += rows(network, tools, Path(folder))
    versions = [f"{packages[name]} {version(python, packages[name])}" for name, python in tools.items()]
    lines += [
        "",
        f"{', '.join([*versions, f'onnxruntime {onnxruntime.__version__}'])}, Python {platform.python_version()}.",
    ]
    print("\n".join(lines))
    if asked.write:
        fill_in(PAGE, "equalization", lines)


if __name__ == "__main__":
    main()
