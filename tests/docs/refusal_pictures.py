"""The pictures of docs/refusals.md, drawn from the graphs that the tests fold: `python -m tests.docs.refusal_pictures`.

For every code a graph that has the reason, as it is and as it is folded, and below it a twin that differs in what is
marked and folds as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.fill_in import fill_in
from normfold.analysis.plan import Plan
from normfold.report.svg import COLOURS, SHAPES, arrow, box, escaped
from tests.paths import DOCS
from tests.support.graphs import fold
from tests.support.refusals import CASES

PAGE, FOLDER, PART = DOCS / "refusals.md", DOCS / "pictures", "pictures"

GAP, ROW, LEFT, LETTER, PADDING = 26, 40, 118, 7, 22
WHAT = "a graph whose norm stays, and a twin that folds"
OWN = """
.paper { fill: var(--paper); } .soft { fill: var(--soft); } .norm { fill: none; }
.marked { fill: var(--fill); stroke: var(--accent); }"""
# Constants of so many entries are shown by their values; others have names.
FEW = 4
# Operators that a norm is written in here, by the tensors that they write; and what is left of one.
NORM = ("n0", "n", "n.add.2")


@dataclass(frozen=True)
class Box:
    """A tensor: the operator that writes it, or an input of the graph. reads: of the boxes in front of it."""

    name: str
    text: str
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One graph. marked: the classes of a box by its name."""

    title: str
    boxes: tuple[Box, ...]
    marked: dict[str, str]


def boxes(model: onnx.ModelProto, shown: Iterable[str]) -> tuple[Box, ...]:
    """The operators of a graph in order, constants written into them. shown: constants whose values matter."""
    graph = model.graph
    given = {value.name: value for value in graph.input}
    stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer if each.name not in given}
    writer = {name: node.output[0] for node in graph.node for name in node.output}
    ends = [Box(f"{value.name} ", "output", (writer[value.name],)) for value in graph.output if value.name in writer]
    read = {name for end in ends for name in end.reads}
    found: list[Box] = []
    for node in reversed(graph.node):
        # What nobody reads is there for the twin.
        if node.output[0] not in read:
            continue
        names = [name for name in (*node.input, *outer(node)) if name and name not in stored]
        reads = tuple(dict.fromkeys(writer.get(name, name) for name in names))
        constants = [text_of(name, stored[name], name in shown) for name in node.input if name in stored]
        attributes = [attribute_text(each) for each in node.attribute if not each.HasField("g")]
        found.insert(0, Box(node.output[0], " ".join([node.op_type, *constants, *attributes]), reads))
        read.update(reads)
    return (*(Box(name, input_text(value)) for name, value in given.items() if name in read), *found, *ends)


def input_text(value: onnx.ValueInfoProto) -> str:
    dims = [str(dim.dim_param or dim.dim_value) for dim in value.type.tensor_type.shape.dim]
    return f"{value.name} [{','.join(dims)}]" if dims else value.name


def attribute_text(attribute: onnx.AttributeProto) -> str:
    value = helper.get_attribute_value(attribute)
    if attribute.name == "to":
        value = onnx.TensorProto.DataType.Name(value).lower()
    return f"{attribute.name}={f'{value:.2g}' if isinstance(value, float) else str(value).replace(' ', '')}"


def outer(node: onnx.NodeProto) -> Iterator[str]:
    """What the bodies of a node read of the graph around them."""
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from inner.input


def text_of(name: str, array: np.ndarray, shown: bool) -> str:
    if array.dtype.kind in "ib" and array.size <= FEW + 2:
        return str(array.tolist()).replace(" ", "").lower()
    if (shown or array.ndim == 0) and array.size <= FEW:
        values = " ".join(f"{value:.2g}" for value in array.reshape(-1))
        shape = f" as {'×'.join(map(str, array.shape))}" if array.ndim > 1 else ""
        return f"{name}={f'[{values}]' if array.ndim else values}{shape}"
    return name.split(".")[0] + ("′" if "." in name else "")


@cache
def refused(code: str) -> tuple[onnx.ModelProto, onnx.ModelProto, Plan]:
    """The graph that has the reason, as it is and as it is folded."""
    model = CASES[code].refused()
    return model, *fold(model)


