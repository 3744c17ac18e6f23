"""What folding buys in every runtime and precision of `normfold bench`, for someone who decides: docs/worth.md.

    python -m benchmarks.worth FOLDER [--only WORD ...] [--launches 10] [--rounds 20] [--threads 2] [--quick]
                               [--write docs/worth.md]

A cell is one network in one runtime and precision: its LayerNorm twin, the unfolded and the folded network, in turns.
Each cell is kept in FOLDER as it is measured and is not measured again; the page is made of what lies there. --only:
the cells that have all these words in their names. --quick: tiny networks and few rounds, to see that it runs; its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.fill_in import fill_in
from benchmarks.latency import MODELS, QUICK, THREADS, Model, saved
from benchmarks.worth_share import share_of_norms
from normfold.bench.run import bench
from normfold.bench.runners import RUNNERS
from normfold.bench.table import seconds
from normfold.errors import NormfoldError
from normfold.system.files import write_text

MEASURED = ("deit_tiny_prepbn", "postnorm_encoder", "t2t_vit_14_un")
VARIANTS = ("layernorm", "unfolded", "folded")
NOT = "not measured"
FASTER, SAME, SLOWER = "faster", "no measurable difference", "slower"


@dataclass(frozen=True)
class Cell:
    """One network in one runtime and precision."""

    model: Model
    runtime: str
    dtype: str
    mode: str = ""  # the first of the runtime's where it is not said

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(filter(None, (self.model.arch, self.runtime, self.dtype, self.mode)))

    @property
    def record(self) -> dict[str, Any]:
        """What is known of it before it is measured."""
        return {"title": self.model.title, "runtime": self.runtime, "dtype": self.dtype, "mode": self.mode}


def cells(models: Sequence[Model]) -> list[Cell]:
    """Everything that a runtime can be asked for on this CPU."""
    return [
        Cell(model, runner.name, dtype, mode)
        for model in models
        for runner in RUNNERS.values()
        if runner.name != "torch"
        for dtype in runner.dtypes
        for mode in ("", *(runner.modes["cpu"][1:] if dtype == "int8" else ()))
    ]


def recorded(cell: Cell, place: Path) -> dict[str, Any]:
    """What lies there of a cell; its name alone, where it was not measured."""
    return json.loads(place.read_text(encoding="utf-8")) if place.exists() else cell.record


def measure(cell: Cell, *, threads: int, **options: Any) -> dict[str, Any]:
    """The cell as plain data; `refused` says why there is no benchmark."""
    modes = [cell.mode] if cell.mode else []
    with tempfile.TemporaryDirectory() as folder:
        path = saved(cell.model, Path(folder))
        try:
            done = bench(
                path,
                batches=(1,),
                threads=threads,
                runtime=cell.runtime,
                dtype=cell.dtype,
                modes=modes,
                progress=print,
                **options,
            )
        except NormfoldError as error:
            return {**cell.record, "refused": str(error)}
        share = share_of_norms(path, Path(folder), cell.runtime, cell.dtype, threads)
    return {**cell.record, "bench": done.to_json(), "share": share}


Gain = tuple[float, float | None, float | None]


def ratio(record: Mapping[str, Any], of: str, to: str = "folded") -> Gain | None:
    """Time of a variant over another's, with its interval: above 1, the other is faster. None where not measured."""
    for found in record["bench"]["rows"][0]["ratios"] if "bench" in record else ():
        if (found["of"], found["to"]) == (to, of):
            low, high = found["low"], found["high"]
            return 1 / found["value"], *((None, None) if low is None else (1 / high, 1 / low))
    return None


def told(found: Gain | None) -> str:
    """A ratio for people."""
    if found is None:
        return NOT
    value, low, high = found
    return f"{value:.2f}" if low is None else f"{value:.2f} ({low:.2f} to {high:.2f})"


def verdict(found: Gain | None) -> str:
    """faster, slower, or no measurable difference; not measured."""
    if found is None or found[1] is None or found[2] is None:
        return NOT
    return FASTER if found[1] > 1 else SLOWER if found[2] < 1 else SAME


