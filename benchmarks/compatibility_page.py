"""What compatibility.py measured of a model, and its tables in docs/compatibility.md."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.optimizers import TOOLS, installed

# The tools of this page, of those that optimizers.py has.
COLUMNS = ("onnxslim", "onnxsim", "onnxoptimizer", "onnxruntime extended", "onnxruntime all", "onnxscript")


@dataclass(frozen=True)
class Tried:
    """What a tool made of a model. left: norms still there. note: why there is no result. running: see the function."""

    left: int = 0
    nodes: int = 0
    error: float = 0.0
    right: bool = False
    note: str = ""
    running: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One model. norms: fixed maps per channel; kept: reasons and how many. statistics: LayerNorm, RMSNorm and such.

    left: what is counted in the folded graph as in those of the tools. error, bound: relative, against float64; right:
    whether one is within the other.
    """

    name: str
    group: str
    norms: int
    folded: int
    partial: dict[str, int]
    kept: dict[str, int]
    statistics: int
    left: int
    nodes: tuple[int, int]
    error: float
    bound: float
    tools: dict[str, Tried]
    right: bool = True
    running: dict[str, int] = field(default_factory=dict)

    @staticmethod
    def of(told: dict[str, Any]) -> Row:
        """What `asdict` made of a row."""
        tools = {name: Tried(**tried) for name, tried in told["tools"].items()}
        return Row(**{**told, "nodes": tuple(told["nodes"]), "tools": tools})


def shortcomings(rows: Collection[Row]) -> list[str]:
    """Rows in which a right result of another tool holds fewer norms than ours."""
    return [
        f"{row.name}: {tool} leaves {tried.left}, normfold {row.left}"
        for row in rows
        for tool, tried in row.tools.items()
        if tried.right and tried.left < row.left
    ]


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} `{code}`" for code, number in counts.items()) or "0"


def _ours(rows: Collection[Row]) -> list[str]:
    lines = [
        "| model | norms | folded | partial | kept | statistics | nodes | error | bound |",
        "|---|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    for group in dict.fromkeys(row.group for row in rows):
        lines.append(f"| *{group}* | | | | | | | | |")
        lines += [
            f"| {r.name} | {r.norms} | {r.folded} | {_reasons(r.partial)} | {_reasons(r.kept)} | {r.statistics} "
            f"| {r.nodes[0]} → {r.nodes[1]} | {r.error:.1e} | {r.bound:.1e} |"
            for r in rows
            if r.group == group
        ]
    return lines


def _cell(row: Row, tool: str) -> str:
    tried = row.tools.get(tool)
    if tried is None:
        return "not measured"
    if tried.note:
        return tried.note
    verdict = f"**beyond the bound**: {tried.error:.0e}" if math.isfinite(tried.error) else "**fails at run time**"
    return str(row.norms - tried.left) + ("" if tried.right else f" ({verdict})")


def _theirs(rows: Collection[Row]) -> list[str]:
    lines = [
        f"| model | norms | normfold | {' | '.join(COLUMNS)} |",
        f"|---|---:|---:|{'---:|' * len(COLUMNS)}",
    ]
    measured = [row for row in rows if row.norms or not all(tried.right for tried in row.tools.values())]
    for row in measured:
        cells = " | ".join(_cell(row, tool) for tool in COLUMNS)
        lines.append(f"| {row.name} | {row.norms} | {row.norms - row.left} | {cells} |")
    sums = [str(sum(row.norms for row in measured)), str(sum(row.norms - row.left for row in measured))]
    for tool in COLUMNS:
        right = [row for row in measured if tool in row.tools and row.tools[tool].right]
        sums.append(f"{sum(row.norms - row.tools[tool].left for row in right)} in {len(right)}")
    lines.append(f"| **all, of right results** | {' | '.join(sums)} |")
    return lines


def page(rows: Collection[Row]) -> list[str]:
    """Both tables, and what they were made with."""
    versions = {TOOLS[name][0]: version for name, version in installed().items()}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    beyond = [f"{row.name}: {tool}" for row in rows for tool, tried in row.tools.items() if not tried.right]
    named = "; ".join(beyond)
    return [
        "## normfold",
        "",
        *_ours(rows),
        "",
        "## Other tools, on the same graphs",
        "",
        *_theirs(rows),
        "",
        f"{len(rows)} models. normfold folds at least as many norms as any right result of another tool in "
        f"{len(rows) - len({line.partition(':')[0] for line in shortcomings(rows)})} of them. Results of other "
        f"tools that are beyond the bound or fail at run time: {len(beyond)}{f' ({named})' if named else ''}.",
        "",
        f"Measured with {listed}, torch {torch.__version__.split('+')[0]}, Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} cores.",
    ]
