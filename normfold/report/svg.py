"""Boxes and arrows, as SVG: what reports and pages are drawn with."""

from __future__ import annotations

import html

from normfold.system.text import printable

COLOURS = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5b6675; --paper: #fff; --line: #d8dee6; --fill: #f3f5f8;
  --good: #1a7f37; --mid: #9a6700; --bad: #cf222e; --accent: #0b63ce; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --paper: #12161c; --line: #2f3844;
  --fill: #1b212a; --good: #4cc367; --mid: #d9a62e; --bad: #ff6b63; --accent: #6cb0ff; } }"""
SHAPES = """
svg { display: block; max-width: 100%; height: auto; margin: .4rem 0; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); } .box { fill: var(--fill); stroke: var(--line); }
  .norm { fill: none; stroke: var(--mid);
  stroke-dasharray: 4 3; } .kept { fill: none; stroke: var(--bad); }
  .took { fill: var(--fill); stroke: var(--good);
  stroke-width: 2; } .arrow { stroke: var(--soft); fill: none; } .tip { fill: var(--soft); }
  .bound { stroke: var(--bad);
  stroke-dasharray: 5 4; } .dot { fill: var(--accent); } .over { fill: var(--bad); } .axis { stroke: var(--line); }"""


def box(x: int, y: int, width: int, text: str, style: str) -> str:
    """A box of 26 by `width` with text in it, cut short where it does not fit. style: a class of SHAPES."""
    shown = text if len(text) * 7 < width - 14 else f"{text[: max(4, (width - 24) // 7)]}…"
    return (
        f'<g><title>{escaped(text)}</title><rect x="{x}" y="{y}" width="{width}" height="26" rx="4" class="{style}"/>'
        f'<text x="{x + 8}" y="{y + 17}">{escaped(shown)}</text></g>'
    )


def arrow(x: int, y: int, to_x: int, to_y: int) -> str:
    """An arrow to the right, from one point to another."""
    bend = (x + to_x) // 2
    return (
        f'<path class="arrow" d="M{x} {y} C{bend} {y} {bend} {to_y} {to_x - 5} {to_y}"/>'
        f'<path class="tip" d="M{to_x} {to_y} l-7 -4 v8 z"/>'
    )


def escaped(text: object) -> str:
    """Text as HTML, whatever a file calls its parts."""
    return html.escape(printable(text), quote=True)
