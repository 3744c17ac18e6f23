"""Which built-in architecture weights belong to, and with which options, from their names and shapes alone.

Families are told by a few names, norms by the endings of theirs, sizes by building the candidates
without values and comparing all names and shapes. What shapes cannot show (head counts) comes from the known size that
has exactly these widths, and is said; where no known size has them, the user is asked.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from normfold import catalogue
from normfold.catalogue import Family
from normfold.errors import ArchitectureError, NormfoldError
from normfold.shown import ROWS, Row, Shapes, norm_kind, un_window, value_of

_LISTED = 3
# A family whose names are mostly there is close; below this it is another network.
_MOST = 0.6
# What initialisation comes down to.
_FILLING = frozenset(("normal_", "uniform_", "kaiming_uniform_"))
# Configuration files that give an eps are of models with RMSNorm; this is `blocks.norm`'s own.
_RMS_EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Said:
    """What a file says of its own architecture, in its words. names: such as "T2t_vit_14_all_un1d".

    options: what its configuration says of options that shapes do not show (heads, eps of the norms).
    """

    names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recognised:
    """An architecture, the options that differ from its defaults, and the sentence for the user."""

    name: str
    options: dict[str, Any]
    sentence: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    """unknown: options that neither shapes nor a known size tell."""

    name: str
    options: dict[str, Any]
    resolved: dict[str, Any]
    hidden: tuple[str, ...]
    unknown: tuple[str, ...]
    difference: str = ""
    distance: int = 0


def defaults(name: str) -> dict[str, Any]:
    """All options of a built-in architecture and what they are when not given."""
    from normfold.models.registry import ARCHITECTURES

    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    return {option: parameter.default for option, parameter in parameters.items()}


def recognise(shapes: Shapes, *, said: Said | None = None) -> Recognised:
    """The one built-in architecture that has exactly these names and shapes.

    Raises ArchitectureError, a clause to go on with: no family has such names, none of its sizes fits (with the
    closest), or several fit (with all of them).
    """
    said = said or Said()
    kind = norm_kind(shapes)
    families = _families(shapes)
    if not families:
        raise ArchitectureError(f"no built-in architecture has names such as {', '.join(list(shapes)[:_LISTED])}")
    candidates = [
        _candidate(name, family, shapes, said) for family in families for name in _of_kind(family, kind) if name
    ]
    if not candidates:
        titles = " or ".join(family.title for family in families)
        kinds = dict.fromkeys(kind for family in families for size in family.sizes for kind in size.names)
        raise ArchitectureError(
            f"its names are those of {titles} with {kind} for norms, which comes with {', '.join(kinds)}"
        )
    compared = [_compared(candidate, shapes) for candidate in _distinct(candidates)]
    fitting = [candidate for candidate in compared if not candidate.distance]
    if not fitting:
        raise ArchitectureError(f"the closest built-in architectures differ from it: {_closest(compared)}")
    return _only(fitting, shapes, said)


def options_shown(name: str, shapes: Shapes) -> dict[str, Any]:
    """Options that differ from the defaults and make the architecture `name` fit; none where they do not."""
    family = catalogue.family_of(name)
    if family is None:
        return {}
    candidate = _candidate(name, family, shapes, Said())
    if not candidate.options or _compared(candidate, shapes).distance:
        return {}
    return candidate.options


def _families(shapes: Shapes) -> list[Family]:
    """Families all of whose names are there; failing those, the ones that most are there of."""
    scores = {family.key: _score(ROWS[family.key], shapes) for family in catalogue.FAMILIES}
    best = max(scores.values())
    return [family for family in catalogue.FAMILIES if scores[family.key] == best >= _MOST]


def _score(row: Row, shapes: Shapes) -> float:
    if any(name in shapes for name in row.absent):
        return 0.0
    return sum(name in shapes for name in row.present) / len(row.present)


def _of_kind(family: Family, kind: str) -> list[str]:
    return [size.names[kind] for size in family.sizes if kind in size.names]


def _candidate(name: str, family: Family, shapes: Shapes, said: Said) -> _Candidate:
    """The architecture with every option that the weights show."""
    row, known = ROWS[family.key], defaults(name)
    shown = {option: value_of(read, shapes) for option, read in row.read.items() if option in known}
    shown = {option: value for option, value in shown.items() if value is not None}
    options = {option: value for option, value in shown.items() if value != known[option]}
    window = un_window(shapes)
    if window is not None and window != _norm_args(known).get("window", 4):
        options["norm_args"] = {**_norm_args(known), "window": window}
    told = {option: value for option, value in said.options.items() if option in row.hidden and option not in shown}
    options.update({option: value for option, value in told.items() if value != known[option]})
    options.update(_said_eps(known, said))
    hidden = tuple(option for option in row.hidden if option not in shown and option not in told)
    unknown = hidden if any(option in options for option in row.sized) else ()
    return _Candidate(name, options, {**known, **options}, hidden, unknown)


def _norm_args(options: Mapping[str, Any]) -> dict[str, Any]:
    return dict(options.get("norm_args") or {})


def _said_eps(known: Mapping[str, Any], said: Said) -> dict[str, Any]:
    """The eps that a configuration file gives, where it is another one than the architecture's."""
    own, eps = _norm_args(known), said.options.get("eps")
    keys = {"eps", *(own.keys() & {"base_eps"})}
    if eps is None or all(own.get(key, _RMS_EPS) == eps for key in keys):
        return {}
    return {"norm_args": {**own, **dict.fromkeys(keys, eps)}}


