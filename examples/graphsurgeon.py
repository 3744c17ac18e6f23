"""Edit a graph, fold it in place, edit it again. Usage: python examples/graphsurgeon.py [FOLDER]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import foreign_onnx
import numpy as np
import onnx
import onnx_graphsurgeon as gs

from normfold.graphsurgeon import fold_norms


def main(folder: Path) -> None:
    """Scale the input of a network, fold its norms, and give it a second output."""
    foreign_onnx.write(folder / "net.onnx")
    graph = gs.import_onnx(onnx.load(folder / "net.onnx"))

    scaled = gs.Variable("scaled", dtype=np.float32)
    first = graph.nodes[0]
    graph.layer(op="Mul", inputs=[graph.inputs[0], np.array(1 / 255, np.float32)], outputs=[scaled], name="scale")
    first.inputs[0] = scaled
    graph.cleanup().toposort()

    report = fold_norms(graph)
    print(f"{len(report.norms)} norm, not folded: {len(report.unfolded)}")

    mean = gs.Variable("mean", dtype=np.float32)
    graph.layer(op="GlobalAveragePool", inputs=[graph.outputs[0]], outputs=[mean], name="pool")
    graph.outputs.append(mean)
    onnx.save(gs.export_onnx(graph.cleanup().toposort()), folder / "edited.onnx")
    print([node.op for node in graph.nodes])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