def panels(code: str) -> Iterator[Panel]:
    case = CASES[code]
    shown, twin = set(case.twin_constants), case.folding()
    model, left, _ = refused(code)
    own, twins = boxes(model, shown), boxes(twin, shown)
    why = reason(code)
    blamed = [each.name for each in own if why.startswith((f"{each.name} (", f"{each.name}:"))]
    yield Panel("stays" if case.status == "kept" else "refused", own, styles(own, kept=blamed))
    if case.status == "partial":
        after = boxes(left, shown)
        yield Panel("folded in part", after, styles(after, took=renewed(after)))
    known = {(each.text, each.reads) for each in own}
    others = [each.name for each in twins if (each.text, each.reads) not in known]
    yield Panel("its twin", twins, styles(twins, marked=others))
    after = boxes(fold(twin)[0], shown)
    yield Panel("folded", after, styles(after, took=renewed(after)))


def styles(graph: Sequence[Box], **marked: Sequence[str]) -> dict[str, str]:
    """The classes of the boxes that are more than a box."""
    found = {each.name: ["norm"] for each in graph if each.name in NORM}
    for style, names in marked.items():
        for name in names:
            found.setdefault(name, []).append(style)
    return {name: " ".join(classes) for name, classes in found.items()}


def reason(code: str) -> str:
    """What the report says of the norm."""
    return next(str(site.reason) for site in refused(code)[2].sites if site.code == code)


def renewed(graph: Sequence[Box]) -> list[str]:
    """The operators whose constants are new."""
    return [each.name for each in graph if "′" in each.text and each.name not in NORM]


def picture(code: str, drawn: Sequence[Panel]) -> str:
    """All panels below each other."""
    parts: list[str] = []
    width, y = 0, 8
    for panel in drawn:
        made, right, rows = laid_out(panel, y)
        parts += [f'<text x="8" y="{y + 17}" class="soft">{escaped(panel.title)}</text>', *made]
        width, y = max(width, right + 8), y + ROW * rows + 8
    title = escaped(f"{code}: {WHAT}")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" role="img" '
        f'aria-label="{title}">\n<title>{title}</title>\n<style>{COLOURS}{SHAPES}{OWN}</style>\n'
        f'<rect width="{width}" height="{y}" rx="6" class="paper"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def laid_out(panel: Panel, top: int) -> tuple[list[str], int, int]:
    """The boxes of a graph from left to right, each behind what it reads: what is drawn, how wide, how many rows."""
    rank: dict[str, int] = {}
    row: dict[str, int] = {}
    for each in panel.boxes:
        rank[each.name] = 1 + max((rank[name] for name in each.reads), default=-1)
        used = {row[name] for name in row if rank[name] == rank[each.name]}
        row[each.name] = 0 if 0 not in used else max(used) + 1
    width = {each.name: width_of(each) for each in panel.boxes}
    widest = [max(width[name] for name in rank if rank[name] == number) for number in range(max(rank.values()) + 1)]
    left = {name: LEFT + sum(widest[: rank[name]]) + GAP * rank[name] for name in rank}
    middle = {name: top + ROW * row[name] + 13 for name in row}
    lane = top + ROW * (max(row.values()) + 1) + 4
    parts, lanes = [], 0
    for each in panel.boxes:
        x, y = left[each.name], middle[each.name]
        parts.append(box(x, y - 13, width[each.name], each.text, panel.marked.get(each.name, "box")))
        for name in each.reads:
            start, height, bend = left[name] + width[name], middle[name], x - GAP
            between = [other for other in rank if rank[name] < rank[other] < rank[each.name]]
            if any(row[other] == row[name] for other in between):
                # Past what stands between, below all rows.
                lanes, low = 1, lane
                down = f"C{start + 12} {height} {start + 4} {low} {start + 20} {low}"
                parts.append(f'<path class="arrow" d="M{start} {height} {down}"/>')
                start, height = start + 20, low
            parts += [f'<path class="arrow" d="M{start} {height} H{bend}"/>'] if between else []
            parts.append(arrow(bend if between else start, height, x, y))
    return parts, max(left[name] + width[name] for name in left), max(row.values()) + 1 + lanes


def width_of(box_: Box) -> int:
    return LETTER * len(box_.text) + PADDING


def drawings() -> dict[str, str]:
    """The pictures by code."""
    return {code: picture(code, list(panels(code))) for code in sorted(CASES)}


def section() -> Iterator[str]:
    """What the page says beside each."""
    for code in sorted(CASES):
        yield from ("", f"### {code}", "", f"> {reason(code)}", "", f"![{code}: {WHAT}](pictures/{code}.svg)")
    yield ""


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for code, drawing in drawings().items():
        (FOLDER / f"{code}.svg").write_text(drawing, encoding="utf-8")
    fill_in(PAGE, PART, section())


if __name__ == "__main__":
    main()
