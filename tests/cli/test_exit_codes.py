"""0, 1, 2 and 3 mean what README.md says; 4 is a fault of normfold, told in one paragraph.

Faults are injected: whatever is raised at any stage of any command, and disks that are full.
"""

from __future__ import annotations

import errno
import re
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from normfold.bench import run as bench_run
from normfold.bench import table as bench_table
from normfold.bench import variants
from normfold.cli.app import app
from normfold.models import catalogue
from normfold.pipeline import fold_graph, look, outputs
from normfold.pipeline import run as pipeline
from normfold.report import render, render_verdict, report
from normfold.verify import run as judgement
from normfold.verify import truth, yardstick_float16
from normfold.verify.yardstick import Yardstick
from tests.paths import ROOT
from tests.pipeline.test_run import foldable, names
from tests.system.test_text import assert_inert

RUN = CliRunner()


FOLD: dict[str, tuple[Any, str]] = {
    "load": (look, "load"),
    "split": (look, "split"),
    "plan": (pipeline, "plan"),
    "prepare": (fold_graph, "prepare"),
    "analyse": (fold_graph, "analyse"),
    "rewrite": (fold_graph, "rewrite"),
    "truth": (truth, "establish"),
    "yardstick": (yardstick_float16, "lay"),
    "save": (outputs, "save"),
    "manifest": (outputs, "_manifest"),
    "compare": (Yardstick, "compare"),
    "sketch": (outputs.Sketch, "record"),
    "move": (outputs, "_move"),
    "report": (report.Report, "dumps"),
    "print": (render, "render"),
}
INSPECT: dict[str, tuple[Any, str]] = {name: FOLD[name] for name in ("load", "prepare", "analyse", "print")}
VERIFY: dict[str, tuple[Any, str]] = {
    "load": (judgement, "load_checkpoint"),
    "manifest": (judgement, "read_manifest"),
    "source": (judgement, "load_source"),
    "inputs": (judgement, "common_inputs"),
    "draw": (judgement, "draw_cases"),
    "truth": (judgement, "establish"),
    "yardstick": (judgement, "lay"),
    "compare": (Yardstick, "compare"),
    "print": (render_verdict, "render_verdict"),
}
BENCH: dict[str, tuple[Any, str]] = {
    "collect": (bench_run, "collect"),
    "load": (variants, "load_checkpoint"),
    "fold": (variants, "fold_graph"),
    "machine": (bench_run.machine, "describe"),
    "record": (bench_run, "record"),
    "examine": (bench_run, "examine"),
    "print": (bench_table, "render_bench"),
}
MODELS: dict[str, tuple[Any, str]] = {"list": (catalogue, "to_json")}
COMMANDS = {"fold": FOLD, "inspect": INSPECT, "verify": VERIFY, "bench": BENCH, "models": MODELS}
STAGES = [(command, stage, where) for command, stages in COMMANDS.items() for stage, where in stages.items()]
FAULTS = (
    TypeError("\x1b[31m{[]: 1}\n::error::x"),
    RecursionError("maximum recursion depth exceeded"),
    FileNotFoundError(2, "No such file or directory", "[/b]"),
    AssertionError(),
    KeyError("name"),
    StopIteration(),
)


def words(command: str, folder: Path) -> list[str]:
    source = str(folder / "foldable.onnx")
    return {
        "fold": ["fold", source, "-o", str(folder / "out.onnx"), "--report", str(folder / "r.json")],
        "inspect": ["inspect", source],
        "verify": ["verify", source, "--against", source, "--samples", "2", "--junit", str(folder / "v.xml")],
        "bench": ["bench", source, "--batch", "1", "--rounds", "1", "--threads", "1", "--json", str(folder / "b.json")],
        "models": ["models", "--json"],
    }[command]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """One launch of bench is as good as ten."""
    monkeypatch.setattr(bench_run.bench, "__kwdefaults__", {**bench_run.bench.__kwdefaults__, "launches": 1})


@pytest.mark.parametrize(("command", "stage", "where"), STAGES, ids=[f"{c}-{s}" for c, s, _ in STAGES])
def test_a_fault_at_any_stage_is_exit_4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, stage: str, where: tuple[Any, str]
) -> None:
    foldable(tmp_path)
    fault = FAULTS[(len(command) + len(stage)) % len(FAULTS)]
    raised: list[str] = []

    def broken(*args: object, **options: object) -> None:
        raised.append(stage)
        raise fault

    monkeypatch.setattr(*where, broken)
    result = RUN.invoke(app, words(command, tmp_path))
    assert raised, "the stage was never reached"
    assert result.exit_code == 4, (result.output, result.exception)
    assert_one_paragraph(result.stderr, fault)
    # What was measured before a fault in printing is worth keeping; a model is not.
    kept = {"v.xml"} if command == "verify" else {"b.json"} if (command, stage) == ("bench", "print") else set()
    kept |= {"out.onnx", "r.json"} if (command, stage) == ("fold", "print") else set()
    assert set(names(tmp_path)) == {"foldable.onnx"} | kept
    if command == "verify" and stage != "print":
        assert "internal error" in (tmp_path / "v.xml").read_text(encoding="utf-8")


def assert_one_paragraph(said: str, fault: BaseException) -> None:
    assert said.startswith("normfold: internal error")
    assert said.count("\n") == 1 and said.endswith("\n")
    assert_inert(said)
    for part in ("report", "--debug", "normfold 0", "Python 3", "onnx ", "onnxruntime ", "torch "):
        assert part in said
    assert type(fault).__name__ not in said and "Traceback" not in said


