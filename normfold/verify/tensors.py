"""Every tensor of a graph in the runtime, beside the same in float64: where two ways of computing it part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from normfold.errors import GraphError, NormfoldError
from normfold.graph.float64 import graph_tensors, read_again
from normfold.inputs.cases import Array, Case
from normfold.system.files import scratch
from normfold.system.numbers import MASK
from normfold.verify.metrics import difference
from normfold.verify.runtime import Runtime, open_session, run_session

# Beyond this a message cannot hold a graph with its tensors.
_LARGEST = 1_900_000_000


def written_names(path: Path) -> list[str]:
    """Names of the tensors that operators of the main graph write, in order."""
    return [name for node in onnx.load(path, load_external_data=False).graph.node for name in node.output if name]


def runtime_tensors(path: Path, names: Sequence[str], case: Case, folder: Path) -> dict[str, Array]:
    """These tensors of a graph in its own precision, without optimisations. folder: for a copy of the graph."""
    place = folder / f"tensors-{path.stem}.onnx"
    if not place.exists():
        model = onnx.load(path)
        known = {output.name for output in model.graph.output}
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
        _save(model, place)
    session = open_session(place, Runtime())
    feeds = case.fed_to([feed.name for feed in session.get_inputs()])
    return dict(zip(names, run_session(session, list(names), feeds), strict=True))


def writers(path: Path) -> dict[str, str]:
    """By tensor of the main graph the operator that writes it."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return {name: node.op_type for node in nodes for name in node.output}


def opened(path: Path, outputs: Sequence[str], folder: Path) -> tuple[Path, tuple[str, ...]]:
    """A copy of a graph that ends before the Sigmoid that writes each of these outputs, and what it gives instead.

    Raises GraphError where something else writes one.
    """
    model = onnx.load(path)
    read = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Sigmoid"}
    if missing := [name for name in outputs if name not in read]:
        raise GraphError(f"{path}: its output {missing[0]!r} comes from no Sigmoid, which it does in its source")
    names = tuple(read[name] for name in outputs)
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    place = folder / f"before-{path.stem}.onnx"
    _save(model, place)
    return place, tuple(dict.fromkeys(names))


def _save(model: onnx.ModelProto, place: Path) -> None:
    large = model.ByteSize() > _LARGEST
    onnx.save(model, place, save_as_external_data=large, location=f"{place.name}.data")


def rms(true: Array) -> float:
    """Root mean square of a tensor without masks; 1 where it is zero everywhere."""
    kept = true[np.abs(true) < MASK]
    found = float(np.sqrt(np.mean(np.square(kept)))) if kept.size else 0.0
    return found if found > 0.0 else 1.0


def first_parting(path: Path, case: Case, bound: float) -> str:
    """The first tensor of the graph at `path` whose runtime value is farther than `bound` from its float64 value.

    With the operator that writes it, for people; empty where none is found or it cannot be looked for.
    """
    found: list[str] = []
    try:
        with scratch() as folder:
            names = written_names(path)
            ours = runtime_tensors(path, names, case, folder)
            model = read_again(path)
            operators = {str(v.name): node.op_type for node in model.graph for v in node.outputs}

            def keep(name: str, true: Array) -> None:
                value = ours.pop(name, None)
                if found or value is None or not isinstance(value, np.ndarray) or value.dtype.kind != "f":
                    return
                error = difference(value, true) / rms(true)
                if not error <= bound:
                    found.append(f"{name} ({operators[name]}), where they are {error:.1e} apart")

            graph_tensors(model, case, keep)
    # The verdict, that there is none, stands; only where they part stays unknown.
    except (NormfoldError, RuntimeError, ValueError, MemoryError):
        return ""
    return found[0] if found else ""