def machine(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where and how it was measured."""
    run = [record["bench"] for record in records if "bench" in record]
    if not run:
        yield "Nothing has been measured yet."
        return
    last = run[-1]["machine"]
    versions = {name: version for each in run for name, version in each["machine"]["versions"].items()}
    wanted = [package for runner in RUNNERS.values() for package in runner.packages if package in versions]
    loads = sorted(each["machine"]["load"] or 0.0 for each in run)
    rounds, launches = ({each[key] for each in run} for key in ("rounds", "launches"))
    yield (
        f"{last['cpu']}, {last['threads']} thread{'s' * (last['threads'] != 1)}, batch 1; "
        f"{', '.join(f'{package} {versions[package]}' for package in wanted)}. "
        f"{_span(sorted(rounds))} rounds in {_span(sorted(launches))} launches of fresh processes, the three variants "
        f"of a row in turns; in brackets {run[-1]['confidence']:.0%} intervals over the launches. Load when they "
        f"began: {loads[0]:.1f} to {loads[-1]:.1f}, of other work on the machine and of the row before."
    )


def _span(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"


def ratios(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """One row a cell."""
    yield "| network | runtime | precision | folded | LayerNorm / folded | unfolded / folded | norms in the profile |"
    yield "|---|---|---|---:|---|---|---:|"
    for record in records:
        head = f"| {record['title']} | {_runtime(record)} | {_precision(record)} | "
        if "bench" not in record:
            why = record.get("refused", "").removeprefix(f"--dtype {record['dtype']}: ")
            yield head + f"{NOT}{': ' if why else ''}{why} | | | |"
            continue
        variants = record["bench"]["rows"][0]["variants"]
        failed = {name: variants[name]["failure"] for name in VARIANTS if variants.get(name, {}).get("failure")}
        summary = variants.get("folded", {}).get("summary")
        folded = seconds(summary["median"]) if summary else NOT
        if failed:
            name, why = next(iter(failed.items()))
            folded += f" ({name}: {why['reason'][:120]})"
        share = NOT if record["share"] is None else f"{record['share']:.1%}"
        yield head + " | ".join((folded, *(told(ratio(record, of)) for of in VARIANTS[:2]), share)) + " |"


def verdicts(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where it pays and where it does not, by the intervals alone."""
    for of, to, what in (
        ("unfolded", "folded", "The folded network beside the same network unfolded"),
        ("layernorm", "folded", "The folded network beside its LayerNorm twin"),
        ("layernorm", "unfolded", "The unfolded network beside its LayerNorm twin"),
    ):
        judged: dict[str, list[str]] = {}
        for record in records:
            found = ratio(record, of, to)
            if found is not None and verdict(found) != NOT:
                place = f"{record['title']}, {_runtime(record)} {_precision(record)} ({found[0]:.2f})"
                judged.setdefault(verdict(found), []).append(place)
        yield ""
        yield f"**{what}**, of {sum(map(len, judged.values()))} rows with an interval:"
        yield ""
        for said in (FASTER, SAME, SLOWER):
            places = judged.get(said, [])
            yield f"- {said}: {len(places)}{': ' if places else ''}{'; '.join(places)}"
        if of == "unfolded" and not judged.get(SLOWER) and judged.get(FASTER):
            loses, same = len(judged[FASTER]), len(judged.get(SAME, ()))
            yield ""
            yield f"Not folding loses in {loses} of these rows, gains in none, and cannot be told apart in {same}."


def _runtime(record: Mapping[str, Any]) -> str:
    return RUNNERS[record["runtime"]].title.split(" on ")[0]


def _precision(record: Mapping[str, Any]) -> str:
    """The dtype, or what the mode is where it is not the first."""
    mode = record.get("mode", "")
    return RUNNERS[record["runtime"]].glosses.get(mode, mode) or str(record["dtype"])


def memory(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Weights, and the most that a process held until the model was open and while it ran."""
    yield "| network | runtime | precision | weights | at load | at run |"
    yield "|---|---|---|---|---|---|"
    for record in records:
        if record["runtime"] not in ("ort", "openvino") or "bench" not in record:
            continue
        variants = record["bench"]["rows"][0]["variants"]
        columns = []
        for column in ("weights", "load", "run"):
            known = [(variants.get(name, {}).get("memory") or {}).get(column) for name in VARIANTS]
            columns.append(" / ".join("?" if value is None else f"{value / 1e6:.0f}" for value in known))
        yield f"| {record['title']} | {_runtime(record)} | {_precision(record)} | " + " | ".join(columns) + " |"


def main() -> None:
    """Measure what is not there yet, and make the page of what is."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD")
    parser.add_argument("--launches", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--write", type=Path, metavar="docs/worth.md")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    settings = (
        {"rounds": 2, "launches": 2} if options.quick else {"rounds": options.rounds, "launches": options.launches}
    )
    models = QUICK if options.quick else [model for model in MODELS if model.arch in MEASURED]
    options.folder.mkdir(parents=True, exist_ok=True)
    every = cells(models)
    for cell in every:
        place = options.folder / f"{cell.name}.json"
        if not place.exists() and all(word in cell.name for word in options.only):
            write_text(place, json.dumps(measure(cell, threads=options.threads, **settings), indent=1) + "\n")
    records = [recorded(cell, options.folder / f"{cell.name}.json") for cell in every]
    for part in (machine, verdicts, ratios, memory):
        fill_in(options.write, part.__name__, part(records))


if __name__ == "__main__":
    main()
