"""Dimensions with names in them, and where a Reshape puts them."""

from __future__ import annotations

from itertools import product as combinations

import numpy as np
import pytest

from normfold.graph.dims import (
    Dim,
    base_layout,
    elements,
    parse,
    product,
    reshape_groups,
    reshape_layout,
    reshaped,
    transpose_layout,
)


@pytest.mark.parametrize(
    ("text", "dim"),
    [
        (4, Dim(4)),
        ("batch", Dim(1, ("batch",))),
        ("64*batch", Dim(64, ("batch",))),
        ("batch*64", Dim(64, ("batch",))),
        ("2*b*3*a", Dim(6, ("a", "b"))),
        ("(4*s0)", Dim(4, ("s0",))),
        ("a.b", Dim(1, ("a.b",))),
        ("s0 + 1", Dim(1, ("s0 + 1",))),
        ("floor(s0/2)", Dim(1, ("floor(s0/2)",))),
        ("2*(a + b)", Dim(1, ("2*(a + b)",))),
        ("\u00b2*a", Dim(1, ("a", "\u00b2"))),
        (f"{'9' * 5000}*a", Dim(1, ("9" * 5000, "a"))),
        (f"{'9' * 18}*{'9' * 18}*a", Dim(1, (f"{'9' * 18}*{'9' * 18}*a",))),
        (None, Dim(1, ("?x.0",))),
        ("", Dim(1, ("?x.0",))),
        (0, Dim(1, ("?x.0",))),
        (-1, Dim(1, ("?x.0",))),
    ],
)
def test_parse(text: int | str | None, dim: Dim) -> None:
    assert parse(text, "x.0") == dim


def test_products_and_quotients() -> None:
    batch = Dim(64, ("B",))
    assert Dim(16).divides(batch) and Dim(16, ("B",)).divides(batch)
    assert not Dim(16, ("L",)).divides(batch) and not Dim(5).divides(batch) and not Dim(0).divides(batch)
    assert batch.over(Dim(16, ("B",))) == Dim(4)
    assert product([batch, Dim(2, ("A",))]) == Dim(128, ("A", "B"))
    assert elements([batch, Dim(3)]) == 192
    assert batch.renamed({"B": Dim(2, ("C",))}) == Dim(128, ("C",))


@pytest.mark.parametrize(
    ("shape", "copies", "expected"),
    [
        ((0, -1), True, (Dim(1, ("B",)), Dim(12))),
        ((-1, 4), True, (Dim(3, ("B",)), Dim(4))),
        ((0, -1), False, None),
        ((-1, 5), True, None),
        ((6, 2), True, (Dim(6), Dim(2))),
    ],
)
def test_reshaped(shape: tuple[int, ...], copies: bool, expected: tuple[Dim, ...] | None) -> None:
    assert reshaped((Dim(1, ("B",)), Dim(3), Dim(4)), shape, zero_copies=copies) == expected


def dims(*sizes: int | str) -> list[Dim]:
    return [parse(size, f"unknown{index}") for index, size in enumerate(sizes)]


def test_groups_hold_the_same_elements() -> None:
    """Every run of axes that is matched has the same product on both sides; all axes but those of size 1 are in one."""
    shapes = [s for n in (1, 2, 3, 4) for s in combinations((1, 2, 3, 4, 6), repeat=n) if np.prod(s) == 24]
    checked = 0
    for source, target in combinations(shapes[::7], shapes[::5]):
        groups = reshape_groups(dims(*source), dims(*target))
        for group in groups:
            assert np.prod([source[a] for a in group.source]) == np.prod([target[a] for a in group.target])
        assert [a for g in groups for a in g.source] == [a for a, size in enumerate(source) if size != 1]
        assert [a for g in groups for a in g.target] == [a for a, size in enumerate(target) if size != 1]
        checked += len(groups)
    assert checked > 100


def test_unknown_sizes_are_equal_to_none() -> None:
    source, target = dims(None, 4, 6), [Dim(1, ("other",)), Dim(4)]
    assert not [group for group in reshape_groups(source, target) if group.matched and 1 in group.source]


def test_layouts_follow_the_elements() -> None:
    """A chain of random reshapes and transposes comes back to the base's layout only where the elements do."""
    rng = np.random.default_rng(0)
    returned = 0
    for _ in range(400):
        base = (2, 4, 3)
        array = np.arange(24).reshape(base)
        layout, sizes, moved = base_layout(dims(*base)), base, array
        for _ in range(int(rng.integers(1, 5))):
            if rng.random() < 0.5:
                permutation = tuple(int(axis) for axis in rng.permutation(len(sizes)))
                layout, moved = transpose_layout(layout, permutation), moved.transpose(permutation)
            else:
                shapes = [(2, 4, 3), (8, 3), (2, 12), (24,), (4, 2, 3), (2, 2, 2, 3), (2, 4, 3, 1), (3, 4, 2), (6, 4)]
                target = shapes[int(rng.integers(len(shapes)))]
                found = reshape_layout(layout, dims(*moved.shape), dims(*target))
                if found is None:
                    break
                layout, moved = found, moved.reshape(target)
            sizes = moved.shape
            if layout == base_layout(dims(*base)):
                assert sizes == base and np.array_equal(moved, array)
                returned += 1
    assert returned > 20
