"""Which built-in architecture weights belong to, and with which options: from names, shapes and what the file states.

Families are told by a few names, norms by the endings of theirs, sizes by building the candidates without values and
comparing all names and shapes. What shapes cannot show and changes the function (head counts) is taken from the file's
own words (stated.py), or from a name that the user gives, or asked for: it is never a default. Words that contradict
the weights are an error that shows both.
"""

from __future__ import annotations

import fnmatch
import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from normfold.checkpoint.evidence import ROWS
from normfold.checkpoint.readers import Row, value_of
from normfold.checkpoint.stated import Said, Statement
from normfold.checkpoint.unfilled import difference, without_values
from normfold.errors import ArchitectureError, NormfoldError
from normfold.models import catalogue
from normfold.models.families import Family
from normfold.norms.base import Shapes
from normfold.norms.kinds import kind_in, kind_with_short

_LISTED = 3
# A family whose names are mostly there is close; below this it is another network.
_MOST = 0.6
# `blocks.norm`'s own, of RMSNorm.
_RMS_EPS = 1e-6
# How architectures are called that have no norm.
_NO_NORM = "identity"
# Options of one size and of the next: a name settles them whatever the size.
_STYLE = ("eps", "rope_base")
# A stated limit beyond this is one that no table of positions has.
_LONGEST = 1 << 16


class UndecidedError(ArchitectureError):
    """The weights are of a built-in architecture, and what tells its options is neither in them nor in the file."""


