"""What a run found, did and measured, as data; R.json is this and nothing more (docs/report.md, field by field).

Deterministic but for `seconds`: no time stamps, no host names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from normfold.errors import NotExpressibleError
from normfold.export.tasks import Task
from normfold.system.numbers import finite
from normfold.system.text import json_text

if TYPE_CHECKING:
    from torch import nn

    from normfold.analysis.fixed import FixedNorm
    from normfold.analysis.frames.powers import Room
    from normfold.analysis.plan import Merge, Site, Spread, Untied
    from normfold.verify.judge import Edge

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Where the weights came from. `arch` and `arch_args` name a built-in architecture, None and {} otherwise."""

    path: str
    sha256: str
    format: str
    arch: str | None
    arch_args: Mapping[str, Any]
    inputs: tuple[str, ...]
    trusted: bool


@dataclass(frozen=True, slots=True)
class OutputInfo:
    """What was written. Sizes in bytes, external data included; `unfolded_bytes` is None when nothing measured it.

    data: the files beside it that hold its weights; none where they are inside.
    """

    path: str
    bytes: int
    sha256: str
    unfolded_bytes: int | None
    data: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GraphReport:
    """One graph of a run. name: which of its task's graphs, empty where the task has one. inputs: what it takes.

    opset: of the standard operators. opset_reason: why this one.
    nodes_before, nodes_after: number of nodes per operator in the main graph.
    output: None when nothing was written (inspect, a dry run, a failed verification, an unmet `strict`).
    edges: one entry per comparison that was made; empty when none was.
    untied: weights that several operators read and that were copied. merged: parallel branches that became one Conv.
    spreads: weights whose channels have moved apart, or together. room: what float16 had to hold of each tensor.
    centred: the LayerNorms that became RMSNorms. fixed: the norms whose statistics cannot matter. unexercised: what no
    sample of the verification reached; None where it was not looked at.
    module: makes the folded torch module (rewrite/module.py).
    """

    name: str
    inputs: tuple[str, ...]
    sites: tuple[Site, ...]
    nodes_before: Mapping[str, int]
    nodes_after: Mapping[str, int]
    opset: int = 0
    opset_reason: str = ""
    output: OutputInfo | None = None
    edges: tuple[Edge, ...] = ()
    untied: tuple[Untied, ...] = ()
    spreads: tuple[Spread, ...] = ()
    room: tuple[Room, ...] = ()
    merged: tuple[Merge, ...] = ()
    centred: tuple[str, ...] = ()
    fixed: tuple[FixedNorm, ...] = ()
    unexercised: tuple[str, ...] | None = None
    module: Callable[[], nn.Module] | None = field(default=None, repr=False, compare=False)

    @property
    def failed(self) -> tuple[Edge, ...]:
        """The comparisons that did not hold."""
        return tuple(edge for edge in self.edges if not edge.passed)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run of `fold` or `inspect` has to say; sites, nodes and edges are those of all graphs.

    task: what was exported (export/tasks.py). graphs: one for every file that the task writes. dtype: what they were
    converted to, None where they keep the types of the source. center: whether LayerNorms were to become RMSNorms.
    seconds: wall-clock time per stage, in the order in which they ran. also_written: files of the run beside the graphs
    and their data.
    """

    normfold: str
    source: SourceInfo
    graphs: tuple[GraphReport, ...]
    task: Task = "forward"
    dtype: str | None = None
    center: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    also_written: tuple[str, ...] = ()

    @property
    def sites(self) -> tuple[Site, ...]:
        """The norms of every graph."""
        return tuple(site for graph in self.graphs for site in graph.sites)

    @property
    def norms(self) -> tuple[Site, ...]:
        """The sites that count as norms."""
        return tuple(site for site in self.sites if site.counts)

    @property
    def nodes_before(self) -> Mapping[str, int]:
        """Number of nodes per operator as exported, in all graphs together."""
        return _summed(graph.nodes_before for graph in self.graphs)

    @property
    def nodes_after(self) -> Mapping[str, int]:
        """The same after folding."""
        return _summed(graph.nodes_after for graph in self.graphs)

    @property
    def output(self) -> OutputInfo | None:
        """What was written, of a task that writes one graph; None otherwise: see the graphs."""
        return self.graphs[0].output if len(self.graphs) == 1 else None

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The comparisons of every graph."""
        return tuple(edge for graph in self.graphs for edge in graph.edges)

    @property
    def unexercised(self) -> tuple[str, ...] | None:
        """What no sample reached, of a task that writes one graph; None where it was not looked at."""
        return self.graphs[0].unexercised if len(self.graphs) == 1 else None

    @property
    def unfolded(self) -> tuple[Site, ...]:
        """Norms with stored statistics that are still there, in part or whole: what `strict` objects to."""
        return tuple(s for s in self.norms if s.status != "folded" and not s.per_token)

    def to_torch(self) -> nn.Module:
        """The original module, its norms replaced by `nn.Identity`, with the folded weights and biases, in eval mode.

        It computes what the ONNX file computes. Raises NotExpressibleError where its parameters cannot hold the fold.
        """
        if self.task != "forward":
            raise NotExpressibleError(
                f"--task {self.task} exports parts of the model; only the whole has a torch module"
            )
        module = self.graphs[0].module
        if module is None:
            raise NotExpressibleError("this report was not made by a run, so it has no model to fold")
        return module()

    @property
    def changed(self) -> bool:
        """Whether anything was folded, or equalized, at all."""
        equalized = any(weight.equalized is not None for graph in self.graphs for weight in graph.spreads)
        return equalized or any(site.status != "kept" for site in self.sites)

    @property
    def failed(self) -> tuple[Edge, ...]:
        """The comparisons that did not hold."""
        return tuple(edge for edge in self.edges if not edge.passed)

    def to_json(self) -> dict[str, Any]:
        """R.json as plain data. A figure that is not finite is null, for JSON has no word for it."""
        return {
            "schema": SCHEMA,
            "normfold": self.normfold,
            "source": _source(self.source),
            "task": self.task,
            "dtype": self.dtype,
            "output": _output(self.output),
            "graphs": [_graph(graph) for graph in self.graphs],
            "sites": [site_entry(site, graph) for graph in self.graphs for site in graph.sites],
            "untied": [_untied(weight, graph) for graph in self.graphs for weight in graph.untied],
            "merged": [_merge(merge, graph) for graph in self.graphs for merge in graph.merged],
            "spreads": [_spread(weight, graph) for graph in self.graphs for weight in graph.spreads],
            "room": [_room(tensor, graph) for graph in self.graphs for tensor in graph.room],
            "nodes": _nodes(self),
            "verification": {"edges": [_edge(edge, graph) for graph in self.graphs for edge in graph.edges]},
            "unexercised": None if self.unexercised is None else list(self.unexercised),
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
            "warnings": list(self.warnings),
        }

    def dumps(self) -> str:
        """R.json as text, with a final newline."""
        return json_text(self.to_json(), default=str)


