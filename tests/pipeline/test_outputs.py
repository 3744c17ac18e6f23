"""What a run leaves on disk when it is stopped, killed or refused: the old model or the new one, whole."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

from normfold import errors
from normfold.bench.variants import collect
from normfold.cli.app import app
from normfold.graph import write
from normfold.pipeline import run as pipeline
from normfold.system import files
from normfold.system.spill import Folder
from tests.pipeline.test_run import CHANNELS, NORM, foldable, names, save
from tests.support.kills import in_a_copy, refill, same, weights

RUN = CliRunner()
# What changes a file system, as Python tells it.
CHANGES = ("open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight goes into the data file."""
    monkeypatch.setattr(write, "_SMALL_BYTES", 16)


def another(folder: Path) -> Path:
    """A model of the names and shapes of `foldable`, with other weights."""
    nodes = [
        helper.make_node("BatchNormalization", ["x", *NORM], ["n"], name="norm", epsilon=1e-5),
        helper.make_node("MatMul", ["n", "W1"], ["h"]),
        helper.make_node("Gemm", ["h", "W2", "b2"], ["y"]),
    ]
    return save(folder / "another.onnx", nodes)


def place(tmp_path: Path) -> tuple[Path, Path]:
    """A source, and the output of another one with its data beside it."""
    folder = tmp_path / "output"
    folder.mkdir()
    output = folder / "out.onnx"
    pipeline.fold(another(tmp_path), output, external_data=True)
    (folder / "r.json").write_text("old report")
    (folder / "other.onnx.data").write_text("of another model")
    return foldable(tmp_path), output


def fold(source: Path, output: Path) -> None:
    pipeline.fold(source, output, verify=False, external_data=True, force=True, report=output.with_name("r.json"))


def whole(output: Path) -> bool:
    """Every file of a run that went well, and no other."""
    data = [name for name in names(output.parent) if name.endswith(".data")]
    return names(output.parent) == sorted(["out.onnx", "r.json", *data]) and len(data) == 2


def test_the_old_data_goes_with_the_old_model(tmp_path: Path) -> None:
    source, output = place(tmp_path)
    old, before = weights(output), names(output.parent)
    fold(source, output)
    assert whole(output) and names(output.parent) != before and not same(weights(output), old)
    assert (output.parent / "other.onnx.data").read_text() == "of another model"
    # Once more: the same content has the same name and stays where it is.
    before = names(output.parent)
    fold(source, output)
    assert names(output.parent) == before
    # Inside the file there is no data to keep.
    pipeline.fold(source, output, force=True)
    assert names(output.parent) == ["other.onnx.data", "out.onnx", "r.json"]


