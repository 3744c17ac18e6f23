"""The rules of docs/architecture.md, read from the syntax trees; what a command imports is seen where it runs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.paths import DOCS, PACKAGE, ROOT, TESTS
from tests.support.graphs import as_float32, build

HARD_LIMIT = 400
TOP_LEVEL = {"__init__", "__main__", "_version", "errors"}

# What a folder may import of the package beside itself, in the order in which a checkpoint meets them. Everyone may
# import errors and _version.
ALLOWED: dict[str, set[str]] = {
    "system": set(),
    "inputs": {"system"},
    "graph": {"inputs", "system"},
    "norms": {"graph"},
    "nn": {"norms"},
    "models": {"nn"},
    "checkpoint": {"graph", "inputs", "models", "norms", "system"},
    "export": {"checkpoint", "graph", "inputs", "norms", "system"},
    "analysis": {"graph", "inputs", "norms", "system"},
    "rewrite": {"analysis", "checkpoint", "graph", "system"},
    "verify": {"checkpoint", "export", "graph", "inputs", "system"},
    "report": {"analysis", "export", "graph", "models", "system", "verify"},
    "pipeline": {
        "analysis", "checkpoint", "export", "graph", "inputs", "models", "nn", "report", "rewrite", "system", "verify",
    },
    "graphsurgeon": {"pipeline", "report", "system"},
    "bench": {
        "analysis", "checkpoint", "export", "graph", "inputs", "models", "norms", "pipeline", "report", "system",
        "verify",
    },
    "cli": {"bench", "checkpoint", "export", "graph", "models", "pipeline", "report", "system", "verify"},
}  # fmt: skip

# A folder inside a folder imports only those before it, and the modules that stand in none.
INSIDE: dict[str, list[str]] = {"analysis": ["rules", "recognition", "placement", "merge", "frames"]}

# What only some folders know.
LIBRARIES: dict[str, set[str]] = {
    "onnx_ir": {"analysis", "bench", "checkpoint", "export", "graph", "inputs", "pipeline", "rewrite", "verify"},
    # graph: its converter to float16; bench: its quantiser. They open no session of the package.
    "onnxruntime": {"bench", "graph", "system"},
    "rich": {"bench", "cli", "report"},
    "typer": {"cli"},
    "onnx_graphsurgeon": {"graphsurgeon"},
}
# They start quickly, or have no business with tensors of torch.
WITHOUT_TORCH = {"system", "analysis", "report", "cli"}
# What it ends is not the process that called it.
COPY = "normfold.system.subprocess_copy"


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module

    @property
    def folder(self) -> str:
        """The folder of the package that it lies in; empty for those that lie in none."""
        return folder_of(self.name)

    def imports(self, *, lazy: bool = True) -> set[str]:
        """Full names of what is imported when the module is (with `lazy`: or when its functions run)."""
        return {name for node in _statements(self.tree, lazy=lazy) for name in _names(node)}


def folder_of(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and (PACKAGE / parts[1]).is_dir() else ""


def _statements(node: ast.AST, *, lazy: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif not lazy and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from (found for part in child.orelse for found in _statements(part, lazy=lazy))
        elif lazy or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _statements(child, lazy=lazy)


def _names(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    else:
        assert node.level == 0, "absolute imports only"
        assert node.module is not None
        # `from normfold.verify import truth` imports a module, `from normfold.verify.truth import Part` a name in one.
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name if name in NAMES else node.module for name in names)


def _name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {_name_of(path) for path in PACKAGE.rglob("*.py")}
MODULES = [
    Module(_name_of(path), path, ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py"))
]


def importers(package: str) -> set[str]:
    return {
        module.folder
        for module in MODULES
        if any(name == package or name.startswith(f"{package}.") for name in module.imports())
    }


def test_every_folder_has_its_row() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(ALLOWED)
    assert {path.stem for path in PACKAGE.glob("*.py")} <= TOP_LEVEL


def test_folders_import_what_the_table_allows() -> None:
    checked = 0
    for module in MODULES:
        if not module.folder:
            continue
        for name in module.imports():
            target = folder_of(name)
            if name.split(".")[0] != "normfold" or target in ("", module.folder):
                continue
            checked += 1
            assert target in ALLOWED[module.folder], f"{module.path}: {module.folder} must not import {name}"
    assert checked > 300


def test_the_table_has_no_row_that_nobody_needs_and_no_circle() -> None:
    """Each permission is used, and the order of the rows is one in which everything imported comes earlier."""
    order = list(ALLOWED)
    for folder, allowed in ALLOWED.items():
        used = {folder_of(name) for module in MODULES if module.folder == folder for name in module.imports()}
        assert allowed <= used, f"{folder} imports nothing of {sorted(allowed - used)}"
        assert all(order.index(name) < order.index(folder) for name in allowed), folder


def test_inside_a_folder_there_is_one_direction_too() -> None:
    checked = 0
    for folder, order in INSIDE.items():
        for module in MODULES:
            parts = module.name.split(".")
            own = parts[2] if module.folder == folder and len(parts) > 2 else ""
            for name in module.imports() if own in order else ():
                inner = name.split(".")
                target = inner[2] if inner[:2] == ["normfold", folder] and len(inner) > 2 else ""
                checked += 1
                assert target not in order or order.index(target) <= order.index(own), f"{module.path} imports {name}"
    assert checked > 50


def test_libraries_are_known_where_they_are_needed() -> None:
    for library, folders in LIBRARIES.items():
        assert importers(library) <= folders, library


def test_torch_is_not_imported_by_what_does_not_need_it() -> None:
    checked = 0
    for module in MODULES:
        if module.folder in WITHOUT_TORCH or not module.folder:
            checked += 1
            assert not {name for name in module.imports(lazy=False) if name.split(".")[0] == "torch"}, module.name
    assert checked > 50


# A norm whose parameters are hidden as older exporters hide them, behind operators on constants.
HIDDEN = """g (float[B,4] x) => (float[B,3] y) {
    start = Constant<value = int64[1] {0}>()
    end = Constant<value_ints = [4]>()
    part = Slice(many, start, end)
    wide = Cast<to = 11>(part)
    root = Sqrt(wide)
    scale = Cast<to = 1>(root)
    n = Div(x, scale)
    y = MatMul(n, w)
}"""
HEAVY = ["torch", "onnxruntime", "onnxscript", "transformers", "matplotlib", "onnx_ir"]
LOOKED_AT = """
import sys
from normfold.cli.app import main
try:
    main()
