"""What a model is judged on: drawn inputs of every size, real ones out of npz files, and files that do not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from normfold.errors import InputSpecError
from normfold.inputs.cases import SCALES, Case, draw_cases, read_cases
from normfold.inputs.spec import axis_sizes, common_axes, parse_specs
from normfold.system.spill import Rows
from normfold.verify.measure import NEIGHBOURS, RUNS, moved_runs
from normfold.verify.truth import Truth

PICTURES = parse_specs(["x:float32[B,3,8,8]"])
TOKENS = parse_specs(["ids:int64[B,L=8<=16]<50", "mask:bool[B,L]"])


def pictures(rows: int, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 3, 8, 8)).astype(dtype)


def tokens(rows: int, length: int, high: int = 50) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, high, (rows, length))
    return {"ids": ids, "mask": np.ones((rows, length), bool)}


@pytest.mark.parametrize("count", [1, 5, 32, 100])
def test_as_many_cases_as_asked_for(count: int) -> None:
    cases = draw_cases(TOKENS, seed=3, count=count)
    assert len(cases) == count
    assert len({case.seed for case in cases}) == count
    for case in cases:
        assert case.feeds["ids"].shape == case.feeds["mask"].shape == (case.sizes["B"], case.sizes["L"])
        assert 0 <= case.feeds["ids"].min() <= case.feeds["ids"].max() < 50
        assert case.sizes["L"] <= 16


def test_every_size_and_scale_comes_before_random_ones() -> None:
    cases = draw_cases(TOKENS, count=64)
    sizes = axis_sizes(TOKENS)
    assert [case.sizes for case in cases[: len(sizes)]] == sizes
    assert {case.sizes["B"] for case in cases} >= {1, 2, 3, 4, 7}
    assert len({case.sizes["L"] for case in cases}) >= 5
    assert {case.scale for case in cases[len(sizes) :]} == set(SCALES)
    assert len({tuple(case.sizes.items()) for case in cases[len(sizes) + len(SCALES) :]}) > 8


@pytest.mark.parametrize(
    "text", ["x:float32[B,H=224>=192<=351]", "x:float32[B=3*b,H=32*h=192>=160]", "x:float32[B<=70,4]"]
)
def test_no_axis_leaves_its_range(text: str) -> None:
    specs = parse_specs([text])
    cases = draw_cases(specs, count=64)
    assert max(size for case in cases for size in case.sizes.values()) > 64
    for letter, axis in common_axes(specs).items():
        assert all(axis.allows(case.sizes[letter]) for case in cases)


def test_dear_samples_have_one_row() -> None:
    """At every size that is tried, but not at random ones: 27 pictures instead of 80."""
    for text, parameters in (("x:float32[B,3,224,224]", 0), ("ids:int64[B,L=16]<50", 10**9)):
        specs = parse_specs([text])
        cases = draw_cases(specs, count=32, parameters=parameters)
        sizes = axis_sizes(specs, parameters=parameters)
        assert [case.sizes for case in cases[: len(sizes)]] == sizes
        assert len({case.sizes["B"] for case in cases}) >= 4
        assert {case.scale for case in cases[len(sizes) :]} == set(SCALES)
        assert all(case.sizes["B"] == 1 for case in cases[len(sizes) :])
    # Only the rows: other axes vary, and so do the rows of cheap samples.
    assert len({case.sizes["L"] for case in cases[len(sizes) + len(SCALES) :]}) > 3
    assert len({case.sizes["B"] for case in draw_cases(PICTURES, count=64)}) > 4


def test_moved_runs_go_round_and_the_rest_to_the_smallest() -> None:
    def planned(count: int, module: bool = False) -> tuple[tuple[int, ...], tuple[Case, ...]]:
        cases = draw_cases(PICTURES, count=count)
        rows = Rows([(np.zeros(1),)] * count)
        return moved_runs(Truth(cases, rows, "", from_module=module, narrow=rows if module else None)), cases

    assert planned(4)[0] == (NEIGHBOURS,) * 4
    assert not any(planned(100)[0]) and not any(planned(32, module=True)[0])
    runs, cases = planned(32)
    assert 32 + sum(runs) == RUNS
    assert set(runs) == {0, 1}
    moved = [case.elements for case, run in zip(cases, runs, strict=True) if run]
    assert max(moved) <= min(case.elements for case, run in zip(cases, runs, strict=True) if not run)


def test_the_same_seed_draws_the_same_cases() -> None:
    one, two, other = (draw_cases(PICTURES, seed=seed, count=20) for seed in (1, 1, 2))
    assert all(np.array_equal(a.feeds["x"], b.feeds["x"]) for a, b in zip(one, two, strict=True))
    assert not any(np.array_equal(a.feeds["x"], b.feeds["x"]) for a, b in zip(one, other, strict=True) if a.scale == 1)


def test_rows_become_samples_and_are_spread_evenly(tmp_path: Path) -> None:
    x = pictures(10)
    np.savez(tmp_path / "a.npz", x=x, labels=np.arange(10))
    cases = read_cases([tmp_path / "a.npz"], PICTURES, count=4)
    assert [str(case) for case in cases] == [f"a.npz row {row}" for row in (0, 3, 6, 9)]
    for case, row in zip(cases, (0, 3, 6, 9), strict=True):
        assert case.sizes == {"B": 1}
        assert np.array_equal(case.feeds["x"], x[row : row + 1])
    assert len(read_cases([tmp_path / "a.npz"], PICTURES, count=99)) == 10


def test_several_files_share_the_samples(tmp_path: Path) -> None:
    for name in "ab":
        np.savez(tmp_path / f"{name}.npz", x=pictures(6))
    cases = read_cases([tmp_path / "a.npz", tmp_path / "b.npz"], PICTURES, count=6)
    assert {str(case).split()[0] for case in cases} == {"a.npz", "b.npz"}


def test_a_static_batch_is_cut_into_batches(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=pictures(8))
    cases = read_cases([tmp_path / "a.npz"], parse_specs(["x:float32[4,3,8,8]"]), count=9)
    assert [str(case) for case in cases] == ["a.npz rows 0 to 3", "a.npz rows 4 to 7"]


def test_inputs_that_share_no_axis_are_one_sample(tmp_path: Path) -> None:
    specs = parse_specs(["x:float32[B,3]", "bias:float32[3]"])
    np.savez(tmp_path / "a.npz", x=np.ones((5, 3), "f4"), bias=np.ones(3, "f4"))
    (case,) = read_cases([tmp_path / "a.npz"], specs, count=9)
    assert (str(case), case.sizes) == ("a.npz", {"B": 5})


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": pictures(2)}, "no array 'x', which the model takes as x:float32.*it has image"),
        ({"x": pictures(2, "float64")}, "x is float64 and the model takes float32"),
        ({"x": pictures(2)[:, :, :5]}, r"shape \[1, 3, 5, 8\] and the model takes x:float32\[B,3,8,8\]"),
        ({"x": pictures(2)[0]}, r"shape \[3, 8, 8\]"),
        ({"x": pictures(0)}, r"shape \[0, 3, 8, 8\]"),
        ({"x": np.full((1, 3, 8, 8), np.nan, "f4")}, "holds NaN"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, arrays: dict[str, np.ndarray], said: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputSpecError, match=said):
        read_cases([tmp_path / "a.npz"], PICTURES, count=4)


def test_tokens_have_to_lie_in_the_vocabulary_and_lengths_below_their_limit(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **tokens(3, 9))
    assert len(read_cases([tmp_path / "a.npz"], TOKENS, count=9)) == 3
    np.savez(tmp_path / "a.npz", **tokens(3, 9, high=500))
    with pytest.raises(InputSpecError, match=r"ids has to lie in \[0, 50\)"):
        read_cases([tmp_path / "a.npz"], TOKENS, count=9)
    np.savez(tmp_path / "a.npz", **tokens(3, 17))
    with pytest.raises(InputSpecError, match=r"shape \[1, 17\]"):
        read_cases([tmp_path / "a.npz"], TOKENS, count=9)
    np.savez(tmp_path / "a.npz", **(tokens(3, 9) | {"mask": np.ones((3, 8), bool)}))
    with pytest.raises(InputSpecError, match="mask has the shape"):
        read_cases([tmp_path / "a.npz"], TOKENS, count=9)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", pictures(2))
    np.savez(tmp_path / "object.npz", x=np.array([{}]))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "object.npz").read_bytes()[:60])
    for name, said in (
        ("gone.npz", "No such file"),
        ("text.npz", "no npz file"),
        ("one.npy", "no npz file"),
        ("object.npz", "no npz file of plain arrays"),
        ("cut.npz", "no npz file"),
    ):
        with pytest.raises(InputSpecError, match=said):
            read_cases([tmp_path / name], PICTURES, count=4)
