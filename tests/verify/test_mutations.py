"""A sample of benchmarks/mutation_study.py: wrong graphs are caught, right ones pass. The whole of it is slow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks import mutation_study
from benchmarks.mutation_study import (
    MUTATIONS,
    NAMES,
    Subject,
    judge_mutant,
    mutants,
    opset_mutants,
    opset_subject,
    right_folds,
    right_opset_folds,
    subject,
)
from tests.verify.opset_graphs import KINDS, OPSETS

FOLDS = 6


@pytest.fixture(scope="module")
def convnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """Padding, groups and a shift that stays; two probing inputs, for two are enough."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mutation_study, "PROBES", 2)
        yield mutation_study.subject("convnet_bn", tmp_path_factory.mktemp("convnet"))


def test_mutants_of_a_convolutional_network_are_caught(convnet: Subject) -> None:
    rng = np.random.default_rng(1)
    results = [result for kind in MUTATIONS for _ in range(2) if (result := judge_mutant(convnet, kind, rng))]
    assert not [result for result in results if result.change > 1 and not result.caught]
    caught = {result.kind for result in results if result.caught}
    assert {"shift moved through zero padding", "wrong group", "bias entry dropped", "channels swapped"} <= caught


def test_right_folds_raise_no_alarm(convnet: Subject) -> None:
    assert list(right_folds([convnet], FOLDS, 7)) == [("convnet_bn", True), ("random network", True)] * (FOLDS // 2)


@pytest.mark.parametrize("opset", OPSETS)
def test_mutants_of_onnx_files_of_every_opset_are_caught(
    opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutation_study, "PROBES", 2)
    kind = list(KINDS)[OPSETS.index(opset)]
    of = opset_subject(opset, kind, 7, tmp_path)
    results = list(mutants([of], 4, opset))
    assert len(results) == 4
    assert not [result for result in results if result.change > 1 and not result.caught]
    assert any(result.caught for result in results)


def test_right_folds_of_onnx_files_raise_no_alarm() -> None:
    folds = list(right_opset_folds(6, 7))
    assert len(folds) == 6 and all(passed for _, passed in folds)


@pytest.mark.slow
def test_the_whole_study_of_opsets() -> None:
    results = list(opset_mutants(100, 1))
    assert len(results) == 100 * len(OPSETS)
    beyond = [result for result in results if result.change > 1]
    missed = [result for result in beyond if not result.caught]
    # Close to its bound a change may show on one set of inputs and not on the other.
    assert len(missed) <= 0.01 * len(beyond) and all(result.change < 3 for result in missed)
    assert all(passed for _, passed in right_opset_folds(200, 1))


@pytest.mark.slow
def test_the_whole_study(tmp_path: Path) -> None:
    subjects = [subject(name, tmp_path) for name in NAMES]
    results = list(mutants(subjects, 500, 1))
    assert len(results) == 500
    beyond = [result for result in results if result.change > 1]
    missed = [result for result in beyond if not result.caught]
    # Close to its bound a change may show on one set of inputs and not on the other.
    assert len(missed) <= 0.01 * len(beyond) and all(result.change < 3 for result in missed)
    assert all(passed for _, passed in right_folds(subjects, 200, 1))
