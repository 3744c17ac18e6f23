"""Tables in narrow terminals."""

from __future__ import annotations

import pytest
from rich.console import Console

from normfold.report.render import add_row, table_of

FIGURES = ("4.1e-04", "2.1e-05", "4.5e-04")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_figure_stands_in_one_line(width: int) -> None:
    table = table_of("Verified", "Max abs", "Relative", "Bound", "Result", right=(1, 2, 3))
    add_row(table, "unoptimised -> optimised", *FIGURES, "passed")
    console = Console(width=width)
    with console.capture() as laid_out:
        console.print(table)
    lines = laid_out.get().splitlines()
    assert all(len(line) <= width for line in lines)
    assert any(line.split()[-4:] == [*FIGURES, "passed"] for line in lines), lines


def test_figures_without_room_are_not_cut_off() -> None:
    table = table_of("Variant", *"abcdefgh", right=range(1, 9))
    figures = [f"{10000 + number} ms" for number in range(8)]
    add_row(table, "folded", *figures)
    console = Console(width=40)
    with console.capture() as laid_out:
        console.print(table)
    digits = [letter for letter in laid_out.get() if letter.isdigit()]
    assert sorted(digits) == sorted(letter for figure in figures for letter in figure if letter.isdigit())
