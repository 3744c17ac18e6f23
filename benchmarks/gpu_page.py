"""docs/gpu.md, made of what benchmarks/gpu.sh and benchmarks/gpu_ort.sh found.

    python -m benchmarks.gpu_page [gpu.json] [--ort gpu_ort.json] [-o docs/gpu.md]

Without a record the page says what is not measured, and how to measure it. A rehearsal's page goes beside its record,
never to docs/.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_claims import CLAIMS, Found, judged
from normfold.bench.table import seconds

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "gpu.md"
NOT = "not measured"

HEAD = """# On a GPU

What folding buys on a GPU, beside the papers' own figures. Made by `python -m benchmarks.gpu_page`.

"""

# How to measure it, and what the words of the tables mean.
HOW = (Path(__file__).resolve().parent / "gpu_how.md").read_text(encoding="utf-8")


def page(record: Mapping[str, Any] | None, ort: Mapping[str, Any] | None = None) -> str:
    """The whole page. Without a record, or with a rehearsal's, nothing counts as measured."""
    parts = [HEAD]
    if record is None:
        parts.append("**Not measured.** No GPU was at hand yet; no figure of this repository is of one.\n\n")
    elif record["device"] != "cuda":
        parts.append(
            "**Not measured.** This page is a rehearsal on a CPU with tiny networks: it shows that the study runs, and "
            "its figures mean nothing.\n\n"
        )
    else:
        parts.append(_machine(record))
    parts += ["## The papers' figures\n\n", _claims(record), "\n"]
    if record is not None:
        parts += [_tables(record), _smokes(record), _missing(record)]
    parts.append(_ort(ort))
    return "".join(parts) + HOW


def _machine(record: Mapping[str, Any]) -> str:
    machine = record["machine"]
    memory = machine.get("gpu_memory")
    known = [
        machine.get("gpu"),
        None if memory is None else f"{memory / 2**30:.0f} GiB",
        f"driver {machine.get('driver') or 'unknown'}",
        f"CUDA {machine.get('cuda')}",
        f"torch {machine['versions'].get('torch')}",
        f"Python {machine['python']}",
    ]
    states = [cell["state"] for cell in record["cells"] if cell.get("state")]
    clocks = sorted(state["sm_clock_mhz"] for state in states if "sm_clock_mhz" in state)
    heats = sorted(state["temperature_c"] for state in states if "temperature_c" in state)
    text = ", ".join(filter(None, known))
    if clocks:
        text += f"; SM clock {clocks[0]:.0f} to {clocks[-1]:.0f} MHz"
    if heats:
        text += f", {heats[0]:.0f} to {heats[-1]:.0f} °C"
    return f"{text}. Measured in {record.get('spent_s', 0):.0f} s.\n\n"


def _claims(record: Mapping[str, Any] | None) -> str:
    found = Found(record if record is not None and record["device"] == "cuda" else None)
    lines = ["| claim | its conditions | here | why |\n|---|---|---|---|\n"]
    for claim in CLAIMS:
        verdict, reason = judged(claim, found)
        lines.append(f"| {claim.text} | {claim.conditions} | {verdict} | {reason} |\n")
    return "".join(lines)


def _tables(record: Mapping[str, Any]) -> str:
    cells = [cell for cell in record["cells"] if "variants" in cell]
    parts = []
    for mode in dict.fromkeys(cell["mode"] for cell in cells):
        chosen = [cell for cell in cells if cell["mode"] == mode]
        chosen.sort(key=lambda cell: (list(record["models"]).index(cell["model"]), cell["workload"], cell["batch"]))
        rows = "".join(line for cell in chosen for line in _rows(cell, record["models"]))
        parts.append(
            f"## torch, {mode}\n\n"
            "| network | batch | format | baseline | baseline's time | unfolded | folded | limit | folded / baseline | "
            "folded / unfolded | limit / baseline | norms: baseline, unfolded | busy | "
            "memory: baseline, unfolded, folded |\n"
            f"|{'---|' * 14}\n{rows}\n"
        )
    return "".join(parts)


def _rows(cell: Mapping[str, Any], titles: Mapping[str, str]) -> Iterator[str]:
    """One line a baseline."""
    variants, ratios = cell["variants"], {(each["of"], each["to"]): each for each in cell["ratios"]}
    workload = "" if cell["workload"] == "forward" else f", {cell['workload']}"
    for baseline in (name for name in variants if name not in ("unfolded", "folded", "limit")):
        names = (baseline, "unfolded", "folded", "limit")
        profiles = [variants[name].get("profile", {}) for name in (baseline, "unfolded")]
        columns = [
            titles[cell["model"]] + workload + (" (cut off)" if cell["cut"] else ""),
            str(cell["batch"]),
            cell["column"],
            baseline,
            *(_time(variants[name]) for name in names),
            *(_ratio(ratios.get(pair)) for pair in (("folded", baseline), ("folded", "unfolded"), ("limit", baseline))),
            ", ".join(_percent(profile.get("share")) for profile in profiles),
            _busy(profiles[0], variants[baseline]),
            " / ".join(_memory(variants[name]) for name in names[:3]),
        ]
        yield f"| {' | '.join(columns)} |\n"