class ContradictionError(ArchitectureError):
    """What a file states of itself is not what its weights, or the options given, say."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """An architecture, the options that differ from its defaults, and the sentence for the user."""

    name: str
    options: dict[str, Any]
    sentence: str


@dataclass(frozen=True, slots=True)
class _Candidate:
    """unknown: options that change the function and are not known. own_size: whether the weights are of the size
    that the name speaks of, as far as that tells hidden options. assumed: what is the name's own, for want of words.
    told: what was taken from the file's words. against: those that are not so of it, each with what is.
    """

    name: str
    options: dict[str, Any]
    resolved: dict[str, Any]
    unknown: tuple[str, ...] = ()
    own_size: bool = True
    assumed: tuple[str, ...] = ()
    told: tuple[Statement, ...] = ()
    against: tuple[str, ...] = ()
    difference: str = ""
    distance: int = 0


def defaults(name: str) -> dict[str, Any]:
    """All options of a built-in architecture and what they are when not given."""
    from normfold.models.registry import ARCHITECTURES

    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    return {option: parameter.default for option, parameter in parameters.items()}


def recognise(shapes: Shapes, *, said: Said | None = None, given: Mapping[str, Any] | None = None) -> Recognised:
    """The one built-in architecture that has exactly these names and shapes.

    said: what the file states. given: options that the user gives.
    Raises ArchitectureError, a clause to go on with: no family has such names, or none of its sizes fits (with the
    closest); UndecidedError, with the question; ContradictionError.
    """
    said, given = said or Said(), given or {}
    norm = kind_in(shapes)
    kind = _NO_NORM if norm is None else norm.short
    families = _families(shapes)
    if not families:
        raise ArchitectureError(f"no built-in architecture has names such as {', '.join(list(shapes)[:_LISTED])}")
    candidates = [
        _candidate(name, family, shapes, said, given) for family in families for name in _of_kind(family, kind) if name
    ]
    if not candidates:
        titles = " or ".join(family.title for family in families)
        kinds = dict.fromkeys(kind for family in families for size in family.sizes for kind in size.names)
        raise ArchitectureError(
            f"its names are those of {titles} with {kind} for norms, which comes with {', '.join(kinds)}"
        )
    compared = _compared(_distinct(candidates), shapes)
    fitting = [candidate for candidate in compared if not candidate.distance]
    if not fitting:
        raise ArchitectureError(f"the closest built-in architectures differ from it: {_closest(compared)}")
    taken = _only(fitting)
    return Recognised(taken.name, taken.options, _sentence(taken, shapes))


def options_of(
    name: str, shapes: Shapes, *, said: Said | None = None, given: Mapping[str, Any] | None = None
) -> Recognised:
    """The options of the architecture `name`, which was given, for these weights; see `recognise`.

    Where it fits them with no options, those that are given: loading the weights then says what differs.
    Raises UndecidedError where what the name tells of its usual size alone is not known of this one, and
    ContradictionError.
    """
    given = given or {}
    family = catalogue.family_of(name)
    if family is None:
        return Recognised(name, dict(given), "")
    candidate = _candidate(name, family, shapes, said or Said(), given, chosen=True)
    if _compared([candidate], shapes)[0].distance:
        return Recognised(name, dict(given), "")
    taken = _only([candidate])
    derived = {option: value for option, value in taken.options.items() if option not in given}
    sentence = f"From the shapes of the weights: {name} with {_listed(derived)}." if derived else ""
    if taken.told:
        sentence = f"{sentence} {_as_stated(taken)}.".strip()
    return Recognised(name, taken.options, sentence)


def likeness(shapes: Shapes, families: Collection[str], *, whole: bool) -> float:
    """How much of the names of the likest of these families is there, from 0 to 1; of one that is close at all.

    whole: whether these are all the weights; where they are not, only families that are parts of networks count.
    """
    scores = [_score(ROWS[key], shapes) for key in families if whole or ROWS[key].part]
    best = max(scores, default=0.0)
    return best if best >= _MOST else 0.0


def _families(shapes: Shapes) -> list[Family]:
    """Families all of whose names are there; failing those, the ones that most are there of."""
    scores = {family.key: _score(ROWS[family.key], shapes) for family in catalogue.FAMILIES}
    best = max(scores.values())
    return [family for family in catalogue.FAMILIES if scores[family.key] == best >= _MOST]


def _score(row: Row, shapes: Shapes) -> float:
    if any(_is_there(name, shapes) for name in row.absent):
        return 0.0
    return sum(_is_there(name, shapes) for name in row.present) / len(row.present)


def _is_there(name: str, shapes: Shapes) -> bool:
    return name in shapes if "*" not in name else bool(fnmatch.filter(shapes, name))


def _of_kind(family: Family, kind: str) -> list[str]:
    return [size.names[kind] for size in family.sizes if kind in size.names]


def _candidate(
    name: str, family: Family, shapes: Shapes, said: Said, given: Mapping[str, Any], *, chosen: bool = False
) -> _Candidate:
    """The architecture with every option that the weights show, the file states or the user gives.

    chosen: the user said that it is this one.
    """
    row, usual = ROWS[family.key], defaults(name)
    chosen = chosen or any(word == name for word, _ in said.names)
    shown = {option: value_of(read, shapes) for option, read in row.read.items() if option in usual}
    shown = {option: value for option, value in shown.items() if value is not None}
    wanted = {*row.hidden, *row.free, *(option for option in row.read if option not in shown)} - shown.keys()
    told = [statement for statement in said.of(family.key) if statement.option in wanted]
    settled = {**shown, **{statement.option: _own(statement) for statement in reversed(told)}, **given}
    options = {option: value for option, value in settled.items() if option in given or value != usual.get(option)}
    options = _with_norm(options, usual, shapes)
    resolved = {**usual, **options}
    missing = [option for option in row.hidden if option not in settled and not _has_eps(option, given)]
    sizes_differ = any(option in options for option in row.sized)
    unknown = [option for option in missing if not chosen or (sizes_differ and option not in _STYLE)]
    free = [option for option in row.free if option not in settled]
    headless = ["classes"] if resolved.get("classes") == 0 else []
    return _Candidate(
        name,
        options,
        resolved,
        tuple(unknown),
        not sizes_differ,
        tuple(option for option in (*missing, *free) if option not in unknown),
        tuple(statement for statement in told if statement.option not in given),
        # A head that is not there has no number of classes.
        tuple(said.against(family.key, name, {**_facts(row, resolved), **resolved}, (*row.free, *headless))),
    )


def _has_eps(option: str, given: Mapping[str, Any]) -> bool:
    return option == "eps" and "eps" in _norm_args(given)


def _own(statement: Statement) -> Any:
    return min(statement.value, _LONGEST) if statement.option == "positions" else statement.value


def _facts(row: Row, resolved: Mapping[str, Any]) -> Mapping[str, Any]:
    norm = _norm_args(resolved)
    kind = kind_with_short(resolved.get("norm"))
    own = {} if kind is None else kind.defaults
    facts: dict[str, Any] = {f"norm_{option}": norm.get(option, value) for option, value in own.items()}
    if "eps" in row.hidden:
        facts["eps"] = norm.get("eps", _RMS_EPS)
    try:
        return {**facts, **row.facts(resolved)}
    except (TypeError, ZeroDivisionError):  # options that nothing can be built with
        return facts


def _norm_args(options: Mapping[str, Any]) -> dict[str, Any]:
    return dict(options.get("norm_args") or {})


def _with_norm(options: dict[str, Any], usual: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The options with those that are the norms' among `norm_args`, where they are not the architecture's own."""
    rest = {option: value for option, value in options.items() if option != "eps"}
    if "norm_args" in rest:
        return rest
    own, new, kind = _norm_args(usual), _norm_args(usual), kind_in(shapes)
    if kind is not None:
        known = {**kind.defaults, **own}
        new.update({option: value for option, value in kind.options(shapes).items() if value != known.get(option)})
    if "eps" in options:
        keys = {"eps", *(own.keys() & {"base_eps"})}
        if any(own.get(key, _RMS_EPS) != options["eps"] for key in keys):
            new.update(dict.fromkeys(keys, options["eps"]))
    return rest if new == own else {**rest, "norm_args": new}


