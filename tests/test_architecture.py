"""The import rules of docs/architecture.md, read from the syntax trees: nothing here runs the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "normfold"
HARD_LIMIT = 400

GRAPH_LIBRARY = {
    "normfold.checkpoint.archive",
    "normfold.bench.baseline",
    "normfold.bench.variants",
    "normfold.analysis.placement.calibrate",
    "normfold.rewrite.centre",
    "normfold.checkpoint.load",
    "normfold.graph.constants",
    "normfold.verify.demand",
    "normfold.graph.evaluator.call",
    "normfold.graph.evaluator.evaluator",
    "normfold.graph.evaluator.program",
    "normfold.graph.evaluator.values",
    "normfold.verify.exercise",
    "normfold.export.to_onnx",
    "normfold.system.files",
    "normfold.graph.view",
    "normfold.graph.float16",
    "normfold.verify.yardstick_float16",
    "normfold.graph.inference",
    "normfold.inputs.of_model",
    "normfold.analysis.placement.float16_range",
    "normfold.rewrite.graph",
    "normfold.export.tidy",
    "normfold.graph.float64",
    "normfold.graph.wellformed",
}
PRINTERS = {"normfold.cli.app", "normfold.cli.terminal"}
# What it ends is not the process that called it.
COPY = "normfold.system.subprocess_copy"
TERMINAL = {
    *PRINTERS,
    "normfold.cli.bench",
    "normfold.bench.table",
    "normfold.report.render",
    "normfold.report.render_verdict",
}
JUDGE = {
    "normfold.bench.decode",
    "normfold.bench.engines",
    "normfold.bench.harness",
    "normfold.bench.job",
    "normfold.bench.machine",
    "normfold.bench.memory",
    "normfold.bench.nvidia",
    "normfold.bench.result",
    "normfold.bench.statistics",
    "normfold.bench.worker",
    "normfold.inputs.cases",
    "normfold.verify.metrics",
    "normfold.graph.float16",
    "normfold.verify.yardstick_float16",
    "normfold.verify.run",
    "normfold.verify.measure",
    "normfold.verify.source",
    "normfold.verify.demand",
    "normfold.verify.exercise",
    "normfold.verify.sizes",
    "normfold.verify.tensors",
    "normfold.graph.float64",
    "normfold.verify.module",
    "normfold.verify.yardstick",
    "normfold.verify.runtime",
    "normfold.verify.fingerprint",
    "normfold.verify.truth",
    "normfold.verify.verdict",
    "normfold.verify.judge",
}
FOLDER = {
    "normfold.analysis.analyse",
    "normfold.rewrite.centre",
    "normfold.analysis.placement.propagate",
    "normfold.graph.view",
    "normfold.analysis.placement.magnitude",
    "normfold.analysis.recognition.naming",
    "normfold.analysis.merge.branches",
    "normfold.analysis.placement.place",
    "normfold.analysis.recognition.token_norms",
    "normfold.analysis.plan",
    "normfold.analysis.placement.float16_range",
    "normfold.rewrite.graph",
    "normfold.graph.dims",
    "normfold.analysis.recognition.affine_maps",
    "normfold.analysis.merge.stored_maps",
    "normfold.analysis.placement.shared_weights",
}
# What has to start quickly, or has no business with tensors of torch.
WITHOUT_TORCH = FOLDER | {
    "normfold.graph.affine",
    "normfold.norms.base",
    "normfold.norms.closed_form",
    "normfold.norms.kinds",
    "normfold",
    "normfold.__main__",
    "normfold.cli.app",
    "normfold.errors",
    "normfold.inputs.spec",
}
# checkpoint -> export -> analysis -> rewrite -> verify -> report -> pipeline -> cli, one direction.
ORDER = [
    "checkpoint",
    "export",
    "graph",
    "plan",
    "analysis",
    "rewrite",
    "verify",
    "report",
    "pipeline",
    "bench.run",
    "render",
    "cli",
]


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    def imports(self, *, lazy: bool) -> set[str]:
        """Full names of what is imported when the module is (with `lazy`: or when its functions run)."""
        return {name for node in _statements(self.tree, lazy=lazy) for name in _names(node)}


def _statements(node: ast.AST, *, lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from (found for part in child.orelse for found in _statements(part, lazy=lazy))
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(child, lazy=lazy)


def _names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    else:
        assert node.level == 0, "absolute imports only"
        assert node.module is not None
        yield node.module
        # `from normfold import truth` imports a module, `from normfold.verify.truth import Case` a name in one.
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    _name_of(path): Module(_name_of(path), path, ast.parse(path.read_text(encoding="utf-8")))
    for path in sorted(ROOT.rglob("*.py"))
}


def is_folder(name: str) -> bool:
    return name in FOLDER or name == "normfold.analysis.rules" or name.startswith("normfold.analysis.rules.")


def importers(package: str) -> set[str]:
    return {
        module.name
        for module in MODULES.values()
        if any(name == package or name.startswith(f"{package}.") for name in module.imports(lazy=True))
    }


def reachable(start: str) -> set[str]:
    """Modules of normfold that `start` imports, directly or through others, at import time or later."""
    found, todo = set(), [start]
    while todo:
        for name in MODULES[todo.pop()].imports(lazy=True):
            if name in MODULES and name not in found and name != "normfold":
                found.add(name)
                todo.append(name)
    return found


def test_every_module_named_here_exists() -> None:
    assert len(MODULES) > 20
    for name in GRAPH_LIBRARY | TERMINAL | JUDGE | FOLDER | WITHOUT_TORCH | {f"normfold.{stage}" for stage in ORDER}:
        assert name in MODULES


def test_few_modules_know_the_graph_library() -> None:
    assert importers("onnx_ir") == GRAPH_LIBRARY


def test_graphsurgeon_is_for_the_tests_only() -> None:
    assert importers("onnx_graphsurgeon") == set()


def test_only_the_command_line_knows_the_terminal() -> None:
    assert importers("typer") | importers("rich") == TERMINAL


@pytest.mark.parametrize("judge", sorted(JUDGE))
def test_the_judge_knows_nothing_of_the_folder(judge: str) -> None:
    assert not {name for name in reachable(judge) if is_folder(name)}


def test_the_evaluator_stands_on_its_own() -> None:
    inside = [name for name in MODULES if name.startswith("normfold.graph.evaluator")]
    assert len(inside) > 5
    for name in inside:
        outside = {found for found in reachable(name) if not found.startswith("normfold.graph.evaluator")}
        assert outside == {"normfold.errors"} or not outside, name
    assert not set(inside) & (importers("onnxruntime") | importers("onnx.reference"))


def test_the_folder_knows_nothing_of_checkpoints_and_verdicts() -> None:
    folder = [name for name in MODULES if is_folder(name)]
    assert len(folder) > len(FOLDER)
    for name in folder:
        outside = {
            "normfold.checkpoint.load",
            "normfold.export.to_onnx",
            "normfold.pipeline.run",
            "normfold.report.report",
            *JUDGE,
            *TERMINAL,
        }
        assert not reachable(name) & outside, name


def test_the_pipeline_has_one_direction() -> None:
    for position, stage in enumerate(ORDER):
        later = {f"normfold.{name}" for name in ORDER[position + 1 :]}
        assert not reachable(f"normfold.{stage}") & later, stage


def test_torch_is_not_imported_by_what_does_not_need_it() -> None:
    for name in WITHOUT_TORCH | {name for name in MODULES if name.startswith("normfold.analysis.rules")}:
        assert not {found for found in MODULES[name].imports(lazy=False) if found.split(".")[0] == "torch"}, name


def test_only_the_command_line_prints_or_exits() -> None:
    checked = 0
    for module in MODULES.values():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            checked += 1
            called = ast.unparse(node.func)
            if called in ("print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"):
                allowed = {*PRINTERS, COPY} if called == "os._exit" else PRINTERS
                assert module.name in allowed, f"{module.path}:{node.lineno}: {called}"
    assert checked > 100


def test_no_file_has_two_subjects() -> None:
    for module in MODULES.values():
        assert len(module.path.read_text(encoding="utf-8").splitlines()) <= HARD_LIMIT, module.path
