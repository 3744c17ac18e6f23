"""Tables in narrow terminals."""

from __future__ import annotations

import re
import time

import pytest
from rich.console import Console

from normfold.cli.terminal import print_rich
from normfold.report.render import add_row, line, table_of

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


NAME = "blocks.10.attention.qkv_projection/MatMul_2"


@pytest.mark.parametrize("width", [30, 40, 50])
@pytest.mark.parametrize("style", ["", "bold"])
def test_a_name_is_broken_at_its_marks(width: int, style: str) -> None:
    table = table_of("Norm", "Kind", "Channels", right=(2,))
    add_row(table, line(NAME, style=style), f"scale into {NAME}", "64")
    console = Console(width=width)
    with console.capture() as laid_out:
        console.print(table)
    lines = laid_out.get().splitlines()
    parts = set(re.findall(r"[^./_]+", NAME)) | {"scale", "into", "64", "Norm", "Kind", "Channels"}
    found = set(re.findall(r"[^./_ ]+", laid_out.get().replace("\n", " ")))
    # "attention" and "projection" are longer than a column of 30.
    assert found <= parts or width == 30, found - parts
    assert max(map(len, lines)) <= width
    assert "".join(line.split()[0] for line in lines[1:] if not line.startswith(" ")).startswith("blocks.10.")


@pytest.mark.parametrize(
    ("word", "width", "parts"),
    [
        ("blocks.0.norm1", 8, ["blocks.", "0.norm1"]),
        ("blocks.0.norm1", 14, ["blocks.0.norm1"]),
        ("a/b_c", 2, ["a/", "b_", "c"]),
        ("BatchNormalization", 7, ["BatchNo", "rmaliza", "tion"]),
        ("BatchNormalization.x", 9, ["BatchNorm", "alization", ".", "x"]),
        ("model..weights", 8, ["model..", "weights"]),
        ("to blocks.0.norm1 and", 8, ["to", "blocks.", "0.norm1", "and"]),
        ("weights___", 8, ["weights_", "__"]),
    ],
)
def test_what_is_broken_where(word: str, width: int, parts: list[str]) -> None:
    assert [one.plain.strip() for one in line(word).wrap(Console(), width, overflow="fold")] == parts


def test_a_flood_of_marks_takes_no_time() -> None:
    began = time.process_time()
    assert len(line("a." * 10_000).wrap(Console(), 7, overflow="fold")) == 3334
    assert time.process_time() - began < 1.5


def test_no_spaces_at_the_end_of_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    table = table_of("Norm", "Status")
    add_row(table, "a", "folded")
    add_row(table, "b", "")
    print_rich(table)
    lines = capsys.readouterr().out.split("\n")
    assert len(lines) == 4 and all(line == line.rstrip() for line in lines)