def test_data_that_the_source_reads_is_not_removed(tmp_path: Path) -> None:
    """Two graphs on one data file, named after the one that is replaced."""
    source = foldable(tmp_path)
    model = onnx.load(source)
    output = tmp_path / "out.onnx"
    onnx.save(model, output, save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    shutil.copy(output, source)
    before = weights(source)
    report = pipeline.fold(source, output, force=True)
    assert report.output is not None and report.output.data == ()
    assert same(weights(source), before)
    source.unlink()
    (tmp_path / "somebody.data").write_text("somebody's")
    onnx.save(model, output, save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    pipeline.fold(foldable(tmp_path), output, force=True)
    assert names(tmp_path) == ["foldable.onnx", "out.onnx", "somebody.data"]


def test_data_under_another_name_stays(tmp_path: Path) -> None:
    """It may be anybody's: only what is named after the graph is its own."""
    source, output = foldable(tmp_path), tmp_path / "out.onnx"
    onnx.save(onnx.load(source), output, save_as_external_data=True, location="weights.data", size_threshold=0)
    pipeline.fold(source, output, force=True)
    assert names(tmp_path) == ["foldable.onnx", "out.onnx", "weights.data"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt(), SystemExit(143)])
def test_a_fault_at_any_rename_keeps_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    source, output = place(tmp_path)
    saved = shutil.copytree(output.parent, tmp_path / "saved")
    real, tried = os.replace, 0
    told = "cannot be written: Input/output error" if isinstance(error, OSError) else None
    for number in range(10):
        count = iter(range(100))

        def fails(start: Path, end: Path, count: Iterator[int] = count, number: int = number) -> None:
            if next(count) == number:
                raise error
            real(start, end)

        monkeypatch.setattr(files.os, "replace", fails)
        if number == 4:
            fold(source, output)
            break
        with pytest.raises(errors.OutputError if told else type(error), match=told) as caught:
            fold(source, output)
        assert told is None or ".normfold" not in str(caught.value)
        assert names(output.parent) == names(saved)
        assert all((output.parent / name).read_bytes() == (saved / name).read_bytes() for name in names(saved))
        tried += 1
    assert tried == 4, "onnx-ir's own of the data; then data, report, graph"
    assert whole(output)


def test_a_kill_before_any_change_of_a_file_leaves_a_whole_model(tmp_path: Path) -> None:
    """The process ends before its first change of the file system, before its second, and so on to the last."""
    source, output = place(tmp_path)
    saved = shutil.copytree(output.parent, tmp_path / "saved")
    old, outcomes = weights(output), []
    assert in_a_copy(lambda: fold(source, output)) == 0
    new = weights(output)
    for number in range(200):
        refill(output.parent, saved)
        status = in_a_copy(lambda number=number: killed_at(number, output.parent, lambda: fold(source, output)))
        found = weights(output)
        assert same(found, old) or same(found, new), number
        assert (output.parent / "other.onnx.data").read_text() == "of another model"
        assert (output.parent / "r.json").read_text() == "old report" or not same(found, new) or whole_json(output)
        outcomes.append(same(found, new))
        if status == 0:
            break
    assert status == 0 and len(outcomes) > 8
    assert outcomes == sorted(outcomes), "once the new model is there it stays"
    assert 0 < sum(outcomes) < len(outcomes) - 4


def whole_json(output: Path) -> bool:
    return bool(json.loads((output.parent / "r.json").read_text(encoding="utf-8")))


def killed_at(number: int, folder: Path, work: Callable[[], None]) -> None:
    """Run `work`, and end the process without warning before its change `number` of what lies in `folder`."""
    seen = 0

    def hook(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event in CHANGES and str(args[0]).startswith(str(folder)):
            if event == "open" and isinstance(args[2], int) and not args[2] & (os.O_WRONLY | os.O_RDWR):
                return
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)
    work()


def test_a_killed_copy_leaves_no_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def work() -> None:
        kept = Folder()
        assert kept.path.is_dir()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_copy(work) == -signal.SIGKILL and not list(tmp_path.iterdir())


def killed_at_random(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    source, output = place(tmp_path)
    # Large enough to be caught in the middle of its writing.
    model = onnx.load(source)
    model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(1 << 20).astype(np.float32), "large"))
    model.graph.node.append(helper.make_node("Identity", ["large"], ["z"]))
    model.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [1 << 20]))
    onnx.save(model, source)
    command = [sys.executable, "-m", "tests.support.kills", str(source), str(output), str(count), "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=3000)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(row["killed"] for row in found) == count
    assert {row["outcome"] for row in found} <= {"old", "new"}, found


def test_kills_at_random_moments(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 5)


@pytest.mark.slow
def test_200_kills_at_random_moments(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 200)


def test_two_graphs_go_back_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = [tmp_path / "d" / name for name in ("a.onnx", "b.onnx")]
    places = [tmp_path / name for name in ("a.onnx", "b.onnx")]
    (tmp_path / "d").mkdir()
    for draft in drafts:
        draft.write_text("new")
    places[0].write_text("old")
    real = os.replace

    def fails(start: Path, end: Path) -> None:
        if end == places[1]:
            raise OSError(5, "Input/output error")
        real(start, end)

    monkeypatch.setattr(files.os, "replace", fails)
    with pytest.raises(errors.OutputError, match=r"b\.onnx cannot be written: Input/output error"):
        files.move(list(zip(drafts, places, strict=True)))
    assert places[0].read_text() == "old" and not places[1].exists()


def test_links_are_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems have none."""

    def no_links(*args: object, **options: object) -> None:
        raise OSError(1, "Operation not permitted")

    source, output = place(tmp_path)
    saved, real = shutil.copytree(output.parent, tmp_path / "saved"), os.replace

    def fails(start: Path, end: Path) -> None:
        if end == output and start.name == output.name:
            raise OSError(5, "Input/output error")
        real(start, end)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "link", no_links)
        patch.setattr(files.os, "replace", fails)
        with pytest.raises(errors.OutputError):
            fold(source, output)
    assert names(output.parent) == names(saved)
    assert all((output.parent / name).read_bytes() == (saved / name).read_bytes() for name in names(saved))


def test_an_empty_data_file_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "_SMALL_BYTES", 256)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["B", 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["B", 4])],
        [numpy_helper.from_array(np.full(4, 2.0, np.float32), "two")],
    )
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    report = pipeline.fold(path, tmp_path / "out.onnx", external_data=True)
    assert report.output is not None and report.output.data == ()
    assert names(tmp_path) == ["a.onnx", "out.onnx"]


def test_every_type_moves_inside(tmp_path: Path) -> None:
    """Weights beside a source, of every type, are the same inside the output."""
    model = ir.load(foldable(tmp_path))
    arrays = {
        str(kind): ir.Tensor(np.arange(-4, 4).astype(kind.numpy()), dtype=kind)
        for kind in ir.DataType
        if kind.is_integer() or kind.is_floating_point()
    }
    for name, tensor in arrays.items():
        value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        model.graph.initializers[name] = value
    ir.save(model, tmp_path / "beside.onnx", external_data="weights", size_threshold_bytes=0)
    beside = ir.load(tmp_path / "beside.onnx")
    assert write.stored_beside(beside) == {tmp_path / "weights"}
    write.save(beside, tmp_path / "inside.onnx")
    assert write.data_of(tmp_path / "inside.onnx") == ()
    assert write.stored_beside(beside) == {tmp_path / "weights"}, "the model itself is as it was"
    one, other = onnx.load(tmp_path / "inside.onnx"), onnx.load(tmp_path / "beside.onnx")
    found = [{t.name: numpy_helper.to_array(t) for t in each.graph.initializer} for each in (one, other)]
    assert found[0].keys() == found[1].keys() and len(found[0]) > 15
    for name, array in found[0].items():
        assert array.dtype == found[1][name].dtype and array.tobytes() == found[1][name].tobytes(), name


def test_float16_of_a_model_with_its_weights_beside_it(tmp_path: Path) -> None:
    """As torch exports one by default; folded, and measured."""
    source = foldable(tmp_path)
    onnx.save(onnx.load(source), source, save_as_external_data=True, location="foldable.onnx.data", size_threshold=0)
    report = pipeline.fold(source, tmp_path / "out.onnx", dtype="float16")
    assert report.edges and not report.failed
    made = collect(source, tmp_path, half=True)
    assert [variant.name for variant in made.found] == ["layernorm", "unfolded", "folded"]
    for path in (tmp_path / "out.onnx", *(variant.file for variant in made.found)):
        kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
        assert onnx.TensorProto.FLOAT16 in kinds and onnx.TensorProto.FLOAT not in kinds, path
        ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_every_file_that_was_written_is_named(tmp_path: Path) -> None:
    source, output, report = foldable(tmp_path), tmp_path / "out.onnx", tmp_path / "r.json"
    words = ["fold", str(source), "-o", str(output), "--report", str(report), "--external-data"]
    result = RUN.invoke(app, words, env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    written = re.findall(r"^Written: ([^,\n]*)", result.stdout, flags=re.MULTILINE)
    assert sorted(written) == sorted(str(path) for path in tmp_path.iterdir() if path != source)
    assert len(written) == 3 and CHANNELS
