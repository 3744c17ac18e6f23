"""Help that can be read: the options of a command under headings, with an example below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
        "output", "dry_run", "report", "emit_torch", "external_data", "junit", "summary", "json_file", "as_json",
        "plot", "html", "force", "everything",
    ),
}  # fmt: skip
OTHERS = "Others"
_HEADING = {name: heading for heading, names in _GROUPS.items() for name in names}


def heading_of(parameter: str) -> str:
    """The heading that an option stands under, by the name of its parameter."""
    return _HEADING.get(parameter, OTHERS)


class Command(TyperCommand):
    """A command whose help has its options in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments first, then every group, in the order of the table."""
        sections: dict[str, list[tuple[str, str]]] = {
            "Arguments": [],
            **{heading: [] for heading in _GROUPS},
            OTHERS: [],
        }
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            is_argument = parameter.param_type_name == "argument"
            sections["Arguments" if is_argument else heading_of(parameter.name or "")].append(record)
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)
