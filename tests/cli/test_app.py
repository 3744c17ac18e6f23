"""Options, exit codes and what is printed where. The work itself is replaced: see test_pipeline.py for that."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import normfold
from normfold.analysis.plan import Site
from normfold.checkpoint.options import LoadOptions
from normfold.cli.app import app
from normfold.errors import CheckpointError, DifferenceError, NotFoldedError
from normfold.pipeline import look
from normfold.pipeline import run as pipeline
from normfold.pipeline.options import FoldOptions
from normfold.report.report import GraphReport, OutputInfo, Report, SourceInfo
from normfold.verify.judge import Edge

RUN = CliRunner()
SOURCE = SourceInfo("vit.pt", "ab" * 32, "torch", "vit", {}, ("x:float32[B,8]",), trusted=False)
LONG = "encoder.stages.2.blocks.11.cross_attention.output_projection_norm"
SITES = (
    Site("blocks.0.norm1", "UN", 64, "folded", into=("blocks.0.attn.qkv", "blocks.0.attn.proj")),
    Site(LONG, "RepBN", 128, "kept", "two-tensor-product", f"{LONG}.Mul: multiplies two tensors"),
)
GRAPH = GraphReport(
    name="",
    inputs=SOURCE.inputs,
    sites=SITES,
    nodes_before={"MatMul": 3, "Add": 4, "Div": 2},
    nodes_after={"MatMul": 3, "Add": 3},
    output=OutputInfo("out.onnx", 1_500_000, "cd" * 32, 1_600_000),
    edges=(Edge("original -> folded", 1.2e-6, 2e-6, 3e-6, True, "fine"),),
)
REPORT = Report(
    normfold="0.1.0",
    source=SOURCE,
    graphs=(GRAPH,),
    seconds={"load": 0.1, "verify": 2.0},
    warnings=("half precision was converted",),
)


@pytest.fixture(autouse=True)
def here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands below name is there, and looked at only by what is replaced."""
    folder = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(folder)
    (folder / "a.pt").write_bytes(b"a.norm.weight b.norm.weight")
    (folder / "pkg").mkdir()


def returning(monkeypatch: pytest.MonkeyPatch, name: str, result: Report | BaseException) -> dict[str, Any]:
    """Replace a step of the pipeline; what it was called with ends up in the dictionary."""
    called: dict[str, Any] = {}

    def step(*args: object, **options: object) -> Report:
        called.update(options, args=args)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(look if name == "look" else pipeline, name, step)
    return called


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "onnx", "onnxruntime", "onnx_ir", "numpy", "rich.console"]
    code = f"import sys, normfold.cli.app; print([name for name in {heavy} if name in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"
    code = (
        "import sys, normfold.cli.app\nsys.argv = ['normfold', 'fold', '--help']\ntry:\n    normfold.cli.app.main()\n"
        f"except SystemExit as end:\n    print(end.code, [name for name in {heavy} if name in sys.modules])"
    )
    assert run_python(code).stdout.splitlines()[-1] == "0 []"


def test_threads_that_wait_sleep_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    returning(monkeypatch, "run", REPORT)
    for said, kept in ((None, "PASSIVE"), ("ACTIVE", "ACTIVE")):
        monkeypatch.setenv("OMP_WAIT_POLICY", said or "")
        if said is None:
            del os.environ["OMP_WAIT_POLICY"]
        assert RUN.invoke(app, ["fold", "a.pt", "-o", "b.onnx"]).exit_code == 0
        assert os.environ["OMP_WAIT_POLICY"] == kept


def test_the_public_names() -> None:
    assert normfold.__all__ == ["__version__", "errors", "fold", "inspect", "load_checkpoint", "save_checkpoint"]
    for name in normfold.__all__:
        assert getattr(normfold, name) is not None
        assert name in dir(normfold)
    assert normfold.fold is pipeline.fold
    with pytest.raises(AttributeError, match="no attribute 'unfold'"):
        _ = normfold.unfold  # type: ignore[attr-defined]


