"""What a benchmark found, as data; B.json is this and nothing more (docs/bench.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from normfold.bench.harness import Recording
from normfold.bench.job import Failure, Probe
from normfold.bench.statistics import CONFIDENCE, Ratio, Summary
from normfold.system.text import json_text

SCHEMA = 1

# Which are set side by side: (numerator, denominator).
COMPARED = (("folded", "layernorm"), ("folded", "unfolded"), ("unfolded", "layernorm"))


@dataclass(slots=True)
class Row:
    """One batch size under one mode of the runtime. sizes: of all dynamic axes.

    recordings, probes: by variant, as far as they were made.
    """

    batch: int
    mode: str
    sizes: Mapping[str, int]
    recordings: dict[str, Recording] = field(default_factory=dict)
    probes: dict[str, Probe | Failure] = field(default_factory=dict)

    def summary(self, variant: str) -> Summary | None:
        """The figures of a variant; None where nothing was timed."""
        recording = self.recordings.get(variant)
        timed = recording is not None and any(turn for launch in recording.samples for turn in launch)
        return Summary.of(recording.samples) if recording is not None and timed else None

    def failure(self, variant: str) -> Failure | None:
        """Why a variant stopped."""
        recording = self.recordings.get(variant)
        return None if recording is None else recording.failure

    def ratios(self) -> dict[tuple[str, str], Ratio]:
        """The comparisons that can be made, as (numerator, denominator)."""
        found: dict[tuple[str, str], Ratio] = {}
        for first, second in COMPARED:
            if first in self.recordings and second in self.recordings:
                ratio = Ratio.between(self.recordings[first].samples, self.recordings[second].samples)
                if ratio is not None:
                    found[first, second] = ratio
        return found


@dataclass(slots=True)
class Bench:
    """A whole benchmark. origins: what each variant is, in words; missing: why one is not there.

    interrupted: it was cut off, and the last row is not complete. quick: few launches and rounds, for a first look.
    """

    model: str
    runtime: str
    device: str
    dtype: str
    rounds: int
    launches: int
    machine: Mapping[str, Any]
    origins: Mapping[str, str]
    missing: Mapping[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    interrupted: bool = False
    quick: bool = False

    def to_json(self) -> dict[str, Any]:
        """B.json as plain data: every raw sample, in seconds, as launches of rounds of calls."""
        return {
            "schema": SCHEMA,
            "model": self.model,
            "runtime": self.runtime,
            "device": self.device,
            "dtype": self.dtype,
            "rounds": self.rounds,
            "launches": self.launches,
            "confidence": CONFIDENCE,
            "quick": self.quick,
            "interrupted": self.interrupted,
            "machine": dict(self.machine),
            "variants": dict(self.origins),
            "missing": dict(self.missing),
            "rows": [_row(row) for row in self.rows],
        }

    def dumps(self) -> str:
        """B.json as text, with a final newline."""
        return json_text(self.to_json(), indent=1)


def _row(row: Row) -> dict[str, Any]:
    return {
        "batch": row.batch,
        "mode": row.mode,
        "sizes": dict(row.sizes),
        "variants": {name: _variant(row, name) for name in row.recordings},
        "ratios": [
            {"of": first, "to": second, **asdict(ratio), "verdict": ratio.verdict}
            for (first, second), ratio in row.ratios().items()
        ],
    }


def _variant(row: Row, name: str) -> dict[str, Any]:
    recording, probe, summary = row.recordings[name], row.probes.get(name), row.summary(name)
    probed = isinstance(probe, Probe)
    return {
        "summary": None if summary is None else asdict(summary),
        "failure": None if recording.failure is None else asdict(recording.failure),
        "memory": asdict(probe.memory) if isinstance(probe, Probe) else None,
        "operators": dict(probe.operators) if isinstance(probe, Probe) else None,
        "device_state": dict(probe.state) if isinstance(probe, Probe) else None,
        "probe_failure": None if probe is None or probed else asdict(probe),
        "warm_up": [{"calls": calls, "stable": stable} for calls, stable in recording.warm_up],
        "samples": recording.samples,
    }
