"""The built-in architectures: what they are called, what they take, and which are alike. No torch: listing is quick.

The rows are in `families_*.py`, `registry.py` builds them.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from normfold.errors import ArchitectureError
from normfold.models.families import Family, Size, each
from normfold.models.families_text import TEXT
from normfold.models.families_vision import VISION

__all__ = [
    "FAMILIES", "Family", "Size",
    "check_name", "closest", "entries", "family_of", "inputs_of", "matching", "to_json", "usual_inputs",
]  # fmt: skip

FAMILIES: tuple[Family, ...] = (*VISION, *TEXT)
_CLOSE = 5


def entries() -> Iterator[tuple[str, Size, Family]]:
    """Every architecture: its name, size and family."""
    for family in FAMILIES:
        for size in family.sizes:
            for name in size.names.values():
                yield name, size, family


def family_of(name: str) -> Family | None:
    """The family of an architecture, None for a name that is not in the catalogue."""
    return next((family for own, _, family in entries() if own == name), None)


def check_name(name: str) -> None:
    """Raise ArchitectureError for a name that is not in the catalogue."""
    if family_of(name) is None:
        close = closest(name)
        likely = f"; did you mean {', or '.join(close)}?" if close else "."
        raise ArchitectureError(
            f"--arch {name!r} is not built in{likely} `normfold models` lists what is; your own code is named with "
            "--model pkg.module:factory."
        )


def usual_inputs(family: Family, size: Size) -> tuple[str, ...]:
    """The input specifications of a size as it comes."""
    return _formatted(family, {**family.usual, **size.options})


def inputs_of(name: str, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The input specifications of an architecture built with these options (all of them, defaults included)."""
    family = family_of(name)
    return _formatted(family, options) if family is not None else ()


def _formatted(family: Family, options: Mapping[str, Any]) -> tuple[str, ...]:
    source, target = each(options.get("vocab", 0))
    return tuple(text.format(**{**options, "source_vocab": source, "target_vocab": target}) for text in family.inputs)


def matching(pattern: str) -> tuple[Family, ...]:
    """The families, sizes and names that a word is in, or that a pattern with `*` or `?` fits; none where none does.

    A pattern that fits a size or a family fits all of its names.
    """
    wanted = pattern.lower().replace("-", "_")
    wanted = wanted if any(sign in wanted for sign in "*?[") else f"*{wanted}*"

    def fits(*words: str) -> bool:
        return any(fnmatch.fnmatchcase(word.lower().replace("-", "_"), wanted) for word in words)

    found = []
    for family in FAMILIES:
        whole = fits(family.key, family.title)
        kept = [
            replace(size, names={kind: name for kind, name in size.names.items() if whole or fits(size.stem, name)})
            for size in family.sizes
        ]
        sizes = tuple(size for size in kept if size.names)
        found += [replace(family, sizes=sizes)] if sizes else []
    return tuple(found)


def to_json(families: Sequence[Family] = FAMILIES) -> list[dict[str, Any]]:
    """The catalogue, or these families of it, for programs: an object for every size."""
    return [
        {
            "name": size.stem,
            "norms": dict(size.names),
            "family": family.title,
            "papers": [f"arXiv:{paper}" for paper in family.papers],
            "parameters": size.parameters,
            "inputs": list(usual_inputs(family, size)),
            "published": dict(size.published),
            "release": family.release or None,
        }
        for family in families
        for size in family.sizes
    ]


def closest(word: str) -> list[str]:
    """The names most like a word that is none of them, the likeliest first; possibly none."""
    names = [name for name, _, _ in entries()]
    lowered = word.lower().replace("-", "_")
    # Authors' own names (T2t_vit_14_all_un1d) begin alike more often than they resemble as a whole.
    return difflib.get_close_matches(lowered, names, n=_CLOSE, cutoff=0.6)
