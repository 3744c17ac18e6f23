"""What a run found, did and measured, as data; R.json is this and nothing more (docs/report.md, field by field).

Deterministic but for `seconds`: no time stamps, no host names.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normfold.plan import Site
    from normfold.verify import Edge

SCHEMA = 1

# Their statistics are of the token, not stored: the norm stays whatever is done with its weight and bias.
TOKEN_STATISTICS = ("LayerNorm", "RMSNorm")


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
    """What was written. Sizes in bytes, external data included; `unfolded_bytes` is None when nothing measured it."""

    path: str
    bytes: int
    sha256: str
    unfolded_bytes: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run of `fold` or `inspect` has to say.

    output: None when nothing was written (inspect, a dry run, a failed verification, an unmet `strict`).
    nodes_before, nodes_after: number of nodes per operator in the main graph.
    edges: one entry per comparison that was made; empty when none was.
    seconds: wall-clock time per stage, in the order in which they ran.
    """

    normfold: str
    source: SourceInfo
    sites: tuple[Site, ...]
    nodes_before: Mapping[str, int]
    nodes_after: Mapping[str, int]
    output: OutputInfo | None = None
    edges: tuple[Edge, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def unfolded(self) -> tuple[Site, ...]:
        """Norms with stored statistics that are still there, in part or whole: what `strict` objects to."""
        return tuple(s for s in self.sites if s.status != "folded" and s.kind not in TOKEN_STATISTICS)

    @property
    def changed(self) -> bool:
        """Whether anything was folded at all."""
        return any(site.status != "kept" for site in self.sites)

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
            "output": _output(self.output),
            "sites": [site_entry(site) for site in self.sites],
            "nodes": {"before": _counts(self.nodes_before), "after": _counts(self.nodes_after)},
            "verification": {"edges": [_edge(edge) for edge in self.edges]},
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
            "warnings": list(self.warnings),
        }

    def dumps(self) -> str:
        """R.json as text, with a final newline."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def site_entry(site: Site) -> dict[str, Any]:
    """One norm, as R.json lists it."""
    return {
        "name": site.name,
        "kind": site.kind,
        "channels": site.channels,
        "status": site.status,
        "code": site.code,
        "reason": site.reason,
        "into": list(site.into),
    }


def manifest(version: str, source: SourceInfo, sites: tuple[Site, ...]) -> str:
    """What OUT.onnx says about its own making, under `normfold` in its metadata: JSON on one line, keys sorted.

    Only the source's file name is given, not its folder: a model that is handed on says nothing of the disk it comes
    from.
    """
    content = {
        "schema": SCHEMA,
        "version": version,
        "source": {"name": source.path.replace("\\", "/").rsplit("/", 1)[-1], "sha256": source.sha256},
        "arch": source.arch,
        "arch_args": dict(source.arch_args),
        "inputs": list(source.inputs),
        "sites": [{"name": s.name, "kind": s.kind, "status": s.status, "into": list(s.into)} for s in sites],
    }
    return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False, default=str)


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
    }


def _edge(edge: Edge) -> dict[str, Any]:
    return {
        "name": edge.name,
        "max_abs": _finite(edge.max_abs),
        "relative": _finite(edge.relative),
        "bound": _finite(edge.bound),
        "passed": edge.passed,
        "detail": edge.detail,
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _counts(nodes: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(nodes.items()))
