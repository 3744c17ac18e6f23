"""What a row of the catalogue is: a size of an architecture, its options and norms; rows are in families_*.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Options = Mapping[str, Any]
# An option of an encoder and a decoder: one number for both, or one for each.
Each = int | Sequence[int]


def each(value: Each) -> tuple[int, int]:
    """Of encoder and decoder. Raises ValueError for another number of values."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2:
        raise ValueError(f"encoder and decoder take one value or two, not {value!r}")
    return pair[0], pair[1]


@dataclass(frozen=True, slots=True)
class Size:
    """One size of a family.

    names: the architecture's name by norm kind. norms: the options that make these norms, by kind. options: what tells
    this size from others. parameters: of the first kind. published: files that the authors released, by name, and the
    architecture that each holds.
    """

    stem: str
    parameters: int
    names: Mapping[str, str]
    norms: Mapping[str, Options]
    options: Options = field(default_factory=dict)
    published: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Family:
    """Sizes of one architecture. papers: arXiv numbers. release: where the authors' files are.

    inputs: specifications with options of the architecture in braces; usual: what these are when they are not given.
    options: what all of its sizes share. computed: endings of state-dict entries that building the model gives and that
    some files therefore leave out.
    """

    key: str
    title: str
    papers: tuple[str, ...]
    inputs: tuple[str, ...]
    usual: Options
    sizes: tuple[Size, ...]
    options: Options = field(default_factory=dict)
    release: str = ""
    computed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Norms:
    """The norms that a vision family comes with.

    eps: of the LayerNorm, also of the one that PRepBN fades from over `steps`. warm: see `blocks.norm`. slab: STEM
    alone is the name of PRepBN.
    """

    eps: float = 1e-5
    steps: int = 300000
    warm: int | None = 0
    slab: bool = False

    def of(self, stem: str, *, bare: bool) -> dict[str, tuple[str, Options]]:
        """Names and options by kind. bare: what was published as STEM_prepbn holds RepBN without the schedule."""
        schedule = {"base_eps": self.eps, "steps": self.steps, **({} if self.warm == 0 else {"warm": self.warm})}
        faded = stem if self.slab else f"{stem}_linearnorm" if bare else f"{stem}_prepbn"
        return {
            "ln": (f"{stem}_ln", {"norm": "ln", "norm_args": {"eps": self.eps}}),
            "bn": (f"{stem}_bn", {"norm": "bn"}),
            "un": (f"{stem}_un", {"norm": "un"}),
            "repbn": (f"{stem}_prepbn" if bare else f"{stem}_repbn", {"norm": "repbn"}),
            "prepbn": (faded, {"norm": "prepbn", "norm_args": schedule}),
        }

    def size(
        self, stem: str, parameters: int, options: Options | None = None, *, file: bool = False, bare: bool = False
    ) -> Size:
        """A row. file: the authors released this size."""
        kinds = self.of(stem, bare=bare)
        own = kinds["repbn" if bare else "prepbn"][0]
        names = {kind: name for kind, (name, _) in kinds.items()}
        norms = {kind: made for kind, (_, made) in kinds.items()}
        return Size(stem, parameters, names, norms, options or {}, {f"{own}.pth": own} if file else {})