finally:
    print(*(name for name in {names!r} if name in sys.modules), sep=",", file=sys.stderr)
"""


def imported(names: list[str], folder: Path, *words: str) -> tuple[str, list[str]]:
    """What a command prints, and which of these libraries it has imported at its end."""
    run = subprocess.run(
        [sys.executable, "-c", LOOKED_AT.format(names=names), *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout, [name for name in run.stderr.splitlines()[-1].split(",") if name]


def hidden(folder: Path) -> None:
    onnx.save(as_float32(build(HIDDEN, many=np.linspace(0.5, 2.0, 8), w=(4, 3))), folder / "x.onnx")


def test_a_graph_is_looked_at_without_torch(tmp_path: Path) -> None:
    """What a command imports, modules that others import among it, shows only where it runs."""
    hidden(tmp_path)
    said, there = imported(HEAVY, tmp_path, "inspect", "x.onnx")
    assert "1 constant product: 1 folded." in said
    assert there == ["onnx_ir"]


def test_a_graph_is_folded_without_torch_where_nothing_is_verified(tmp_path: Path) -> None:
    hidden(tmp_path)
    words = ("fold", "x.onnx", "-o", "y.onnx", "--no-verify", "--report", "r.json", "--html", "r.html")
    said, there = imported(HEAVY, tmp_path, *words)
    assert "1 constant product: 1 folded." in said
    assert (tmp_path / "y.onnx").is_file()
    assert there == ["onnx_ir"]


@pytest.mark.slow
def test_two_graphs_are_compared_without_an_exporter(tmp_path: Path) -> None:
    hidden(tmp_path)
    said, there = imported(HEAVY, tmp_path, "verify", "x.onnx", "--against", "x.onnx", "--samples", "2")
    assert "PASSED" in said
    assert there == ["torch", "onnxruntime", "onnx_ir"]


def test_the_evaluator_stands_on_its_own() -> None:
    """The truth must not share a fault with what folds, or with the runtime."""
    inside = [module for module in MODULES if module.name.startswith("normfold.graph.evaluator")]
    assert len(inside) > 5
    for module in inside:
        foreign = {name for name in module.imports() if name.startswith(("normfold.", "onnxruntime", "onnx.reference"))}
        assert {name for name in foreign if not name.startswith("normfold.graph.evaluator")} <= {"normfold.errors"}


def test_only_the_command_line_prints_or_exits() -> None:
    checked = 0
    for module in MODULES:
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call):
                continue
            checked += 1
            called = ast.unparse(node.func)
            if called in ("print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"):
                allowed = module.folder == "cli" or (called == "os._exit" and module.name == COPY)
                assert allowed, f"{module.path}:{node.lineno}: {called}"
    assert checked > 100


def test_no_file_has_two_subjects() -> None:
    files = [*PACKAGE.rglob("*.py"), *TESTS.rglob("*.py")]
    assert len(files) > 250
    for path in files:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= HARD_LIMIT, path


def test_the_tests_mirror_the_folders() -> None:
    for folder in (name for name in ALLOWED if name != "models"):
        assert list((TESTS / folder).glob("test_*.py")), f"tests/{folder} is missing"


def test_the_page_lists_the_folders_in_their_order_and_what_they_import() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|.*\| ?([\w, ]*) ?\|$", page, flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(ALLOWED)
    for name, imports in rows:
        assert set(filter(None, imports.replace(" ", "").split(","))) == ALLOWED[name], name


def test_the_page_names_every_module() -> None:
    page = (DOCS / "architecture.md").read_text(encoding="utf-8")
    # Folders whose modules are rows of one table: operators, architectures.
    rows = ("normfold.graph.evaluator.", "normfold.models.", "normfold.analysis.rules.")
    named = [module for module in MODULES if module.folder and not module.name.startswith(rows)]
    for module in (module for module in named if module.path.stem != "__init__"):
        assert f"`{module.path.stem}`" in page, module.path
