"""Recorded outputs: a sketch sees what is wrong, and says when it can say nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from normfold.errors import CannotJudgeError
from normfold.inputs.spec import parse_specs
from normfold.verify.fingerprint import CASES, WIDTH, Sketch, project
from normfold.verify.judge import PLAIN
from normfold.verify.measure import measure
from normfold.verify.truth import establish
from normfold.verify.yardstick import Yardstick
from tests.verify.command import CHANNELS, change, graph, spoil

INPUTS = (f"x:float32[B,{CHANNELS}]",)


@pytest.fixture
def recorded(tmp_path: Path) -> tuple[Path, Sketch]:
    path = graph(tmp_path / "model.onnx")
    return path, Sketch.record(Yardstick.lay(establish(None, path, parse_specs(INPUTS)), path))


@pytest.mark.parametrize("size", [1, 5, 8, 9, 1000, 4097])
def test_a_sketch_keeps_the_size_of_rounding_and_sees_every_entry(size: int) -> None:
    value = np.random.default_rng(size).standard_normal(size)
    assert project(value).shape == (WIDTH,)
    # Orthonormal rows: the energy of noise comes out in proportion.
    length = -(-size // WIDTH)
    noise = [np.square(project(np.random.default_rng(i).standard_normal(size))).sum() for i in range(200)]
    assert np.mean(noise) == pytest.approx(size / length, rel=0.2)
    for index in {0, size // 2, size - 1}:
        other = value.copy()
        other[index] += 1.0
        moved = np.abs(project(other) - project(value)).max()
        assert moved == pytest.approx(1 / np.sqrt(length))


def test_the_record_survives_its_json(recorded: tuple[Path, Sketch]) -> None:
    _, sketch = recorded
    text = json.dumps(sketch.to_json())
    assert Sketch.from_json(json.loads(text)) == sketch
    assert len(sketch.cases) == CASES
    assert len(text) < 3000


def test_the_model_agrees_with_its_record_and_a_wrong_one_does_not(recorded: tuple[Path, Sketch]) -> None:
    path, sketch = recorded
    edge = sketch.compare(path, parse_specs(INPUTS), PLAIN)
    assert edge.passed
    assert 0 < edge.relative <= edge.bound < 1e-5
    spoilt = sketch.compare(change(path, spoil), parse_specs(INPUTS), PLAIN)
    assert not spoilt.passed
    assert spoilt.detail.startswith("output 'y' is worst at B=")


def test_other_inputs_from_the_same_seeds_are_no_verdict(recorded: tuple[Path, Sketch]) -> None:
    path, sketch = recorded
    other = replace(sketch, cases=tuple(replace(case, inputs="00" * 32) for case in sketch.cases))
    with pytest.raises(CannotJudgeError, match="draws other inputs from the recorded seeds"):
        other.compare(path, parse_specs(INPUTS), PLAIN)


def test_the_record_says_what_the_truth_says(recorded: tuple[Path, Sketch]) -> None:
    path, sketch = recorded
    truth = establish(None, path, parse_specs(INPUTS), cases=sketch.draw(parse_specs(INPUTS)))
    for case, (value,) in zip(sketch.cases, truth.outputs, strict=True):
        np.testing.assert_allclose(case.outputs[0], project(value), rtol=1e-8)
    measured = measure(truth, path, PLAIN)
    assert max(measured.own.worst) / truth.magnitudes().scales[0] <= sketch.bounds[0]
