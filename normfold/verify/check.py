"""The models that a repository verifies again and again: `[tool.normfold]` in its pyproject.toml.

    [tool.normfold]
    samples = 32                       # of every model that does not say otherwise

    [[tool.normfold.models]]
    model = "models/vit.onnx"          # the source is the one that its manifest names,
    against = "checkpoints/vit.pt"     # or this one
    inputs = ["samples.npz"]           # real inputs
    options = ["--arch", "vit"]        # anything else that `normfold verify` takes

Paths are relative to the file. Each model is verified in a process of its own.
"""

from __future__ import annotations

import json
import logging
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normfold.errors import UsageError
from normfold.system.failures import last_line, one_line
from normfold.system.files import scratch
from normfold.system.subprocess_copy import fresh

_log = logging.getLogger(__name__)

_KNOWN = {"model", "against", "inputs", "samples", "seed", "providers", "options"}
# The worst decides: an internal error, then a wrong model, then one without a verdict.
_SEVERITY = (0, 2, 1, 4)


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the configuration. arguments: of `normfold verify`."""

    path: Path
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What became of one model. code: the exit code of `normfold verify`. said: a line. verdict: its JSON, or None.

    junit: its JUnit XML, empty where there is none.
    """

    model: Entry
    code: int
    said: str
    verdict: Mapping[str, Any] | None
    seconds: float
    junit: str = ""


def read_config(path: Path) -> tuple[Entry, ...]:
    """The models of a pyproject.toml. Raises UsageError, naming the entry."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror or error}); it is to have [[tool.normfold.models]], one for each "
            "model (docs/ci.md); --config names another file"
        ) from error
    except ValueError as error:
        raise UsageError(f"{path} is no TOML file ({one_line(error)})") from error
    tool = content.get("tool", {}).get("normfold")
    if not isinstance(tool, dict) or not isinstance(tool.get("models"), list) or not tool["models"]:
        raise UsageError(
            f"{path} has no [[tool.normfold.models]]: write one for each model, and below it its file, such as "
            'model = "models/vit.onnx"'
        )
    unknown = sorted(set(tool) - {"models", "samples", "seed", "providers"})
    if unknown:
        raise UsageError(
            f"{path}: [tool.normfold] has no {', '.join(unknown)}; it has models, samples, seed, providers"
        )
    common = {key: value for key, value in tool.items() if key != "models"}
    return tuple(_entry(path, number, common, entry) for number, entry in enumerate(tool["models"], 1))


def _entry(path: Path, number: int, common: Mapping[str, Any], entry: Any) -> Entry:
    where = f"{path}: model {number} of [[tool.normfold.models]]"
    if not isinstance(entry, dict) or not isinstance(entry.get("model"), str):
        raise UsageError(f'{where} does not name its file: model = "models/vit.onnx"')
    unknown = sorted(set(entry) - _KNOWN)
    if unknown:
        raise UsageError(f"{where} has no {', '.join(unknown)}; it has {', '.join(sorted(_KNOWN))}")
    settings, words = {**common, **entry}, []
    for key, value in settings.items():
        several = isinstance(value, list) and all(isinstance(item, str) for item in value)
        if key in ("inputs", "options") and not several:
            raise UsageError(f'{where}: {key} is a list of strings, such as {key} = ["samples.npz"]')
        if key == "options":
            words += value
        elif key == "inputs":
            words += [word for item in value for word in ("--data", str(path.parent / item))]
        elif key == "against":
            words += ["--against", str(path.parent / str(value))]
        elif key != "model":
            words += [f"--{key}", str(value)]
    return Entry(path.parent / entry["model"], tuple(words))


def check(
    models: Sequence[Entry],
    *,
    jobs: int,
    tell: Callable[[str], None] = lambda _: None,
    junit: bool = False,
    verbosity: int = 0,
) -> Iterator[Checked]:
    """Verify `models`, `jobs` at a time; each result when it is there. tell: called with what starts and ends.

    junit: each result with its JUnit XML, which takes the place of one that the options of a model name. verbosity: as
    of -v; what each process logs is logged here when it ends, behind the name of its model.
    """
    with scratch() as folder, ThreadPoolExecutor(max(1, jobs)) as pool:
        started = [
            pool.submit(_verified, model, folder / str(number), junit, verbosity) for number, model in enumerate(models)
        ]
        tell(f"verifying {len(models)} models, {jobs} at a time")
        for done in as_completed(started):
            result = done.result()
            tell(f"{result.model.path}: {result.said}")
            yield result


def _verified(model: Entry, stem: Path, junit: bool, verbosity: int) -> Checked:
    place, suite = stem.with_suffix(".json"), stem.with_suffix(".xml")
    words = ["--json", str(place), *(["--junit", str(suite)] if junit else []), *["--verbose"] * verbosity]
    run = subprocess.run(
        [*fresh("normfold"), "verify", str(model.path), *model.arguments, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    verdict = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
    if verbosity:
        for line in run.stderr.splitlines():
            _log.info("%s: %s", model.path, line)
    seconds = sum(verdict.get("seconds", {}).values())
    said = "passed" if not run.returncode else _why(run, verdict)
    told = suite.read_text(encoding="utf-8") if suite.exists() else ""
    return Checked(model, run.returncode, said, verdict or None, seconds, told)


def _why(run: subprocess.CompletedProcess[str], verdict: Mapping[str, Any]) -> str:
    """What is wrong, or why there is no verdict, in a line."""
    if run.returncode == 1 and verdict.get("edges"):
        edge = next((edge for edge in verdict["edges"] if not edge["passed"]), verdict["edges"][-1])
        return f"FAILED: {edge['name']}: {edge['detail']}"
    return f"no verdict: {last_line(run.stderr).removeprefix('normfold: ') or f'exit code {run.returncode}'}"


def exit_code(results: Sequence[Checked]) -> int:
    """One code for all: the worst. 4 normfold failed, 1 a model is wrong, 2 one could not be judged, 0 all passed."""
    codes = [result.code if result.code in _SEVERITY else 4 for result in results]
    return max(codes, key=_SEVERITY.index, default=0)
