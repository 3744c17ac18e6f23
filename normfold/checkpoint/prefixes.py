"""Names of weights without what stands in front of them: wrappers, and the part of a larger network that they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from normfold.checkpoint.recognise import likeness
from normfold.errors import ArchitectureError
from normfold.norms.base import Shapes

# Prefixes within prefixes (`model.backbone.`), and how many of the commonest are looked into.
_DEEP, _WIDE = 3, 8
_LISTED = 5


def part_of(shapes: Shapes, families: Collection[str]) -> str:
    """The prefix under which the weights of a built-in architecture stand, with its dot; empty where there is none.

    All names have it, but for families that are parts of larger networks. families: keys of the catalogue.
    Raises ArchitectureError where several parts could be meant.
    """
    best, found = likeness(shapes, families, whole=True), ""
    level = {"": shapes}
    for _ in range(_DEEP):
        level = {prefix: part for outer, names in level.items() for prefix, part in _parts(outer, names)}
        scores = {prefix: likeness(part, families, whole=len(part) == len(shapes)) for prefix, part in level.items()}
        full = [prefix for prefix, score in scores.items() if score == 1.0 > best]
        if len(full) > 1:
            raise ArchitectureError(
                f"it holds several networks ({', '.join(full)}); save the state dict of the one that is meant"
            )
        for prefix, score in scores.items():
            if score > best:
                best, found = score, prefix
    return found


def _parts(outer: str, names: Shapes) -> Iterable[tuple[str, Shapes]]:
    counts = Counter(name.partition(".")[0] for name in names if "." in name)
    for head, _ in counts.most_common(_WIDE):
        yield f"{outer}{head}.", _under(names, f"{head}.")


def _under(names: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in names.items() if name.startswith(prefix)}


def under(state: Mapping[str, torch.Tensor], prefix: str) -> tuple[Mapping[str, torch.Tensor], tuple[str, ...]]:
    """The weights under a prefix by their names without it, and what to say of it."""
    if not prefix:
        return state, ()
    taken = _under(state, prefix)
    others = Counter(name.partition(".")[0] for name in state if not name.startswith(prefix))
    listed = ", ".join(list(others)[:_LISTED]) + (", ..." if len(others) > _LISTED else "")
    left = f"; {sum(others.values())} entries beside them ({listed}) were left out" if others else ""
    return taken, (f"The weights stand under `{prefix}`, which was taken off their names{left}.",)


def strip_prefixes(state: Mapping[str, torch.Tensor], expected: Collection[str]) -> Mapping[str, torch.Tensor]:
    """Remove what DataParallel (`module.`, in front) and torch.compile (`_orig_mod.`, anywhere) add to names.

    expected: the names that the module wants; a module that has a child of such a name keeps it.
    Raises ArchitectureError where two names become one and their values differ.
    """
    names = {name: name for name in state}
    if not any("_orig_mod" in name.split(".") for name in expected):
        names = {name: ".".join(part for part in new.split(".") if part != "_orig_mod") for name, new in names.items()}
    while names and all(new.startswith("module.") for new in names.values()):
        if any(new in expected for new in names.values()):
            break
        names = {name: new.removeprefix("module.") for name, new in names.items()}
    if all(name == new for name, new in names.items()):
        return state
    stripped: dict[str, torch.Tensor] = {}
    for name, new in names.items():
        if new in stripped and not (stripped[new].shape == state[name].shape and equal(stripped[new], state[name])):
            raise ArchitectureError(
                f"several tensors are {new} without the prefixes of wrappers (module., _orig_mod.), {name} among them, "
                "and they differ; save the state dict of the model itself."
            )
        stripped[new] = state[name]
    return stripped


def equal(loaded: torch.Tensor, stored: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers, in the type of the first."""
    stored = stored.to(device=loaded.device, dtype=loaded.dtype)
    if torch.equal(loaded, stored):
        return True
    # A number that is none is like itself here.
    return loaded.is_floating_point() and torch.allclose(loaded, stored, rtol=0.0, atol=0.0, equal_nan=True)
