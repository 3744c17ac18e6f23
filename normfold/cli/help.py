"""Help that can be read: the options of a command under headings, with an example below."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from typer import BadParameter
from typer.core import TyperCommand

# The parameters of the commands, by what they are about. A test holds this to the commands.
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "What to load": (
        "arch", "model", "model_args", "inputs", "ema", "trust", "trust_code", "allow_unfinished", "against", "config",
    ),
    "What to export": ("task", "opset", "target", "dtype"),
    "How to fold": (
        "norm_affine", "center", "only", "keep_tied", "strict", "equalize", "calibrate", "fixed_statistics",
    ),
    "How to judge": ("npz", "samples", "seed", "providers", "rtol", "atol", "no_verify"),
    "How to measure": (
        "device", "batch", "runtime", "mode", "baseline", "rounds", "launches", "quick", "threads", "jobs", "data",
        "layerwise",
    ),
    "What to write": (
        "output", "dry_run", "report", "emit_torch", "external_data", "junit", "summary", "json_file",
        "plot", "html", "force", "everything",
    ),
}  # fmt: skip
OTHERS = "Others"
_HEADING = {name: heading for heading, names in _GROUPS.items() for name in names}


def heading_of(parameter: str) -> str:
    """The heading that an option stands under, by the name of its parameter."""
    return _HEADING.get(parameter, OTHERS)


# What stands in the line of the option that it is about, and how wide the lines of anything longer are.
_SHORT, _WIDTH = 40, 76

# What the library beneath typer says of a value, and what it means.
_MEANS: Sequence[tuple[str, str]] = (
    (r"Value error, (.*)", r"\1"),
    (r"Input should be a valid integer.*", "give a whole number"),
    (r"Input should be a valid number.*", "give a number"),
    (r"Input should be greater than or equal to (\S+)", r"give \1 or more"),
    (r"Input should be less than or equal to (\S+)", r"give \1 or less"),
)


def in_plain_words(message: str) -> str:
    """A complaint of typer about a value, without the words of the library that checks it."""
    for pattern, meaning in _MEANS:
        message = re.sub(pattern, meaning, message, flags=re.DOTALL)
    # A long one begins a line of its own.
    return message if len(message) <= _SHORT else "\n" + textwrap.indent(textwrap.fill(message, _WIDTH), "  ")


# Commands that are there to print: their --json is followed by what they take as often as by a place.
_PRINTERS = ("inspect", "models", "diff")


def with_stdout(args: Sequence[str], command: str | None) -> list[str]:
    """The arguments, where a --json that is followed by no place gets `-`: stdout."""
    found: list[str] = []
    for word, behind in pairwise([*args, "--"]):
        found.append(word)
        place = behind == "-" or (behind.endswith(".json") if command in _PRINTERS else not behind.startswith("-"))
        if word == "--json" and not place:
            found.append("-")
    return found


class Command(TyperCommand):
    """A command whose help has its options in groups."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As typer does; what it does not like is said in plain words."""
        try:
            return super().parse_args(ctx, with_stdout(args, self.name))
        except BadParameter as error:
            error.message = in_plain_words(error.message)
            raise

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Arguments by their names alone, and behind them the options that have to be there."""
        pieces = [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]
        needed = [each for each in self.get_params(ctx) if each.param_type_name == "option" and each.required]
        return pieces + [f"{min(each.opts, key=len)} {each.metavar}" for each in needed]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments first, with the options that have to be there, then every group, in the order of the table."""
        sections: dict[str, list[tuple[str, str]]] = {
            "Arguments": [],
            **{heading: [] for heading in _GROUPS},
            OTHERS: [],
        }
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            is_needed = parameter.param_type_name == "argument" or parameter.required
            sections["Arguments" if is_needed else heading_of(parameter.name or "")].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
