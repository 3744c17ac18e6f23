"""Two gloo processes under DistributedDataParallel, to the end of every schedule."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from normfold.nn import recalibrate
from tests.nn import ranks
from tests.nn.norms import NORMS, batch, fit, network

# How long another rank may take to write its file once rank 0 has.
SECONDS = 60
# float64, sums in another order.
TOLERANCE = 1e-10

States = dict[tuple[str, str], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[States, States]:
    folder = tmp_path_factory.mktemp("ranks")
    # Rank 0 is this process: one import of torch less.
    others = torch.multiprocessing.spawn(ranks.work_beside, (str(folder),), nprocs=ranks.RANKS - 1, join=False)
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            ranks.work(0, str(folder))
    finally:
        torch.set_num_threads(threads)
        for process in others.processes:
            # It is done where rank 0 is, and waits for ever where rank 0 failed.
            process.join(SECONDS)
            process.kill()
    assert others.join()
    first, second = (_load(folder / f"{rank}.pt") for rank in range(ranks.RANKS))
    return first, second


def _load(path: Path) -> States:
    states: Any = torch.load(path, weights_only=True)
    return states


@pytest.mark.parametrize("name", NORMS)
def test_synchronised_statistics_are_those_of_one_process(name: str, both: tuple[States, States]) -> None:
    whole = network(name, dtype=torch.float64)
    fit(whole)
    for key, expected in whole.state_dict().items():
        if key.endswith("_gz"):
            # In units of a rank's own loss, the mean over half of the tokens.
            expected = expected * ranks.RANKS
        for states in both:
            torch.testing.assert_close(states[name, "sync"][key], expected, rtol=TOLERANCE, atol=TOLERANCE, msg=key)


@pytest.mark.parametrize("name", NORMS)
def test_a_rank_with_one_token_or_none_takes_part(name: str, both: tuple[States, States]) -> None:
    whole = network(name, dtype=torch.float64)
    tokens = batch(0, dtype=torch.float64).flatten(0, 1)
    for _ in range(2):
        whole(tokens[:, None])
    for key, expected in whole.state_dict().items():
        for states in both:
            torch.testing.assert_close(states[name, "uneven"][key], expected, rtol=TOLERANCE, atol=TOLERANCE, msg=key)


@pytest.mark.parametrize("name", ranks.LOCAL)
def test_without_it_parameters_agree_and_every_rank_has_its_own_statistics(
    name: str, both: tuple[States, States]
) -> None:
    first, second = (states[name, "local"] for states in both)
    different = {key for key in first if not torch.equal(first[key], second[key])}
    parameters = {key for key, _ in network(name).named_parameters()}
    assert not different & parameters
    assert any("running" in key for key in different)


def test_a_converted_model_is_a_synchronised_one(both: tuple[States, States]) -> None:
    for states in both:
        for key, value in states["prepbn", "converted"].items():
            expected = states["prepbn", "sync"][key]
            torch.testing.assert_close(value, expected, rtol=TOLERANCE, atol=TOLERANCE, msg=key)


def test_recalibrated_statistics_are_those_of_all_ranks(both: tuple[States, States]) -> None:
    whole = network("repbn", dtype=torch.float64)
    recalibrate(whole, [batch(step, tokens=3 + step, dtype=torch.float64) for half in ranks.HALVES for step in half])
    for states in both:
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(states["repbn", "recalibrated"][key], value, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_rank_without_batches_gets_the_statistics_of_the_others(both: tuple[States, States]) -> None:
    """Layer by layer, in the order of the rank that has some."""
    whole = ranks.two_norms()
    assert list(recalibrate(whole, [batch(0, dtype=torch.float64)]).tokens) == ["first.1.0", "last.1.0"]
    for states in both:
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(states["two", "recalibrated"][key], value, rtol=TOLERANCE, atol=TOLERANCE)
