"""Whether the tests notice when one thing in the engine is wrong.

    python -m benchmarks.mutate_engine [--mutations 200] [--seed 0] [--only linear.py] [--seconds 0]

A mutation is one sign, one comparison, one dropped guard or one constant, drawn at random from the rules, the
placement, the rewriting and the judge. Each runs in a fork of its own, in which the module is compiled with it: the
nearest tests first, then the rest of the engine's, up to the first failure. Tests that export a torch model are left
out. What no test notices is printed with its line; if it changes nothing that can be seen, docs/mutations.md says why.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "normfold"
RULES = PACKAGE / "analysis" / "rules"
TARGETS = [
    *sorted(RULES.glob("*.py")),
    *(
        PACKAGE / name
        for name in ("analysis/placement/propagate.py", "analysis/placement/place.py", "analysis/edits.py")
    ),
    *(PACKAGE / name for name in ("rewrite/graph.py", "verify/judge.py", "verify/yardstick.py")),
]

# The tests beside a module, in tests/; without an entry, those of its name in its folder.
_RULES = "analysis/rules"
NEAREST = {
    "analysis/rules/__init__.py": [_RULES],
    "analysis/rules/attention.py": [f"{_RULES}/test_product.py"],
    "analysis/rules/axis_maps.py": [f"{_RULES}/test_layout.py", f"{_RULES}/test_reduce.py"],
    "analysis/rules/base.py": [f"{_RULES}/test_pointwise.py", f"{_RULES}/test_linear.py"],
    "analysis/rules/batch_norm.py": [f"{_RULES}/test_normalize.py", f"{_RULES}/test_linear.py"],
    "analysis/rules/carry.py": [f"{_RULES}/test_layout.py", f"{_RULES}/test_pointwise.py"],
    "analysis/rules/labels.py": [f"{_RULES}/test_contract.py"],
    "analysis/rules/prelu.py": [f"{_RULES}/test_pointwise.py"],
    "analysis/rules/spellings.py": [f"{_RULES}/test_older_opsets.py"],
    "analysis/rules/linear.py": [
        f"{_RULES}/test_linear.py", f"{_RULES}/test_groups.py", "analysis/placement/test_padding.py",
    ],
    "analysis/rules/normalize.py": [f"{_RULES}/test_normalize.py", f"{_RULES}/test_groups.py"],
    "analysis/rules/power.py": [f"{_RULES}/test_pointwise.py", "analysis/frames/test_powers.py"],
    "analysis/rules/weights.py": [f"{_RULES}/test_linear.py", f"{_RULES}/test_contract.py"],
    "analysis/rules/windows.py": ["analysis/placement/test_padding.py", f"{_RULES}/test_groups.py"],
    "analysis/edits.py": ["analysis/placement/test_place.py", "rewrite/test_graph.py"],
    "verify/judge.py": ["verify/test_judge.py", "verify/test_metrics.py"],
    "verify/yardstick.py": ["verify/test_yardstick.py", "verify/test_truth.py", "verify/test_judge.py"],
}  # fmt: skip
# What is left: first what notices most for its time.
REST = [
    "random/test_random_operators.py", _RULES, "random/test_random_opsets.py", "analysis/test_refusals.py",
    "analysis/test_analyse.py", "analysis/placement", "analysis/merge", "rewrite/test_graph.py",
    "rewrite/test_centre.py", "analysis/frames", "random/test_random_powers.py",
    "analysis/recognition", "analysis/test_stays.py", "analysis/test_spellings.py", "random/test_random_graphs.py",
]  # fmt: skip
REST_OF_THE_JUDGE = ["verify/test_mutations.py", "verify/test_localise.py", "verify/test_no_verdict.py"]
LEFT_OUT = "not folds_into_its_convolution and not fixture"

# Of processor time: a mutant that takes longer runs for ever.
NEAR_SECONDS, REST_SECONDS = 120, 480
MEMORY_BYTES = 12 << 30

_SIGNS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}  # fmt: skip

_UNSEEN = {"strict", "frozen", "slots"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file. line: where. done: what was made of what."""

    path: Path
    line: int
    done: str
    tree: ast.Module

    @property
    def module(self) -> str:
        """The name that it is imported by."""
        parts = self.path.relative_to(ROOT).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def candidates(path: Path) -> list[tuple[ast.Module, list[ast.AST]]]:
    """The tree of a file, with the nodes that may be changed.

    Not those of messages, annotations and docstrings; nor what cannot be seen from outside: checks that Python makes
    (`strict` of a zip, `frozen` and `slots` of a record), and the -1 of a reshape, for which any negative number does.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[ast.AST] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom):
            return
        if isinstance(node, ast.AnnAssign):
            visit_all([node.value] if node.value is not None else [])
            return
        if isinstance(node, ast.FunctionDef):
            visit_all([*node.body, *node.args.defaults, *(one for one in node.args.kw_defaults if one is not None)])
            return
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return
        if isinstance(node, ast.keyword) and node.arg in _UNSEEN:
            return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "reshape":
            visit_all([node.func, *(one for one in node.args if not _is_negative(one)), *node.keywords])
            return
        if _changes(node):
            found.append(node)
        visit_all(ast.iter_child_nodes(node))

    def visit_all(nodes: Sequence[ast.AST] | Iterator[ast.AST]) -> None:
        for node in nodes:
            visit(node)

    visit(tree)
    return [(tree, found)]


def _is_negative(node: ast.AST) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant)


def _changes(node: ast.AST) -> list[str]:
    """The kinds of change that a node can take."""
    if isinstance(node, ast.BinOp):
        return ["sign"] if type(node.op) in _SIGNS else []
    if isinstance(node, ast.UnaryOp):
        return ["unary"] if isinstance(node.op, ast.USub | ast.Not) else []
    if isinstance(node, ast.Compare):
        return ["comparison"] if len(node.ops) == 1 and type(node.ops[0]) in _COMPARISONS else []
    if isinstance(node, ast.BoolOp):
        return ["operand", "word"]
    if isinstance(node, ast.If):
        return ["guard"]
    if isinstance(node, ast.IfExp):
        return ["choice"]
    if isinstance(node, ast.Constant):
        return ["constant"] if isinstance(node.value, bool | int | float) else []
    return []


def mutate(path: Path, rng: random.Random) -> Mutant:
    """One random change of a file."""
    ((tree, nodes),) = candidates(path)
    node = rng.choice(nodes)
    before, line = ast.unparse(node).splitlines()[0], getattr(node, "lineno", 0)
    kind = rng.choice(_changes(node))
    changed = _changed(copy.deepcopy(node), kind, rng)
    after = ast.unparse(changed).splitlines()[0]

    class Swap(ast.NodeTransformer):
        def visit(self, other: ast.AST) -> ast.AST:
            return ast.copy_location(changed, other) if other is node else super().generic_visit(other)

    Swap().visit(tree)
    return Mutant(path, line, f"{before}  ->  {after}", ast.fix_missing_locations(tree))


def _changed(node: ast.AST, kind: str, rng: random.Random) -> ast.AST:
    if isinstance(node, ast.BinOp):
        node.op = _SIGNS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp):
        return node.operand
    elif isinstance(node, ast.Compare):
        node.ops = [rng.choice(_COMPARISONS[type(node.ops[0])])()]
    elif isinstance(node, ast.BoolOp) and kind == "word":
        node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.BoolOp):
        node.values.pop(rng.randrange(len(node.values)))
        return node.values[0] if len(node.values) == 1 else node
    elif isinstance(node, ast.If):
        node.test = ast.Constant(False)
    elif isinstance(node, ast.IfExp):
        return rng.choice([node.body, node.orelse])
    elif isinstance(node, ast.Constant):
        value = node.value
        node.value = not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 2 + 0.5
    return node


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module as it is mutated."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.code: CodeType = compile(mutant.tree, str(mutant.path), "exec")

    def find_spec(self, name: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.mutant.module:
            return None
        package = self.mutant.path.name == "__init__.py"
        spec = importlib.util.spec_from_loader(name, self, origin=str(self.mutant.path), is_package=package)
        if spec is not None and package:
            spec.submodule_search_locations = [str(self.mutant.path.parent)]
        return spec

    def exec_module(self, module: ModuleType) -> None:
        module.__file__ = str(self.mutant.path)
        exec(self.code, module.__dict__)


def noticed(mutant: Mutant | None, tests: Sequence[str], seconds: int) -> str:
    """The first test that fails with the mutant, "time" where one does not end, or "" where they pass."""
    source, target = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        with contextlib.suppress(BaseException):
            os._exit(_run(mutant, tests, seconds, target))
        os._exit(99)
    os.close(target)
    with os.fdopen(source, encoding="utf-8") as pipe:
        failed = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "time" if os.WTERMSIG(status) == signal.SIGXCPU else f"signal {os.WTERMSIG(status)}"
    return "" if os.WEXITSTATUS(status) == 0 else failed or "collection"


class _First:
    """Says which test fails first."""

    def __init__(self, target: int) -> None:
        self.target = target

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            os.write(self.target, str(report.nodeid).split("/")[-1].encode())


def _run(mutant: Mutant | None, tests: Sequence[str], seconds: int, target: int) -> int:
    import pytest

    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    if mutant is not None:
        sys.meta_path.insert(0, _Finder(mutant))
    import normfold.graph.inference

    # A fork for every graph would take most of the time.
    normfold.graph.inference.isolated = lambda work, *given: work(*given)
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", LEFT_OUT, "--no-header"]
    return int(pytest.main([*options, *(str(ROOT / "tests" / test) for test in tests)], plugins=[_First(target)]))


def nearest(path: Path) -> list[str]:
    """The tests beside a module."""
    name = path.relative_to(PACKAGE)
    return NEAREST.get(name.as_posix(), [(name.parent / f"test_{path.stem}.py").as_posix()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the names of the files to change")
    parser.add_argument("--as-it-is", action="store_true", help="run the tests without a mutation: they have to pass")
    parser.add_argument("--seconds", type=float, default=0, help="begin no further mutation after this long; 0: never")
    asked = parser.parse_args()
    # What every fork needs, once.
    import onnx_ir, onnxruntime, pytest, torch  # noqa: E401, F401, I001

    if asked.as_it_is:
        failed = noticed(None, [*REST, *REST_OF_THE_JUDGE, *NEAREST["verify/yardstick.py"]], 10 * REST_SECONDS)
        print(failed or "they pass")
        raise SystemExit(bool(failed))
    files = [path for path in TARGETS if asked.only in path.as_posix()]
    weights = [len(candidates(path)[0][1]) for path in files]
    start, ends, survivors = time.monotonic(), Counter[str](), list[Mutant]()
    for number in range(asked.seed, asked.seed + asked.mutations):
        if asked.seconds and time.monotonic() - start > asked.seconds:
            break
        rng = random.Random(number)
        mutant = mutate(rng.choices(files, weights)[0], rng)
        near = nearest(mutant.path)
        everything = REST_OF_THE_JUDGE if mutant.path.parent.name == "verify" else REST
        rest = [test for test in everything if test not in near]
        by = noticed(mutant, near, NEAR_SECONDS)
        end = "nearest" if by else "rest" if (by := noticed(mutant, rest, REST_SECONDS)) else "survived"
        ends[end] += 1
        if end == "survived":
            survivors.append(mutant)
        place = f"{mutant.path.relative_to(PACKAGE)}:{mutant.line}"
        print(f"{number:4} {time.monotonic() - start:6.0f} s  {end:8}  {place}: {mutant.done}  [{by}]", flush=True)
    total = sum(ends.values())
    caught = total - ends["survived"]
    print(f"\n{total} mutations: {dict(ends)}; {100 * caught / max(total, 1):.1f} % noticed")
    for mutant in survivors:
        print(f"  {mutant.path.relative_to(PACKAGE)}:{mutant.line}: {mutant.done}")


if __name__ == "__main__":
    main()
