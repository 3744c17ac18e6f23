"""What a fold is going to do, as data: decided before anything is edited, so that it can be printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from normfold.analysis.edits import Edit, NewMap
from normfold.analysis.refusal import Code
from normfold.graph.affine import Array, Frame
from normfold.norms.kinds import is_token_norm

Status = Literal["folded", "partial", "kept"]
# The kind of a constant product that belongs to no norm: it has no statistic.
SCALE = "scale"

ShiftPlace = Literal["reader", "writer", "map", "add", "none"]


@dataclass(frozen=True, slots=True)
class Site:
    """What becomes of one norm, or of a constant product that differs from channel to channel as a norm does.

    name: module path, or the operator's name. kind: the norm, as published. channels: 0 where it is not known.
    status: folded; partial (its scale is folded, its shift stays as one Add); kept. code and reason: why it is not
    folded. into: the modules or operators whose constants take it up. shift: where its shift went: into the operators
    behind it, those in front of it, a map of biases behind a padded Conv, or nowhere (one Add); "none": it has no
    shift; None: it was not placed. shift_elements: how many elements the Adds that it needs touch more than before.
    """

    name: str
    kind: str
    channels: int
    status: Status
    code: Code | None = None
    reason: str | None = None
    into: tuple[str, ...] = ()
    shift: ShiftPlace | None = None
    shift_elements: int = 0

    @property
    def counts(self) -> bool:
        """Whether it is a norm that runs: a constant product is none, and a module that is never called does not."""
        return self.kind != SCALE and self.code != "not-in-graph"

    @property
    def per_token(self) -> bool:
        """Whether its statistics are computed for every token: it stays, whatever becomes of its weight and bias."""
        return is_token_norm(self.kind)


@dataclass(frozen=True, slots=True)
class Untied:
    """A weight that several operators read and that has become several: the bytes that its copies add."""

    name: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Spread:
    """How many times wider the range of a weight is than that of its output channels, in their geometric mean: what a
    scale for the whole weight costs in eight bits, beside one for each channel.

    name: the weight. before: in the source. folded: with the norms folded. equalized: with the free scales chosen too;
    None where that was not asked for.
    """

    name: str
    before: float
    folded: float
    equalized: float | None = None

    @property
    def growth(self) -> float:
        """By how much it grows in all."""
        return (self.folded if self.equalized is None else self.equalized) / self.before


@dataclass(frozen=True, slots=True)
class Branch:
    """One operand of a sum of convolutions: `scale * conv + shift`, per output channel, on stored tensors.

    conv: the tensor that its Conv writes; None: the shared input itself. taps: for each axis behind the channels, which
    taps of the merged kernel its own are.
    """

    conv: str | None
    taps: tuple[tuple[int, ...], ...]
    scale: Array
    shift: Array


@dataclass(frozen=True, slots=True)
class Merge:
    """`output`, a sum of branches of `input`, is written by one Conv, with the attributes of that which writes `base`.

    name, parts: what people call that Conv, and the branches.
    """

    output: str
    input: str
    base: str
    branches: tuple[Branch, ...]
    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """sites: every norm found, in order. frames: the tensors whose frame is not the identity, by name.

    maps: the affine maps to be written anew. edits: the constants that change. merges: sums of branches that become one
    Conv, once everything else is in place. untied: the weights that are copied. spreads: the
    weights whose output channels move apart, or together.
    """

    sites: tuple[Site, ...]
    frames: Mapping[str, Frame] = field(default_factory=dict)
    maps: tuple[NewMap, ...] = ()
    edits: tuple[Edit, ...] = ()
    merges: tuple[Merge, ...] = ()
    untied: tuple[Untied, ...] = ()
    spreads: tuple[Spread, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether the graph stays as it is."""
        return not self.maps and not self.edits and not self.merges
