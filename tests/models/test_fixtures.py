"""The shipped fixtures are what their README says: small, trained, finished, and as accurate as stated."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

from normfold.checkpoint.load import load_checkpoint
from tests.paths import FIXTURES

FOLDER = FIXTURES
ROW = re.compile(
    r"^\| (\w+)\.pt \| (\w+) \| (\w+) \| (\w+) \| (\d+) of (\d+) .*\| ([\d.]+) \| ([\d,]+) \|", re.MULTILINE
)
ROWS = {match[1]: match.groups() for match in ROW.finditer((FOLDER / "README.md").read_text())}
LIMIT_BYTES = 1_000_000
# Another CPU rounds differently, which can turn a near-tie: two answers in a thousand.
ANSWERS_TOLERANCE = 0.002
BIGRAM_BITS = 3.76


def test_the_readme_lists_every_fixture() -> None:
    assert ROWS
    assert set(ROWS) == {path.stem for path in FOLDER.glob("*.pt")}
    for path in FOLDER.iterdir():
        assert not path.is_file() or path.stat().st_size < LIMIT_BYTES, path.name


@pytest.mark.parametrize("name", ROWS)
def test_a_fixture_is_as_accurate_as_stated(name: str) -> None:
    _, arch, _, data, right, total, bits, parameters = ROWS[name]
    source = load_checkpoint(FOLDER / f"{name}.pt")
    assert source.arch == arch
    assert source.module is not None
    held = np.load(FOLDER / f"{data}_heldout.npz")
    with torch.no_grad():
        logits = source.module(torch.from_numpy(held["x"])).flatten(0, -2)
    y = torch.from_numpy(held["y"]).flatten()
    assert len(y) == int(total)
    found = int((logits.argmax(-1) == y).sum())
    assert abs(found - int(right)) <= ANSWERS_TOLERANCE * len(y)
    assert sum(parameter.numel() for parameter in source.module.parameters()) == int(parameters.replace(",", ""))
    if data == "topics":
        assert float(bits) < 0.7 * BIGRAM_BITS
    else:
        assert found >= 0.95 * len(y)


@pytest.mark.parametrize("name", ROWS)
def test_a_fixture_has_trained_statistics(name: str) -> None:
    source = load_checkpoint(FOLDER / f"{name}.pt")
    assert isinstance(source.module, nn.Module)
    assert source.norms
    assert not source.warnings
    state = source.module.state_dict()
    for key, value in state.items():
        if key.endswith(".running_var"):
            assert bool((value > 0).all())
            assert float((value - 1).abs().max()) > 0.1, f"{key} is fresh"
        if key.endswith((".iter", ".warm")):
            assert int(value) == 0
    if ROWS[name][2] not in ("ln", "rms"):
        assert any(key.endswith(".running_var") for key in state)
