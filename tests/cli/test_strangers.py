"""Ten tasks of people who meet normfold for the first time, as they type them: what it says, in 80 columns.

Every output is held to the same: no line is wider, no traceback, no word of the libraries beneath, and the exit code
is that of README.md. What has to be said stands in the table.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from click.testing import Result
from onnx import numpy_helper
from typer.testing import CliRunner

import normfold
from normfold.cli.app import app
from tests.paths import FIXTURES
from tests.pipeline.test_run import foldable
from tests.support.graphs import as_float32, build, draw

WIDTH = 80
# Words of Python, of the command line's library and of what checks its values.
JARGON = re.compile(
    r"Traceback|pydantic|typer|click\b|Value error|Input should|NoneType|<class|object at 0x|PosixPath|dict_keys|"
    r"KeyError|AttributeError|AssertionError|\bb'|\broot\b|Errno|\[Errno",
)
NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.norm(self.embed(x)).relu())


def build(width=16):
    return Net(width)
"""
STAYS = """g (float[B,4] x) => (float[B,4] y) {
    h = Tanh(x)
    n = BatchNormalization(h, g, b, m, v)
    y = Softmax(n)
}"""
INPUT = '--input "x:float32[B,8]"'


@dataclass(frozen=True)
class Step:
    """A command, its exit code, what it has to say. wide: its output is data, and nobody's lines to read."""

    typed: str
    code: int
    says: tuple[str, ...] = ()
    wide: bool = False


