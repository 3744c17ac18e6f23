"""What the comparison of equalizations counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from benchmarks.equalization import added, changed
from tests.support.graphs import as_float32, build, draw

TEXT = "g (float[B,4] x) => (float[B,3] y) {\nh = MatMul(x, u)\nr = Relu(h)\ny = MatMul(r, w)\n}"


def saved(place: Path, text: str, **constants: np.ndarray) -> Path:
    onnx.save(as_float32(build(text, **constants)), place)
    return place


def test_weights_that_changed_and_operators_that_came(tmp_path: Path) -> None:
    u, w = draw("u", 4, 5), draw("w", 5, 3)
    before = saved(tmp_path / "a.onnx", TEXT, u=u, w=w)
    assert (changed(before, before), added(before, before)) == (0, 0)
    # Renamed is not changed; one number is.
    renamed = saved(tmp_path / "b.onnx", TEXT.replace("r, w", "r, v"), u=u, v=w)
    assert changed(before, renamed) == 0
    other = np.array(u)
    other[1, 2] *= 1.5
    smoothed = TEXT.replace("y = MatMul(r, w)", "s = Mul(r, f)\ny = MatMul(s, w)")
    after = saved(tmp_path / "c.onnx", smoothed, u=other, w=w, f=draw("f", 5))
    assert (changed(before, after), added(before, after)) == (1, 1)