def test_version() -> None:
    result = RUN.invoke(app, ["--version"])
    assert (result.exit_code, result.stdout) == (0, f"normfold {normfold.__version__}\n")


def test_every_option_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    called = returning(monkeypatch, "run", REPORT)
    words = (
        'fold a.pt -o b.onnx --model pkg.mod:make --model-args {"depth":2} --input x:float32[B,8] --input y:int64[B]<9'
    )
    words += " --ema --opset 20 --dry-run --strict --no-verify --report r.json --trust-checkpoint --allow-unfinished"
    words += " --emit-torch f.pt --dtype float32 --center --external-data"
    result = RUN.invoke(
        app,
        [*words.split(), "--task", "decoder-with-cache", "--norm-affine", "--keep-tied", "--only", "a.norm", "--force"],
    )
    assert result.exit_code == 0, result.output
    source, output, load, options, _ = called["args"]
    assert (source, output) == (Path("a.pt"), Path("b.onnx"))
    assert load == LoadOptions(
        model="pkg.mod:make",
        model_args={"depth": 2},
        inputs=("x:float32[B,8]", "y:int64[B]<9"),
        ema=True,
        trust=True,
        allow_unfinished=True,
    )
    assert options == FoldOptions(
        task="decoder-with-cache",
        opset=20,
        dtype="float32",
        norm_affine=True,
        center=True,
        only=("a.norm",),
        keep_tied=True,
        dry_run=True,
        strict=True,
        verify=False,
        report=Path("r.json"),
        emit_torch=Path("f.pt"),
        external_data=True,
        force=True,
    )


def test_the_options_of_python_are_those_of_the_command_line() -> None:
    """`fold` and `inspect` take every option of the two values that they make, and nothing else."""
    own = {"source", "output", "progress", "example_inputs", "dynamic"}
    taken = {field.name for kind in (LoadOptions, FoldOptions) for field in fields(kind)}
    for function, parts in ((pipeline.fold, taken), (look.inspect, taken)):
        named = set(signature(function).parameters) - own
        assert named <= parts
    assert set(signature(pipeline.fold).parameters) - own == taken


def test_the_report_is_readable_in_a_pipe_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    returning(monkeypatch, "run", REPORT)
    result = RUN.invoke(app, ["fold", "a.pt", "-o", "b.onnx"])
    assert result.exit_code == 0
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert lines[0] == "2 norms: 1 folded, 1 kept."
    assert max(len(line) for line in lines) <= 80
    assert "\x1b" not in result.stdout
    # Wrapped, not cut: put together again, every name is there.
    assert LONG in "".join(line.split("  ")[0] for line in lines)
    for text in ("Div", "-2", "original -> folded", "1.2e-06", "passed", "out.onnx, 1.5 MB (unfolded 1.6 MB)"):
        assert text in result.stdout
    assert "MatMul" not in result.stdout, "only operators whose number changed"
    assert "Warning: half precision was converted" in result.stdout


def test_two_graphs_are_printed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    second = replace(GRAPH, name="decoder", output=OutputInfo("out.decoder.onnx", 2_000_000, "ef" * 32, None))
    graphs = (replace(GRAPH, name="encoder"), second)
    returning(monkeypatch, "run", replace(REPORT, graphs=graphs, task="encoder-decoder"))
    result = RUN.invoke(app, ["fold", "a.pt", "-o", "out.onnx", "--task", "encoder-decoder"])
    assert result.exit_code == 0
    assert result.stdout.startswith("4 norms: 2 folded, 2 kept.")
    for text in (
        "Nodes of the encoder",
        "Nodes of the decoder",
        "decoder: original -> folded",
        "out.decoder.onnx, 2.0",
    ):
        assert result.stdout.count(text) == 1
    assert max(len(line) for line in result.stdout.splitlines()) <= 80


