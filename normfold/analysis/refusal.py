"""Why a fold cannot be done, as a value: not an error. docs/refusals.md explains every code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Code = Literal[
    "across-channels",
    "broadcast",
    "channels-cut",
    "dynamic-axes",
    "dynamic-pad",
    "dynamic-slice",
    "fill-value",
    "frame-conflict",
    "graph-input",
    "graph-output",
    "in-subgraph",
    "infinite-map",
    "narrow-add",
    "negative-scale",
    "no-bias",
    "not-affine",
    "not-asked",
    "not-centred",
    "not-contracted",
    "not-floating",
    "not-in-graph",
    "not-stored",
    "one-bound",
    "quantised",
    "reshaped-channels",
    "scale-range",
    "shared-weight",
    "shift-meets-activation",
    "shift-meets-padding",
    "statistic",
    "statistic-read",
    "training-mode",
    "two-tensors",
    "uneven-taps",
    "unknown-shape",
    "wall",
    "zero-scale",
]


@dataclass(frozen=True, slots=True)
class Refuse:
    """A code that stays the same from version to version, and a sentence that names the operator or the tensor."""

    code: Code
    reason: str


class Labelled(Protocol):
    """What has a name for people: an operator."""

    @property
    def label(self) -> str: ...


def refuse(op: Labelled, code: Code, why: str) -> Refuse:
    """The refusal of one operator."""
    return Refuse(code, f"{op.label}: {why}")