def _distinct(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Sizes that differ in what the weights show are one network; its name is the one with the fewest options given."""
    best: list[_Candidate] = []
    for candidate in sorted(candidates, key=_far):
        if all(candidate.resolved != other.resolved for other in best):
            best.append(candidate)
    return best


def _far(candidate: _Candidate) -> tuple[bool, int]:
    """How far the weights are from what a name speaks of; for a size that no name has, the family's first will do."""
    return not candidate.own_size, len(candidate.options) if candidate.own_size else 0


def _compared(candidates: Sequence[_Candidate], shapes: Shapes) -> list[_Candidate]:
    """The candidates with their differences from the weights."""
    found: dict[str, tuple[int, str]] = {}
    compared = []
    for candidate in candidates:
        # Unknown options change no name and no shape.
        sure = {option: value for option, value in candidate.resolved.items() if option not in candidate.unknown}
        family = catalogue.family_of(candidate.name)
        key = f"{family.key if family else ''} {sure}"
        if key not in found:
            try:
                found[key] = difference(_built(candidate), shapes, family)
            except NormfoldError as e:
                found[key] = len(shapes), f"it cannot be built with {candidate.options}: {e}"
        distance, text = found[key]
        compared.append(replace(candidate, difference=text, distance=distance))
    return compared


def _built(candidate: _Candidate) -> nn.Module:
    try:
        return without_values(candidate.name, candidate.options)
    except ArchitectureError:
        if "heads" not in candidate.unknown:
            raise
        # The usual number need not divide another width; one that does has the same names and shapes.
        usual = candidate.resolved["heads"]
        any_heads = 1 if isinstance(usual, int) else (2,) * len(usual)  # CSwin halves them
        return without_values(candidate.name, {**candidate.options, "heads": any_heads})


def _closest(compared: Sequence[_Candidate]) -> str:
    nearest = sorted(compared, key=lambda candidate: candidate.distance)[:_LISTED]
    return ", or ".join(f"{_call(candidate)} ({candidate.difference})" for candidate in nearest)


def _call(candidate: _Candidate) -> str:
    return f"{candidate.name} with {_listed(candidate.options)}" if candidate.options else candidate.name


def _only(fitting: Sequence[_Candidate]) -> _Candidate:
    """The candidate to take. Raises ArchitectureError when what tells them apart is not known."""
    agreeing = [candidate for candidate in fitting if not candidate.against]
    if not agreeing:
        raise ContradictionError(
            f"it states {'; '.join(fitting[0].against[:_LISTED])}. Where the file is wrong about itself, save its "
            "state dict alone and give what is right"
        )
    known_ones = [candidate for candidate in agreeing if not candidate.unknown]
    nearest = min(map(_far, known_ones), default=(False, 0))
    known_ones = [candidate for candidate in known_ones if _far(candidate) == nearest]
    if len(known_ones) == 1 or (known_ones and not known_ones[0].own_size):
        return known_ones[0]
    if known_ones:
        listed = "; ".join(f"--arch {candidate.name}" for candidate in known_ones)
        raise UndecidedError(f"several built-in architectures have its names and shapes; give one of: {listed}")
    hidden = " and ".join(agreeing[0].unknown)
    questions = dict.fromkeys(question for candidate in _unlike(agreeing) for question in _questions(candidate))
    raise UndecidedError(
        f"its names and shapes are those of {agreeing[0].name}; the file states no more, and they do not show "
        f"{hidden}; give what it was trained with: {'; '.join(questions)}"
    )


def _unlike(fitting: Sequence[_Candidate]) -> list[_Candidate]:
    """Candidates that differ in more than what is not known of them, or that are known sizes."""
    found: dict[str, _Candidate] = {}
    for candidate in fitting:
        sure = {option: value for option, value in candidate.resolved.items() if option not in candidate.unknown}
        found.setdefault(repr(sure) if candidate.options else candidate.name, candidate)
    return list(found.values())[:_LISTED]


def _questions(candidate: _Candidate) -> Iterator[str]:
    """The options to give: a name, where it tells what is not known, and the options with a gap for each of these."""
    values = {option: _value(candidate, option) for option in candidate.unknown}
    if not candidate.options or all(option in _STYLE for option in candidate.unknown):
        yield f"--arch {candidate.name} ({_listed(values)})"
    if candidate.options or any(option not in _STYLE for option in candidate.unknown):
        given = {**candidate.options, **dict.fromkeys(candidate.unknown, "?")}
        yield f"--arch {candidate.name} --model-args '{json.dumps(given)}'"


def _value(candidate: _Candidate, option: str) -> Any:
    eps = _norm_args(candidate.resolved).get("eps", _RMS_EPS)
    return candidate.resolved.get(option, eps)


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{option} = {value}" for option, value in options.items())


def _as_stated(taken: _Candidate) -> str:
    return f"As the file states: {', '.join(map(str, taken.told))}"


def _sentence(taken: _Candidate, shapes: Shapes) -> str:
    given = f" with {_listed(taken.options)}" if taken.options else ""
    stated = f" {_as_stated(taken)}." if taken.told else ""
    unseen = [f"{option} = {_value(taken, option)}" for option in taken.assumed if option != "eps"]
    if not any(statement.option == "eps" for statement in taken.told):
        unseen.append("the eps of its norms")
    taken_over = f" What these do not show is that architecture's: {', '.join(unseen)}." if unseen else ""
    return f"Recognised as {taken.name}{given} from {len(shapes)} names and shapes.{stated}{taken_over}"
