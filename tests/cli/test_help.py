"""Help: every option under a heading, an example below, at any width."""

from __future__ import annotations

import pytest
import typer.main
from typer.testing import CliRunner

from normfold.checkpoint.formats import FORMATS
from normfold.cli import help as help_module
from normfold.cli.app import app
from tests.paths import ROOT

RUN = CliRunner()
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
WITHOUT = {"debug", "help", "quiet", "verbose", "version"}


def test_every_option_stands_under_a_heading() -> None:
    assert len(COMMANDS) >= 8
    used = set()
    for name, command in COMMANDS.items():
        options = [each for each in command.params if each.param_type_name == "option"]
        for option in options:
            heading = help_module.heading_of(option.name)
            used.add(option.name)
            assert option.name in WITHOUT or heading != help_module.OTHERS, f"{name} {option.name}: give it a heading"
    assert len(used) > 30


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_is_grouped_and_has_an_example(name: str, width: int) -> None:
    result = RUN.invoke(app, [name, "--help"], env={"COLUMNS": str(width)}, terminal_width=width)
    assert result.exit_code == 0
    text = result.stdout
    assert max(map(len, text.splitlines())) <= width
    assert f"Example: normfold {name} " in " ".join(text.split()) + " "
    assert "Others:" in text and "Options:" not in text


def test_every_suffix_that_is_read_is_in_the_help_and_on_the_first_page() -> None:
    """Written out there, for the table of formats imports more than help has time for."""
    suffixes = " ".join(suffix for format in FORMATS for suffix in format.suffixes)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    text = RUN.invoke(app, ["fold", "--help"], env={"COLUMNS": "200"}, terminal_width=200).stdout
    assert len(suffixes.split()) > 5
    assert f"`{suffixes}`" in page
    assert f" {suffixes}, or a Hugging Face folder" in " ".join(text.split())


def test_the_list_of_commands_is_not_cut_off() -> None:
    text = RUN.invoke(app, ["--help"]).stdout
    assert "..." not in text.split("Commands:")[1]
    assert "--install-completion" in text


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("Value error, 'x' is not one of 'a', 'b'.", "'x' is not one of 'a', 'b'."),
        ("Input should be a valid integer, unable to parse string as an integer", "give a whole number"),
        ("Input should be a valid number, unable to parse string as a number", "give a number"),
        ("Input should be greater than or equal to 1", "give 1 or more"),
        ("there is no such thing", "there is no such thing"),
    ],
)
def test_complaints_about_values_are_plain_words(said: str, meant: str) -> None:
    assert help_module.in_plain_words(said) == meant


def test_a_long_complaint_is_lines_of_its_own() -> None:
    said = help_module.in_plain_words("Value error, " + "word " * 40)
    assert said.startswith("\n  word") and max(map(len, said.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "usage", "options"),
    [
        ("fold", "fold [OPTIONS] SOURCE -o OUT.onnx", ["--output"]),
        ("recalibrate", "recalibrate [OPTIONS] SOURCE --data FILE.npz -o OUT.pt", ["--data", "--output"]),
        ("verify", "verify [OPTIONS] MODEL.onnx", []),
    ],
)
def test_what_has_to_be_given_stands_first(name: str, usage: str, options: list[str]) -> None:
    text = RUN.invoke(app, [name, "--help"], env={"COLUMNS": "80"}, terminal_width=80).stdout
    assert text.splitlines()[0].endswith(usage)
    first = text.split("Arguments:")[1].split("\n\n")[0]
    for option in options:
        assert f"{option} " in first
    assert first.count("[required]") == 1 + len(options)