def site_entry(site: Site, graph: GraphReport) -> dict[str, Any]:
    """One norm, as R.json lists it."""
    return {
        "graph": graph.name or None,
        "name": site.name,
        "kind": site.kind,
        "channels": site.channels,
        "status": site.status,
        "code": site.code,
        "reason": site.reason,
        "into": list(site.into),
        "shift": site.shift,
        "shift_elements": site.shift_elements,
    }


def _source(source: SourceInfo) -> dict[str, Any]:
    return {
        "path": source.path,
        "sha256": source.sha256,
        "format": source.format,
        "arch": source.arch,
        "arch_args": dict(source.arch_args),
        "inputs": list(source.inputs),
        "trusted": source.trusted,
    }


def _output(output: OutputInfo | None) -> dict[str, Any] | None:
    if output is None:
        return None
    return {
        "path": output.path,
        "bytes": output.bytes,
        "sha256": output.sha256,
        "unfolded_bytes": output.unfolded_bytes,
        "data": list(output.data),
    }


def _graph(graph: GraphReport) -> dict[str, Any]:
    return {
        "name": graph.name or None,
        "inputs": list(graph.inputs),
        "opset": graph.opset,
        "opset_reason": graph.opset_reason,
        "output": _output(graph.output),
        "centred": list(graph.centred),
        "fixed": [
            {"name": norm.name, "variance": float(f"{norm.variance:.4g}"), "bound": float(f"{norm.bound:.4g}")}
            for norm in graph.fixed
        ],
        "nodes": _nodes(graph),
    }


def _untied(weight: Untied, graph: GraphReport) -> dict[str, Any]:
    return {"graph": graph.name or None, "name": weight.name, "bytes": weight.bytes}


def _spread(weight: Spread, graph: GraphReport) -> dict[str, Any]:
    return {
        "graph": graph.name or None,
        "name": weight.name,
        "before": round(weight.before, 4),
        "folded": round(weight.folded, 4),
        "equalized": None if weight.equalized is None else round(weight.equalized, 4),
    }


def _room(tensor: Room, graph: GraphReport) -> dict[str, Any]:
    left = finite(tensor.left)
    return {
        "graph": graph.name or None,
        "tensor": tensor.tensor,
        "power": tensor.power,
        "largest": float(f"{tensor.largest:.4g}"),
        "left": None if left is None else float(f"{left:.4g}"),
    }


def _merge(merge: Merge, graph: GraphReport) -> dict[str, Any]:
    return {"graph": graph.name or None, "into": merge.name, "branches": list(merge.parts)}


def _edge(edge: Edge, graph: GraphReport) -> dict[str, Any]:
    return {
        "graph": graph.name or None,
        "name": edge.name,
        "max_abs": finite(edge.max_abs),
        "relative": finite(edge.relative),
        "bound": finite(edge.bound),
        "passed": edge.passed,
        "detail": edge.detail,
    }


def _nodes(counted: GraphReport | Report) -> dict[str, dict[str, int]]:
    return {"before": dict(sorted(counted.nodes_before.items())), "after": dict(sorted(counted.nodes_after.items()))}


def _summed(counts: Iterable[Mapping[str, int]]) -> Mapping[str, int]:
    return sum((Counter(count) for count in counts), Counter())
