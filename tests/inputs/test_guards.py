"""What torch.export says of sizes: computed, never executed; and the ranges of a program that leaves them to it."""

from __future__ import annotations

import pytest
import torch

from normfold.inputs.guards import hold_throughout, lowest
from normfold.inputs.of_module import program_inputs
from tests.support.modules import Image

DIMS = {"x": ("B", 3, "H")}
HALVED = "(1 + (((-1) + L['x'].size()[2]) // 2)) != 1"


@pytest.mark.parametrize(
    ("guard", "least"),
    [
        (HALVED, 3),
        ("L['x'].size()[2] >= 17", 17),
        ("17 <= L['x'].size()[2] and not L['x'].size()[2] == 19", 20),
        ("L['x'].size()[2] * L['x'].size()[0] > 40 or L['x'].size()[2] < 0", 21),
        ("L['x'].size()[2] % 2 == 0", 24),
        ("L['x'].size()[2] // (L['x'].size()[2] - 9) >= 0", 10),
        ("L['x'].size()[1] == 3", 1),
        # What cannot be read says nothing.
        ("L['x'].size()[2] >= f(17)", 1),
        ("L['y'].size()[2] >= 17", 1),
        ("L['x'].size()[7] >= 17", 1),
        ("__import__('os').abort()", 1),
        ("(" * 1000, 1),
        ("1 + " * 2000 + "1 == 0", 1),
    ],
)
def test_the_least_size_that_is_allowed(guard: str, least: int) -> None:
    assert lowest([guard], DIMS, {"B": 2, "H": 24}, "H", step=1, low=1) == least


@pytest.mark.parametrize(
    ("guard", "holds"),
    [
        ("(1 % (1 + (((-1) + L['x'].size()[2]) // 2))) != 0", True),
        ("L['x'].size()[2] != 40", False),
        ("L['x'].size()[2] != L['x'].size()[0] + 29", False),
        ("L['x'].size()[2] // (L['x'].size()[2] - 9) < 50", False),
        # What cannot be read may say anything.
        ("L['x'].size()[2] >= f(3)", False),
        ("(" * 1000, False),
    ],
)
def test_a_condition_at_every_size(guard: str, holds: bool) -> None:
    assert hold_throughout([guard], DIMS, {"B": range(1, 41), "H": range(3, 64)}) is holds


def test_a_multiple_stays_one() -> None:
    guards = [HALVED, "L['x'].size()[2] >= 33"]
    assert lowest(guards, DIMS, {"B": 2, "H": 96}, "H", step=32, low=32) == 64


def test_the_ranges_of_a_program() -> None:
    free = torch.export.Dim.AUTO
    cases = (
        ({0: free, 2: free, 3: None}, [1, 5, None], [None, None, None]),
        (
            {0: free, 2: torch.export.Dim("h", min=9, max=64), 3: 4 * torch.export.Dim("w", min=2)},
            [1, 9, 8],
            [None, 64, None],
        ),
    )
    for shapes, lows, limits in cases:
        program = torch.export.export(Image().eval(), (torch.ones(2, 3, 32, 32),), dynamic_shapes={"x": shapes})
        (spec,) = program_inputs(program)
        letters = [spec.dims[axis] for axis in (0, 2, 3)]
        assert [None if isinstance(one, int) else spec.lows.get(one, 1) for one in letters] == lows
        assert [None if isinstance(one, int) else spec.limits.get(one) for one in letters] == limits
