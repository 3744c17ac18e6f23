"""The commands of docs/ci.md and docs/verification.md, run as they are written there."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from benchmarks import mutation_study
from normfold.pipeline import run as pipeline
from normfold.verify.verdict import Fault, Verdict
from tests.paths import DOCS, ROOT
from tests.verify.command import CHANNELS, graph
from tests.verify.opset_graphs import OPSETS

CI = (DOCS / "ci.md").read_text(encoding="utf-8")
# Not run here: they install packages.
INSTALLS = "pip install"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", CI, re.MULTILINE | re.DOTALL)


def steps(workflow: str) -> list[str]:
    """The scripts of the `run: |` steps of a workflow."""
    found = re.findall(r"^( +)run: \|\n((?:\1 +.*\n)+)", workflow, re.MULTILINE)
    return [textwrap.dedent(script) for _, script in found]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository as the page describes it."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "models").mkdir()
    pipeline.fold(graph(folder / "models" / "source.onnx"), folder / "models" / "model.onnx")
    shutil.copy(folder / "models" / "source.onnx", folder / "models" / "optimised.onnx")
    rows = np.random.default_rng(0).standard_normal((40, CHANNELS)).astype(np.float32)
    np.savez(folder / "samples.npz", x=rows, labels=np.arange(40))
    return folder


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """As a runner does: bash -e, the installed commands first in the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GITHUB_STEP_SUMMARY": str(folder / "step_summary")}
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_the_workflow_verifies_and_fills_in_the_summary(repository: Path) -> None:
    (workflow,) = [block for block in blocks("yaml") if "runs-on" in block]
    scripts = [script for script in steps(workflow) if INSTALLS not in script]
    assert len(scripts) == 2
    for script in scripts:
        done = run(script, repository)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    assert (repository / "step_summary").read_text().startswith("### ✅ normfold verify: PASSED")
    assert json.loads((repository / "verify.json").read_text())["passed"] is True
    assert (repository / "verify.xml").exists()


def test_the_shell_commands(repository: Path) -> None:
    scripts = [script for script in blocks("sh") if script.startswith("normfold verify")]
    assert len(scripts) == 2
    for script in scripts:
        done = run(script, repository)
        assert done.returncode == 0, done.stderr
        assert "PASSED" in done.stdout


def test_the_models_of_a_repository(repository: Path) -> None:
    (configuration,) = blocks("toml")
    (repository / "pyproject.toml").write_text(configuration)
    (script,) = [script for script in blocks("sh") if script.startswith("normfold check")]
    done = run(script, repository)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 models passed." in done.stdout


def test_the_action_runs_what_it_is_told(repository: Path) -> None:
    """The words of its inputs are words: nothing of them is run by the shell."""
    action = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert 'run: bash "$GITHUB_ACTION_PATH/scripts/action"' in action and "${{ inputs.model }}\n" in action
    environment = {
        "COMMAND": "verify",
        "MODEL": "models/model.onnx",
        "ARGUMENTS": "--samples 8 --seed '3' --junit '$(touch pwned).xml'",
        "GITHUB_OUTPUT": "outputs",
    }
    script = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
    done = run(f"env {script} bash {shlex.quote(str(ROOT / 'scripts' / 'action'))}", repository)
    assert done.returncode == 0, done.stderr
    assert (repository / "outputs").read_text() == "exit-code=0\n"
    for name in ("summary.md", "verdict.json", "verdict.html"):
        assert (repository / f"normfold-{name}").exists(), name
    assert (repository / "$(touch pwned).xml").exists() and not (repository / "pwned").exists()
    folding = "COMMAND=fold MODEL=models/model.onnx OUTPUT=again.onnx ARGUMENTS=--no-verify"
    done = run(f"env {folding} bash {shlex.quote(str(ROOT / 'scripts' / 'action'))}", repository)
    assert done.returncode == 0, done.stderr
    for name in ("again.onnx", "normfold-report.json", "normfold-report.html"):
        assert (repository / name).exists(), name
    (configuration,) = blocks("toml")
    (repository / "pyproject.toml").write_text(configuration)
    done = run(f"env COMMAND=check bash {shlex.quote(str(ROOT / 'scripts' / 'action'))}", repository)
    assert done.returncode == 0, done.stderr
    for name in ("junit.xml", "summary.md", "check.json", "check.html"):
        assert "models/model.onnx" in (repository / f"normfold-{name}").read_text().replace("\\", ""), name
    wrong = run(f"env COMMAND=dance bash {shlex.quote(str(ROOT / 'scripts' / 'action'))}", repository)
    assert wrong.returncode == 2 and "is not one of check, verify, fold" in wrong.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
def test_the_makefile_judges_once(repository: Path) -> None:
    (makefile,) = blocks("make")
    (repository / "Makefile").write_text(makefile)
    (repository / "verify.json").unlink(missing_ok=True)
    assert "PASSED" in run("make verify.json", repository).stdout
    assert "up to date" in run("make verify.json", repository).stdout


def test_the_hook_matches_the_model_and_nothing_else() -> None:
    (hook,) = [block for block in blocks("yaml") if "hooks:" in block and "entry:" in block]
    pattern = re.search(r"files: (\S+)", hook)
    assert pattern is not None and "entry: normfold verify\n" in hook
    assert re.search(pattern[1], "models/model.onnx")
    assert not re.search(pattern[1], "models/source.onnx")


def test_the_page_lists_every_field_of_the_json() -> None:
    page = (DOCS / "verification.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`([a-z_0-9]+)`", page))
    verdict = Verdict("0", "0", "m", "ab", None, "torch", (), (), Fault(1.0)).to_json()
    assert set(verdict) | set(verdict["fault"]) <= told


def test_the_page_holds_the_study() -> None:
    page = (DOCS / "verification.md").read_text(encoding="utf-8")
    study, of_opsets = (
        page.split(f"<!-- {part}: begin -->")[1].split("<!-- ")[0]
        for part in (mutation_study.STUDY, mutation_study.OF_OPSETS)
    )
    assert all(re.search(rf"\| opset {opset} \| 100 \|", of_opsets) for opset in OPSETS)
    assert "200 right folds, 0 false alarms." in of_opsets
    assert all(": 0 beyond the bound were missed" in part for part in (study, of_opsets))
    mutants, folds = re.search(r"(\d+) mutants of", study), re.search(r"(\d+) right folds, (\d+) false alarms", study)
    assert mutants is not None and int(mutants[1]) >= 500
    assert folds is not None and int(folds[1]) >= 200 and int(folds[2]) == 0
    assert all(f"| {kind} |" in study for kind in mutation_study.MUTATIONS)
