"""The study of mutations finds what it changes and the tests that are to notice."""

from __future__ import annotations

import ast
import random
from pathlib import Path

from benchmarks.mutate_engine import (
    NEAREST,
    PACKAGE,
    REST,
    REST_OF_THE_JUDGE,
    ROOT,
    TARGETS,
    candidates,
    mutate,
    nearest,
)


def test_every_file_and_every_test_is_where_it_is_looked_for() -> None:
    assert len(TARGETS) > 20 and all(path.is_file() for path in TARGETS)
    assert {PACKAGE / name for name in NEAREST} <= set(TARGETS)
    named = [*REST, *REST_OF_THE_JUDGE, *(test for path in TARGETS for test in nearest(path))]
    assert [test for test in named if not (ROOT / "tests" / test).exists()] == []


def test_a_mutant_is_the_file_with_one_thing_changed() -> None:
    for path in TARGETS:
        if candidates(path)[0][1]:
            mutant = mutate(path, random.Random(3))
            before, after = mutant.done.split("  ->  ")
            assert before != after and mutant.line > 0
            compile(mutant.tree, str(path), "exec")


def test_what_nobody_could_see_is_left_as_it_is(tmp_path: Path) -> None:
    place = tmp_path / "a.py"
    place.write_text("a = x.reshape(-1, 3)\nb = list(zip(a, c, strict=True))\nd = x.sum(-2)\n", encoding="utf-8")
    ((_, nodes),) = candidates(place)
    assert sorted({ast.unparse(node) for node in nodes}) == ["-2", "2", "3"]
