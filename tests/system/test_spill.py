"""Large arrays of many samples lie on disk and come back as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normfold.system import spill as aside
from normfold.system.spill import LARGE, Feeds, Rows


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    wide = rng.standard_normal((3, LARGE // 8))
    return [wide, wide.astype(np.float16), wide > 0, wide.T, np.float32([1, 2]), np.array(["a", None], dtype=object)]


def test_rows_come_back_and_their_files_go(folder: Path) -> None:
    given = arrays()
    rows = Rows([tuple(given)])
    rows.append((np.zeros(LARGE),))
    assert len(list(folder.iterdir())) == 3
    for found, array in zip(rows[0], given, strict=True):
        assert found.dtype == array.dtype and found.shape == array.shape and (found == array).all()
    chosen = rows.only([1])
    assert len(rows) == 2 and len(chosen) == 1 and chosen[0][0].shape == (LARGE,)
    del rows
    assert len(list(folder.iterdir())) == 1
    del chosen
    assert not list(folder.iterdir())


def test_feeds_come_back_by_name(folder: Path) -> None:
    feeds = Feeds(dict(zip("abcdef", arrays(), strict=True)))
    assert list(feeds) == list("abcdef") and (feeds["a"] == arrays()[0]).all()
    # Writable, as torch wants them.
    feeds["a"][0] = 0.0
    assert len(list(folder.iterdir())) == 2


def test_without_room_on_disk_they_stay_in_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(aside.np, "save", full)
    rows = Rows([(np.ones(LARGE),)])
    assert (rows[0][0] == 1.0).all() and not list(folder.iterdir())
