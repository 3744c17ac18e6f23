"""An ONNX file that another tool wrote. Usage: python examples/foreign_onnx.py [FOLDER]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

import normfold

GRAPH = """
<ir_version: 8, opset_import: ["" : 13]>
net (float[N,3,H,W] x) => (float[N,8,H,W] y) {
    h = Conv <pads = [1,1,1,1]> (x, W, b)
    n = BatchNormalization (h, gamma, beta, mean, var)
    y = Relu (n)
}
"""


def write(path: Path) -> None:
    """Conv, BatchNormalization, Relu in opset 13, with statistics as training leaves them."""
    rng = np.random.default_rng(0)
    model = parser.parse_model(GRAPH)
    tensors = {
        "W": rng.normal(size=(8, 3, 3, 3)),
        "b": rng.normal(size=8),
        "gamma": rng.uniform(0.5, 2.0, size=8),
        "beta": rng.normal(size=8),
        "mean": rng.normal(size=8),
        "var": rng.uniform(0.5, 2.0, size=8),
    }
    for name, tensor in tensors.items():
        model.graph.initializer.append(numpy_helper.from_array(tensor.astype(np.float32), name))
    onnx.save(model, path)


def main(folder: Path) -> None:
    """Fold it: the result keeps its opset, its inputs and its outputs."""
    write(folder / "net.onnx")
    report = normfold.fold(folder / "net.onnx", folder / "folded.onnx")
    print(f"{dict(report.nodes_before)} -> {dict(report.nodes_after)}")
    for edge in report.edges:
        print(f"{edge.name}: relative error {edge.relative:.1e}, allowed {edge.bound:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
