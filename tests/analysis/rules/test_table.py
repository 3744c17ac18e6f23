"""A rule is the one entry of an operator: what others ask of it they ask the rule, not its class."""

from __future__ import annotations

import ast

from normfold.analysis.rules import TABLE, WALL, rule_of
from normfold.analysis.rules.base import Rule
from normfold.graph.types import Op
from tests.paths import PACKAGE
from tests.support.graphs import FOLDED, build, fold, kept, outcomes

RULES = PACKAGE / "analysis" / "rules"


def classes_of(kind: type[Rule]) -> set[type[Rule]]:
    return {kind}.union(*(classes_of(child) for child in kind.__subclasses__()))


def test_a_class_of_rules_is_abstract_or_final() -> None:
    used = {type(rule) for rule in TABLE.values()} | {type(WALL)}
    assert len(used) > 10
    for kind in classes_of(Rule):
        assert bool(kind.__subclasses__()) != (kind in used), f"{kind.__name__} is used and has subclasses, or neither"
        assert getattr(kind, "__final__", False) == (kind in used), kind.__name__


def test_nobody_outside_asks_which_class_a_rule_is_of() -> None:
    names = {kind.__name__ for kind in classes_of(Rule)} - {"Rule"}
    checked = 0
    for path in (path for path in PACKAGE.rglob("*.py") if RULES not in path.parents):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("normfold.analysis.rules"):
                checked += 1
                assert not names & {alias.name for alias in node.names}, path
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                assert "Rule" not in ast.unparse(node.args[1]), path
    assert checked > 10


def test_what_is_not_in_the_table_is_a_wall() -> None:
    assert rule_of("Softmax") is WALL and rule_of("com.example.Relu") is WALL
    for operator, outcome in (("Softmax", kept("wall")), ("Identity", FOLDED)):
        text = (
            f"g (double[B,4] x) => (double y) {{\nh = Tanh(x)\nn = Mul(h, a)\no = {operator}(n)\ny = MatMul(o, w)\n}}"
        )
        assert outcomes(fold(build(text, a=(4,), w=(4, 3)))[1]) == [outcome]


def test_an_attribute_that_a_rule_does_not_read_makes_a_wall_of_it() -> None:
    for name, rule in TABLE.items():
        assert not rule.reads(Op(name, 0, "o", (), (), attributes={"of_another_opset": 1})), name
        assert rule.reads(Op(name, 0, "o", (), ())), name