def _distinct(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Sizes that differ in what the weights show are one network; its name is the one with the fewest options given."""
    best: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda candidate: len(candidate.options)):
        if all(candidate.resolved != other.resolved for other in best):
            best.append(candidate)
    return best


def _compared(candidate: _Candidate, shapes: Shapes) -> _Candidate:
    """The candidate with its difference from the weights."""
    try:
        module = _without_values(candidate.name, candidate.options)
    except NormfoldError as e:
        distance, text = len(shapes), f"it cannot be built with {candidate.options}: {e}"
    else:
        distance, text = _difference(module, shapes, catalogue.family_of(candidate.name))
    return _Candidate(
        candidate.name,
        candidate.options,
        candidate.resolved,
        candidate.hidden,
        candidate.unknown,
        difference=text,
        distance=distance,
    )


def _without_values(name: str, options: Mapping[str, Any]) -> nn.Module:
    """The architecture on the meta device, where parameters have shapes and no values."""
    from normfold import models

    with torch.device("meta"), _Unfilled():
        return models.create(name, **options)


class _Unfilled(TorchFunctionMode):
    """Spares the meta device what it has no kernel for, and imports torch's compiler for: seconds, the first time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in _FILLING:
            return args[0] if args else given["tensor"]
        if name == "mul" and isinstance(args[1], (int, float)):
            return args[0]
        if name == "arange":
            given["device"] = "cpu"
        return func(*args, **given)


def _difference(module: nn.Module, shapes: Shapes, family: Family | None) -> tuple[int, str]:
    """How many entries differ, and a phrase that says which."""
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    computed = family.computed if family is not None else ()
    absent = [name for name in wanted if name not in shapes and not name.endswith(computed)]
    missing = untied(module, absent)
    unexpected = [name for name in shapes if name not in wanted]
    changed = [name for name, shape in wanted.items() if shapes.get(name, shape) != shape]
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing, such as {missing[0]}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected, such as {unexpected[0]}")
    if changed:
        own, other = list(shapes[changed[0]]), list(wanted[changed[0]])
        parts.append(f"{len(changed)} of another shape, such as {changed[0]}, {own} for {other}")
    return len(missing) + len(unexpected) + len(changed), "; ".join(parts)


def untied(module: nn.Module, missing: Sequence[str]) -> list[str]:
    """Those of the missing names whose parameter has no other name that is there."""
    tensors = module.state_dict(keep_vars=True)
    absent = set(missing)
    loaded = {id(tensor) for name, tensor in tensors.items() if name not in absent}
    return [name for name in missing if id(tensors.get(name)) not in loaded]


def _closest(compared: Sequence[_Candidate]) -> str:
    nearest = sorted(compared, key=lambda candidate: candidate.distance)[:_LISTED]
    return ", or ".join(f"{_call(candidate)} ({candidate.difference})" for candidate in nearest)


def _call(candidate: _Candidate) -> str:
    return f"{candidate.name} with {_listed(candidate.options)}" if candidate.options else candidate.name


def _only(fitting: Sequence[_Candidate], shapes: Shapes, said: Said) -> Recognised:
    """The candidate to take. Raises ArchitectureError when what tells them apart is not known."""
    known = [candidate for candidate in fitting if not candidate.unknown]
    fewest = min((len(candidate.options) for candidate in known), default=0)
    known = [candidate for candidate in known if len(candidate.options) == fewest]
    named = [candidate for candidate in known if candidate.name in said.names]
    if len(known) == 1 or len(named) == 1:
        taken = (named or known)[0]
        return Recognised(taken.name, taken.options, _sentence(taken, shapes, said))
    if known:
        listed = "; ".join(f"--arch {candidate.name}{_hidden(candidate)}" for candidate in known)
        raise ArchitectureError(f"several built-in architectures have its names and shapes; give one of: {listed}")
    listed = "; ".join(_question(candidate) for candidate in _unlike(fitting)[:_LISTED])
    raise ArchitectureError(
        f"it has the names of a built-in architecture in a size of its own, and names and shapes do not show "
        f"{' and '.join(fitting[0].unknown)}; give what it was trained with: {listed}"
    )


def _unlike(fitting: Sequence[_Candidate]) -> list[_Candidate]:
    """Candidates that differ in more than what is not known of them."""
    found: dict[str, _Candidate] = {}
    for candidate in fitting:
        known = {option: value for option, value in candidate.resolved.items() if option not in candidate.unknown}
        found.setdefault(repr(known), candidate)
    return list(found.values())


def _hidden(candidate: _Candidate) -> str:
    values = {option: candidate.resolved[option] for option in candidate.hidden}
    return f" ({_listed(values)})" if values else ""


def _question(candidate: _Candidate) -> str:
    """The options to give, with a gap for each that is not known."""
    given = {**candidate.options, **dict.fromkeys(candidate.unknown, "?")}
    return f"--arch {candidate.name} --model-args '{json.dumps(given)}'"


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{option} = {value}" for option, value in options.items())


def _sentence(taken: _Candidate, shapes: Shapes, said: Said) -> str:
    given = f" with {_listed(taken.options)}" if taken.options else ""
    unseen = [f"{option} = {taken.resolved[option]}" for option in taken.hidden]
    if "eps" not in said.options:
        unseen.append("the eps of its norms")
    taken_over = f" What these do not show is that architecture's: {', '.join(unseen)}." if unseen else ""
    return f"Recognised as {taken.name}{given} from {len(shapes)} names and shapes.{taken_over}"