def test_nothing_to_fold_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Site("norm", "LayerNorm", 8, "kept", "token-statistics", "its statistics are not stored")
    nodes = {"Add": 1}
    returning(monkeypatch, "look", Report("0", SOURCE, (GraphReport("", (), (kept,), nodes, nodes),)))
    assert "Nothing to fold: the graph stays as it is." in RUN.invoke(app, ["inspect", "a.pt"]).stdout
    returning(monkeypatch, "look", Report("0", SOURCE, (GraphReport("", (), (), nodes, nodes),)))
    assert "No norms found: nothing to fold." in RUN.invoke(app, ["inspect", "a.pt"]).stdout


def test_inspect_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    returning(monkeypatch, "look", REPORT)
    result = RUN.invoke(app, ["inspect", "a.pt", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == REPORT.to_json()


def test_models_are_listed_in_80_columns() -> None:
    result = RUN.invoke(app, ["models"])
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert len(lines) < 110, "sizes, not every norm of every size"
    assert "\x1b" not in result.stdout
    text = " ".join(result.stdout.split())
    for expected in (
        "DeiT deit_tiny 5.7 M ln bn un repbn prepbn deit_small 22.1 M ln",
        "slab_deit_tiny 6.2 M ln bn un repbn prepbn",
        "t2t_vit_14_resnext 21.5 M",
        "char_lm 158 k rms",
    ):
        assert expected in text


@pytest.mark.parametrize(
    ("pattern", "expected", "others"),
    [
        ("deit_tiny", ["deit_tiny_prepbn 5.7 M repbn deit_tiny_prepbn.pth", "slab_deit_tiny_un"], ["deit_small"]),
        ("DeiT-Tiny", ["deit_tiny_linearnorm 5.7 M prepbn"], ["deit_small"]),
        ("nmt_*_un", ["nmt_wmt_un", "input src:int64[B,S<=1024]<32768, ids:int64[B,L<=1024]<32768"], ["nmt_ln"]),
        ("t2t-vit", ["t2t_vit_7_un", "T2T-ViT (arXiv 2101.11986, 2208.01313)"], ["deit_tiny"]),
        ("swin_backbone", ["det_slab_swin_tiny 28.4 M prepbn"], ["slab_swin_base"]),
    ],
)
def test_models_that_a_pattern_fits(pattern: str, expected: list[str], others: list[str]) -> None:
    result = RUN.invoke(app, ["models", pattern])
    assert (result.exit_code, result.stderr) == (0, "")
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    text = " ".join(result.stdout.split())
    assert all(word in text for word in expected)
    assert not any(word in text for word in others)
    found = json.loads(RUN.invoke(app, ["models", pattern, "--json"]).stdout)
    assert {name for size in found for name in size["norms"].values()} >= {
        word for line in expected for word in line.split() if word.endswith("_un")
    }


def test_a_pattern_that_fits_nothing() -> None:
    result = RUN.invoke(app, ["models", "deit_tiny_prebn"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "close: deit_tiny_prepbn" in " ".join(result.stderr.split())


def test_models_as_json() -> None:
    result = RUN.invoke(app, ["models", "--json"])
    sizes = {size["name"]: size for size in json.loads(result.stdout)}
    assert sizes["deit_tiny"] == {
        "name": "deit_tiny",
        "norms": {
            "ln": "deit_tiny_ln",
            "bn": "deit_tiny_bn",
            "un": "deit_tiny_un",
            "repbn": "deit_tiny_prepbn",
            "prepbn": "deit_tiny_linearnorm",
        },
        "family": "DeiT",
        "papers": ["arXiv:2012.12877", "arXiv:2405.11582"],
        "parameters": 5717416,
        "inputs": ["x:float32[B,3,224,224]"],
        "published": {"deit_tiny_prepbn.pth": "deit_tiny_prepbn"},
        "release": "https://github.com/xinghaochen/SLAB/releases/tag/ckpts",
    }
    assert sizes["vit"]["release"] is None


def test_listing_models_imports_nothing_heavy() -> None:
    heavy = ["torch", "onnx", "onnxruntime", "onnx_ir", "numpy"]
    code = (
        "import sys, normfold.cli.app\nsys.argv = ['normfold', 'models']\ntry:\n    normfold.cli.app.main()\n"
        f"except SystemExit as end:\n    print(end.code, [name for name in {heavy} if name in sys.modules])"
    )
    assert run_python(code).stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CheckpointError("a.pt: there is no such file"), 2),
        (DifferenceError("verification failed", REPORT), 1),
        (NotFoldedError("--strict: 1 of 2 norms not folded", REPORT), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    returning(monkeypatch, "run", error)
    result = RUN.invoke(app, ["fold", "a.pt", "-o", "b.onnx"])
    assert result.exit_code == code
    assert "Traceback" not in result.output
    assert result.stderr.startswith("normfold: ")
    assert result.stderr.count("\n") == 1
    assert ("norms: 1 folded" in result.stdout) == hasattr(error, "report")


@pytest.mark.parametrize(
    "words",
    [
        ["fold"],
        ["fold", "a.pt"],
        ["fold", "a.pt", "-o", "b.onnx", "--no-such-option"],
        ["fold", "a.pt", "-o", "b.onnx", "--opset", "new"],
        ["unfold"],
    ],
)
def test_wrong_usage_is_exit_2(words: list[str]) -> None:
    result = RUN.invoke(app, words)
    assert result.exit_code == 2
    assert "Error:" in result.stderr


@pytest.mark.parametrize("text", ["{depth: 2}", "[1]", "12"])
def test_model_args_have_to_be_an_object(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    result = RUN.invoke(app, ["fold", "a.pt", "-o", "b.onnx", "--model-args", text])
    assert result.exit_code == 2
    assert "--model-args" in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """The run is stopped while its draft is being verified; the draft goes with it."""
    graph = tmp_path / "a.onnx"
    graph.write_bytes(b"not looked at")
    script = f"""
import signal, sys, tempfile, time
from pathlib import Path
from normfold.cli import app as cli
from normfold.pipeline import run as pipeline
# A job in the background inherits SIGINT as ignored, and Python leaves that as it is.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
def fold(source, output, *options, began):
    with tempfile.TemporaryDirectory(prefix=".normfold-", dir=output.parent) as beside:
        (Path(beside) / "b.onnx").write_text("half")
        print("ready", flush=True)
        time.sleep(60)
pipeline.run = fold
sys.argv = ["normfold", "fold", {str(graph)!r}, "-o", {str(tmp_path / "b.onnx")!r}]
cli.main()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_json_means_one_thing_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A place to write it to, with the tables printed all the same; - or no place: it is printed instead of them."""
    returning(monkeypatch, "look", REPORT)
    returning(monkeypatch, "run", REPORT)
    for words in (["inspect", "a.pt"], ["models", "deit_tiny"], ["fold", "a.pt", "-o", "out.onnx"]):
        place = tmp_path / f"{words[0]}.json"
        shown, written = RUN.invoke(app, words).stdout, RUN.invoke(app, [*words, "--json", str(place)])
        assert written.exit_code == 0 and written.stdout == shown
        if words[0] != "fold":
            text = place.read_text(encoding="utf-8")
            for bare in (["--json"], ["--json", "-"], ["--json", "--debug"]):
                assert RUN.invoke(app, [*words, *bare]).stdout == text
            again = RUN.invoke(app, [*words, "--json", str(place)])
            assert again.exit_code == 2 and "exists already" in again.stderr
        json.loads(RUN.invoke(app, [*words, "--json"]).stdout)
    # In front of what they take too.
    for command, *taken in (["inspect", "a.pt"], ["models", "deit_tiny"]):
        assert (
            RUN.invoke(app, [command, "--json", *taken]).stdout == RUN.invoke(app, [command, *taken, "--json"]).stdout
        )