def _time(variant: Mapping[str, Any]) -> str:
    if "error" in variant:
        return variant["error"].split(":")[0]
    if "tokens_per_second" in variant:
        return f"{variant['tokens_per_second']:.1f} tokens/s"
    if "median_ms" not in variant:
        return NOT
    spread = (variant["q75_ms"] - variant["q25_ms"]) / variant["median_ms"]
    return f"{seconds(variant['median_ms'] / 1e3)} (± {spread / 2:.1%})"


def _ratio(ratio: Mapping[str, float] | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio['value']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _busy(profile: Mapping[str, Any], variant: Mapping[str, Any]) -> str:
    if not profile.get("busy_us") or "median_ms" not in variant:
        return "-"
    return seconds(profile["busy_us"] / 1e6)


def _memory(variant: Mapping[str, Any]) -> str:
    memory = variant.get("memory") or {}
    known = [memory.get(name) for name in ("weights", "peak")]
    return "-" if None in known else " → ".join(f"{each / 1e6:.0f}" for each in known) + " MB"


def _smokes(record: Mapping[str, Any]) -> str:
    smokes = [cell for cell in record["cells"] if cell["key"].startswith("normfold ")]
    if not smokes:
        return f"## The product\n\n`normfold bench` on this device: {NOT}.\n\n"
    parts = ["## The product\n\n"]
    for cell in smokes:
        output = cell.get("output", cell.get("error", "")).strip()
        parts.append(f"`{cell['key']}`: exit {cell.get('exit')}, {cell['seconds']:.0f} s\n\n```\n{output}\n```\n\n")
    return "".join(parts)


def _missing(record: Mapping[str, Any]) -> str:
    failed = [f"- {cell['key']}: {cell['error']}\n" for cell in record["cells"] if "error" in cell]
    failed += [
        f"- {cell['key']}, {name}: {variant['error']}\n"
        for cell in record["cells"]
        for name, variant in cell.get("variants", {}).items()
        if "error" in variant
    ]
    measured = {cell["key"] for cell in record["cells"]}
    left = [key for key in record["planned"] if key not in measured]
    text = f"## Not measured\n\n{len(left)} of {len(record['planned'])} planned cells: there was no time for them"
    text += f" (the last run ended because {record['stopped']})" if record.get("stopped") else ""
    by_mode: dict[str, int] = {}
    for key in left:
        mode = key.rsplit(", ", 3)[1]
        by_mode[mode] = by_mode.get(mode, 0) + 1
    text += f": {', '.join(f'{count} {mode}' for mode, count in by_mode.items())}.\n\n" if left else ".\n\n"
    return text + ("".join(["What failed:\n\n", *failed, "\n"]) if failed else "")


def _ort(record: Mapping[str, Any] | None) -> str:
    if record is None or (not record["cells"] and record["device"] != "cuda"):
        return (
            f"## onnxruntime\n\nonnxruntime's CUDA provider, with and without CUDA graphs, opset by opset: {NOT}.\n\n"
        )
    machine = record["machine"]
    where = machine.get("gpu") or machine["cpu"]
    rehearsal = "" if record["device"] == "cuda" else "**A rehearsal on a CPU: the figures mean nothing.** "
    parts = [
        f"## onnxruntime\n\n{rehearsal}onnxruntime {record['onnxruntime']}, {where}; inputs and outputs bound on the "
        "device, timed by the clock. More operators at one opset than at another: it expands functions there.\n\n"
        "| network | batch | format | mode | opset | baseline | unfolded | folded | limit | folded / baseline | "
        f"folded / unfolded | operators: baseline, unfolded, folded |\n|{'---|' * 12}\n"
    ]
    for cell in record["cells"]:
        if "variants" not in cell:
            parts.append(f"| {cell['key']}: {cell['error']} |{' |' * 11}\n")
            continue
        variants, ratios = cell["variants"], {(each["of"], each["to"]): each for each in cell["ratios"]}
        baseline = next(iter(variants))
        counts = [variants[name].get("operators") for name in (baseline, "unfolded", "folded") if name in variants]
        columns = [
            record["models"][cell["model"]] + ("" if cell["workload"] == "forward" else f", {cell['workload']}"),
            str(cell["batch"]),
            cell["column"],
            cell["mode"],
            str(cell["opset"]),
            *(_time(variants.get(name, {})) for name in (baseline, "unfolded", "folded", "limit")),
            *(_ratio(ratios.get(pair)) for pair in (("folded", baseline), ("folded", "unfolded"))),
            ", ".join("-" if count is None else str(sum(count.values())) for count in counts),
        ]
        parts.append(f"| {' | '.join(columns)} |\n")
    return "".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("record", type=Path, nargs="?", metavar="gpu.json")
    parser.add_argument("--ort", type=Path, metavar="gpu_ort.json")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    record, ort = (
        None if path is None else json.loads(path.read_text("utf-8")) for path in (options.record, options.ort)
    )
    rehearsal = record is not None and record["device"] != "cuda"
    output = options.output or (options.record.with_suffix(".md") if rehearsal else PAGE)
    output.write_text(page(record, ort), encoding="utf-8")
    print(output)


if __name__ == "__main__":
    main()