def test_the_traceback_is_there_for_the_asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **options: object) -> None:
        raise TypeError("\x1b[31mred\n::error::x")

    foldable(tmp_path)
    for module, name, command in (
        (fold_graph, "prepare", "fold"),
        (fold_graph, "prepare", "inspect"),
        (judgement, "establish", "verify"),
        (bench_run, "collect", "bench"),
        (catalogue, "to_json", "models"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            result = RUN.invoke(app, [*words(command, tmp_path), "--debug"])
        assert result.exit_code == 4
        assert "Traceback (most recent call last)" in result.stderr
        assert "TypeError" in result.stderr and "in broken" in result.stderr
        assert_inert(result.stderr)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (MemoryError(), "memory ran out"),
        (OSError(errno.ENOSPC, "No space left on device", "/somewhere/[b].bin"), "/somewhere/[b].bin: No space left"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
    ],
)
def test_the_system_is_no_fault_of_normfold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, says: str
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise fault

    foldable(tmp_path)
    monkeypatch.setattr(fold_graph, "prepare", broken)
    result = RUN.invoke(app, words("fold", tmp_path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert says in result.stderr and result.stderr.count("\n") == 1
    assert names(tmp_path) == ["foldable.onnx"]


def test_code_of_the_user_that_exits_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaves(*args: object, **options: object) -> None:
        raise SystemExit(0)

    foldable(tmp_path)
    monkeypatch.setattr(look, "load", leaves)
    result = RUN.invoke(app, words("fold", tmp_path))
    assert result.exit_code == 2
    assert "ended the process" in result.stderr


def test_no_temporary_directory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foldable(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    result = RUN.invoke(app, words("fold", tmp_path))
    assert result.exit_code == 2
    assert "no temporary directory can be made" in result.stderr and "TMPDIR" in result.stderr
    assert names(tmp_path) == ["foldable.onnx"]


def no_space(*args: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_temporary_directory_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foldable(tmp_path)
    monkeypatch.setattr(truth, "establish", no_space)
    result = RUN.invoke(app, words("fold", tmp_path))
    assert result.exit_code == 2
    assert f"the temporary directory {tempfile.gettempdir()} is full" in result.stderr


def failing_write(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full when the file `name` is written."""
    write_text, write_bytes = Path.write_text, Path.write_bytes

    def refusing(real: Callable[..., int]) -> Callable[..., int]:
        def write(self: Path, *args: Any, **options: Any) -> int:
            if self.name == name:
                no_space()
            return real(self, *args, **options)

        return write

    monkeypatch.setattr(Path, "write_text", refusing(write_text))
    monkeypatch.setattr(Path, "write_bytes", refusing(write_bytes))


def test_a_report_that_cannot_be_written_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foldable(tmp_path)
    failing_write(monkeypatch, "r.json")
    result = RUN.invoke(app, words("fold", tmp_path))
    assert result.exit_code == 2
    assert result.stderr == f"normfold: {tmp_path / 'r.json'} cannot be written: No space left on device\n"
    assert names(tmp_path) == ["foldable.onnx"]


def test_a_report_that_cannot_be_written_hides_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foldable(tmp_path)
    failing_write(monkeypatch, "r.json")
    monkeypatch.setattr(Yardstick, "compare", wrong)
    result = RUN.invoke(app, words("fold", tmp_path))
    assert result.exit_code == 1
    assert "verification failed" in result.stderr and "r.json cannot be written" in result.stderr
    assert names(tmp_path) == ["foldable.onnx"]


def wrong(*args: object, **options: object) -> tuple[object, ...]:
    from normfold.verify.judge import FOLD_EDGE, Edge

    return (Edge(FOLD_EDGE, 1.0, 1.0, 1e-6, False, "output 'y' is worst"),)


def test_a_verdict_whose_file_cannot_be_written_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foldable(tmp_path)
    failing_write(monkeypatch, "v.xml")
    result = RUN.invoke(app, words("verify", tmp_path))
    assert result.exit_code == 2
    assert "PASSED" in result.stdout
    assert result.stderr == f"normfold: {tmp_path / 'v.xml'} cannot be written: No space left on device\n"


def test_names_too_long_for_the_disk(tmp_path: Path) -> None:
    source = foldable(tmp_path)
    for name in ("x" * 300 + ".onnx", "é" * 150 + ".onnx"):
        result = RUN.invoke(app, ["fold", str(source), "-o", str(tmp_path / name)])
        assert result.exit_code == 2
        assert "cannot be written: File name too long" in result.stderr
    result = RUN.invoke(app, ["fold", str(source), "-o", str(tmp_path / ("x" * 250 + ".onnx")), "--external-data"])
    assert result.exit_code in (0, 2) and "Traceback" not in result.output


def test_markup_in_the_name_of_an_output_is_text(tmp_path: Path) -> None:
    source = foldable(tmp_path)
    model = onnx.load(source)
    for name in ("y[/b]", "[bold]y", "[link=x]", "\x1b[31my"):
        model.graph.node[-1].output[0] = model.graph.output[0].name = name
        onnx.save(model, source)
        result = RUN.invoke(app, words("verify", tmp_path))
        assert result.exit_code == 0, (name, result.output)
        assert re.escape(name.replace("\x1b", "\\x1b")) in re.escape(result.stdout)


def test_readme_lists_every_code() -> None:
    from normfold.cli.streams import PIPE_CLOSED, STDOUT_FULL
    from normfold.cli.terminal import INTERNAL, INTERRUPTED

    table = (ROOT / "README.md").read_text(encoding="utf-8")
    listed = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE) for code in row.split(",")}
    signals = {128 + signal.SIGHUP, INTERRUPTED, PIPE_CLOSED, 128 + signal.SIGTERM}
    assert listed == {0, 1, 2, 3, INTERNAL, STDOUT_FULL, *signals}