TASKS: dict[str, tuple[Step, ...]] = {
    "a network of my own": (
        Step("inspect own.pt", 2, ("without a known architecture", "--model pkg.module:factory")),
        Step("inspect own.pt --model mynet:build", 2, ("does not say what its inputs are", "--input")),
        Step(f"inspect own.pt --model mynet:build {INPUT}", 0, ("1 norm: 1 folded", "Nothing is written")),
    ),
    "my own network, called wrongly": (
        Step(f"inspect own.pt --model mynet.build {INPUT}", 2, ("expected pkg.module:factory",)),
        Step(f"inspect own.pt --model mynet:bild {INPUT}", 2, ("did you mean build?",)),
        Step(f"inspect own.pt --model minet:build {INPUT}", 2, ("there is no module minet here",)),
        Step(f"inspect own.pt --model mynet:build --model-args '{{depth: 4}}' {INPUT}", 2, ('{"depth": 12}',)),
        Step(f"inspect own.pt --model mynet:build --model-args '{{\"depth\": 4}}' {INPUT}", 2, ("build(width=16)",)),
        Step(
            f"inspect own.pt --model mynet:build --model-args '{{\"width\": 4}}' {INPUT}", 2, ("shapes differ", "more")
        ),
        Step('inspect own.pt --model mynet:build --input "x=float32[B,8]"', 2, ("expected name:dtype[dimensions]",)),
        Step('inspect own.pt --model mynet:build --input "x:float33[B,8]"', 2, ("unknown dtype 'float33'",)),
    ),
    "a checkpoint that says what it is": (
        Step("inspect saved.pt", 2, ("--model mynet:build", "--trust-code")),
        Step("inspect vit_un.pt --arch vti", 2, ("did you mean vit?",)),
        Step("inspect unfinished.pt", 2, ("schedule has not ended", "--allow-unfinished")),
    ),
    "an ONNX file of somebody else": (
        Step("inspect foldable.onnx", 0, ("1 norm: 1 folded",)),
        Step(
            "fold foldable.onnx -o folded.onnx --html folded.html", 0, ("Written: folded.onnx", "Written: folded.html")
        ),
        Step("verify folded.onnx", 0, ("PASSED", "folded.onnx against foldable.onnx")),
        Step("diff foldable.onnx folded.onnx --html diff.html", 1, ("BatchNormalization",)),
        Step("diff --json foldable.onnx folded.onnx", 1, ('"same": false', '"BatchNormalization": [')),
        Step("fold folded.onnx -o again.onnx", 0, ("No norms found: nothing to fold",)),
    ),
    "a gate in CI": (
        Step("fold foldable.onnx -o ci.onnx --report r.json", 0, ("r.json",)),
        Step("verify ci.onnx --against foldable.onnx --junit v.xml --summary v.md --json v.json", 0, ("PASSED",)),
        Step("verify wrong.onnx --against foldable.onnx", 1, ("FAILED",)),
    ),
    "a norm that has to go": (
        Step("fold stays.onnx -o out.onnx --strict", 3, ("1 of 1 norms not folded", "(Softmax)", "nothing written")),
        Step("fold stays.onnx -o out.onnx --only nrm", 2, ("has no norm nrm", "normfold inspect")),
        Step("fold vit_un.pt -o out.onnx --only blocks.7.norm1", 2, ("did you mean blocks.",)),
    ),
    "a download that went wrong": (
        Step("inspect gone.pt", 2, ("no such file",)),
        Step("inspect notes.pt", 2, ("not a torch checkpoint", "web page")),
        Step("inspect empty.pt", 2, ("0 bytes",)),
        Step("inspect lfs.pt", 2, ("git lfs pull",)),
        Step("inspect page.onnx", 2, ("web page",)),
        Step("inspect whole.pt", 2, ("--trust-checkpoint",)),
        Step("inspect mynet.py", 2, ("unknown suffix",)),
        Step("inspect .", 2, ("a directory without model.safetensors",)),
    ),
    "a slip of the keyboard": (
        Step("fold foldable.onnx", 2, ("Missing option '--output'",)),
        Step("fold foldable.onnx -o foldable.onnx", 2, ("the source itself",)),
        Step("fold foldable.onnx -o gone/out.onnx", 2, ("there is no directory gone",)),
        Step("fold foldable.onnx -o page.onnx", 2, ("exists already", "--force")),
        Step("fold foldable.onnx -o notes.pt", 2, ("fold writes ONNX", "notes.onnx", "--emit-torch")),
        Step("fold foldable.onnx -o out.onnx --forse", 2, ("--force",)),
        Step("fold foldable.onnx -o out.onnx --task decode", 2, ("'decode' is not one of",)),
        Step("fold foldable.onnx -o out.onnx --dtype bfloat16", 2, ("use --dtype float16",)),
        Step("fold foldable.onnx -o out.onnx --target tensorflow", 2, ("choose from",)),
        Step("inspect foldable.onnx --opset 17", 2, ("keeps its opset",)),
        Step("verify foldable.onnx", 2, ("--against SOURCE",)),
        Step("verify foldable.onnx --against foldable.onnx --samples x", 2, ("give a whole number",)),
        Step("verify foldable.onnx --against gone.onnx", 2, ("no such file",)),
        Step("verify own.pt", 2, ("is no .onnx file",)),
        Step("check --config gone.toml", 2, ("gone.toml cannot be read", "docs/ci.md")),
        Step("bench foldable.onnx --batch x", 2, ("--batch 1,8,32",)),
        Step("recalibrate own.pt -o own2.pt", 2, ("Missing option '--data'",)),
        Step("frobnicate", 2, ("No such command",)),
    ),
    "looking around": (
        Step("--version", 0, (normfold.__version__,)),
        Step("--help", 0, ("fold", "inspect", "verify")),
        Step("models", 0, ("DeiT", "LLaMA")),
        Step("models deit", 0, ("deit_tiny_prepbn",)),
        Step("models foo", 2, ("no built-in architecture",)),
        *(Step(f"{name} -h", 0, ("Example: normfold",)) for name in ("fold", "inspect", "verify", "bench", "check")),
        *(Step(f"{name} -h", 0, ("Example: normfold",)) for name in ("diff", "recalibrate", "models")),
    ),
    "a script around it": (
        Step("inspect foldable.onnx --json", 0, ('"sites"',), wide=True),
        Step("models --json", 0, ("deit_tiny",), wide=True),
        Step("inspect foldable.onnx -v", 0, ("analyse: took",)),
    ),
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what people bring along."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "mynet.py").write_text(NETWORK)
    foldable(folder)
    _spoilt(folder)
    for name in ("vit_un.pt", "vit_prepbn.pt"):
        (folder / name).write_bytes((FIXTURES / name).read_bytes())
    loaded = torch.load(folder / "vit_prepbn.pt", weights_only=True)
    for name, tensor in loaded["state_dict"].items():
        if name.endswith(".iter"):
            tensor.fill_(7)
    torch.save(loaded, folder / "unfinished.pt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        import mynet  # type: ignore[import-not-found]

        torch.manual_seed(0)
        net = mynet.build().eval()
        for tensor in (net.norm.running_mean, net.norm.weight, net.norm.bias):
            torch.nn.init.normal_(tensor)
        torch.save(net.state_dict(), "own.pt")
        torch.save(net, "whole.pt")
        normfold.save_checkpoint("saved.pt", net, factory="mynet:build", example_input=torch.randn(3, 8))
        yield folder
    sys.modules.pop("mynet", None)


def _spoilt(folder: Path) -> None:
    (folder / "notes.pt").write_text("hello, world")
    (folder / "empty.pt").touch()
    (folder / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    (folder / "page.onnx").write_text("<html>404</html>")
    vectors = {name: draw(name, 4, positive=name in "gv") for name in "gbmv"}
    onnx.save(as_float32(build(STAYS, **vectors)), folder / "stays.onnx")
    model = onnx.load(folder / "foldable.onnx")
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "W2")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), "W2"))
    onnx.save(model, folder / "wrong.onnx")


def ran(typed: str) -> Result:
    return CliRunner().invoke(app, shlex.split(typed), prog_name="normfold", env={"COLUMNS": str(WIDTH)})


@pytest.mark.parametrize("task", TASKS)
def test_a_stranger_reads_what_to_do(desk: Path, task: str) -> None:
    for step in TASKS[task]:
        result = ran(step.typed)
        shown = f"$ normfold {step.typed}\n{result.output}"
        assert result.exit_code == step.code, shown
        # Words that have to be said may stand on two lines.
        flat = " ".join(result.output.split())
        assert all(" ".join(says.split()) in flat for says in step.says), shown
        assert not JARGON.search(result.output), shown
        if step.wide:
            assert json.loads(result.stdout)
        else:
            assert max(map(len, result.output.splitlines())) <= WIDTH, shown
