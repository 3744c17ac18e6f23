"""What `verify` found, as data; its JSON is this and nothing more (docs/verification.md, field by field)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from normfold._version import __version__
from normfold.system.numbers import finite
from normfold.system.text import json_text
from normfold.verify.judge import EXPORT_EDGE, HALF_EDGE, RUNTIME_EDGE, Edge, Judged

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Fault:
    """Where a model begins to be wrong; what was not found is None.

    tensor: the first tensor that both graphs have and that is past its bound; after: the last one before it that both
    agree on. relative, bound: the error there and what would have passed. site: the first norm whose folding, with all
    before it, is past the bound. tolerance: the relative error of the outputs that would have passed. note: anything
    else that was found.
    """

    tolerance: float
    tensor: str | None = None
    after: str | None = None
    relative: float | None = None
    bound: float | None = None
    site: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything that one run of `verify` has to say.

    source: None when only the recorded outputs were at hand. method: how the truth was computed. cases: the samples,
    in words. unexercised: what no sample reached, so that nothing is proved of it. notes: what a reader should know of
    how it was judged. seconds: wall-clock time per stage.
    """

    normfold: str
    onnxruntime: str
    model: str
    sha256: str
    source: str | None
    method: str
    cases: tuple[str, ...]
    edges: tuple[Edge, ...]
    fault: Fault | None = None
    unexercised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every edge held."""
        return all(edge.passed for edge in self.edges)

    @property
    def failed(self) -> tuple[Edge, ...]:
        """The edges that did not hold."""
        return tuple(edge for edge in self.edges if not edge.passed)

    def to_json(self) -> dict[str, Any]:
        """The verdict as plain data. A figure that is not finite is null, for JSON has no word for it."""
        return {
            "schema": SCHEMA,
            "normfold": self.normfold,
            "onnxruntime": self.onnxruntime,
            "model": {"path": self.model, "sha256": self.sha256},
            "source": self.source,
            "passed": self.passed,
            "method": self.method,
            "samples": list(self.cases),
            "edges": [_edge(edge, self.cases) for edge in self.edges],
            "fault": None if self.fault is None else _fault(self.fault),
            "unexercised": list(self.unexercised),
            "notes": list(self.notes),
            "seconds": {stage: round(seconds, 4) for stage, seconds in self.seconds.items()},
        }

    def dumps(self) -> str:
        """`to_json` as text, with a final newline."""
        return json_text(self.to_json())


def blamed(edge: Edge) -> str:
    """Whose fault it is when this edge fails: export, float16, runtime or model."""
    return (
        "export"
        if edge.name == EXPORT_EDGE
        else "float16"
        if edge.name == HALF_EDGE
        else "runtime"
        if edge.name.startswith(RUNTIME_EDGE)
        else "model"
    )


def headline(verdict: Verdict) -> str:
    """The verdict in a line."""
    if verdict.passed:
        return "PASSED: the model computes what its source computes."
    at_fault = {
        "export": "the exported graph differs from the checkpoint",
        "float16": "float16 cannot hold the source, whatever is done with its norms",
        "runtime": "onnxruntime's optimisations break the model, which is right without them",
        "model": "the model differs from its source",
    }
    return f"FAILED: {'; '.join(at_fault[who] for who in dict.fromkeys(blamed(edge) for edge in verdict.failed))}."


def fault_lines(fault: Fault) -> Iterator[str]:
    """Where a model begins to be wrong, in sentences."""
    if fault.tensor is not None:
        after = f", after {fault.after}, which agrees" if fault.after else ""
        yield f"First tensor past its bound: {fault.tensor} (relative {fault.relative:.1e} > {fault.bound:.1e}){after}."
    if fault.site is not None:
        yield f"First norm whose folding is past the bound: {fault.site}."
    if fault.note:
        yield fault.note
    yield f"It would have passed with a relative tolerance of {fault.tolerance:.1e}."


def error_json(message: str) -> str:
    """The JSON of a run that came to no verdict, as text."""
    content = {"schema": SCHEMA, "normfold": __version__, "passed": None, "error": message}
    return json_text(content)


def _edge(edge: Edge, cases: tuple[str, ...]) -> dict[str, Any]:
    return {
        "name": edge.name,
        "passed": edge.passed,
        "blamed": None if edge.passed else blamed(edge),
        "detail": edge.detail,
        "outputs": [_output(output, cases) for output in edge.outputs],
    }


def _output(output: Judged, cases: tuple[str, ...]) -> dict[str, Any]:
    worst = output.samples[output.worst]
    ulps = worst.max_abs / output.scale / output.ulp if output.ulp else None
    return {
        "name": output.name,
        "passed": output.passed,
        "scale": finite(output.scale),
        "bound": finite(output.bound),
        "worst": {"sample": cases[output.worst], "ulps": finite(ulps)} | _figures(output, output.worst),
        "median": finite(output.median),
        "samples": [_figures(output, number) for number in range(len(output.samples))],
    }


def _figures(output: Judged, number: int) -> dict[str, Any]:
    sample = output.samples[number]
    return {
        "max_abs": finite(sample.max_abs),
        "relative": finite(sample.max_abs / output.scale),
        "rms": finite(sample.rms),
        "allowed": None if output.allowed is None else finite(output.allowed[number]),
        "cosine": finite(sample.cosine),
        "top1": sample.top1,
        "top5": sample.top5,
        "first_token": None if sample.first_token is None else list(sample.first_token),
    }


def _fault(fault: Fault) -> dict[str, Any]:
    return {
        "tolerance": finite(fault.tolerance),
        "tensor": fault.tensor,
        "after": fault.after,
        "relative": finite(fault.relative),
        "bound": finite(fault.bound),
        "site": fault.site,
        "note": fault.note,
    }
