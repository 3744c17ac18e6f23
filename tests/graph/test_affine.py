"""The algebra of frames, against what it says of stored tensors."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from normfold.graph.affine import Frame, agree, agree_each, compress, to_rank, total, varying_axes

FINITE = st.floats(-1e3, 1e3)
VECTOR = arrays.arrays(np.float64, (1, 1, 4), elements=FINITE)
FRAMES = st.builds(Frame, VECTOR, VECTOR)


@settings(max_examples=50, deadline=None)
@given(FRAMES, FRAMES, arrays.arrays(np.float64, (2, 3, 4), elements=FINITE))
def test_a_frame_describes_the_tensor_after_a_map_and_a_sum(first: Frame, second: Frame, stored: np.ndarray) -> None:
    value, other = (f.scale * stored + f.shift for f in (first, second))
    moved = first.then(second.scale, second.shift)
    np.testing.assert_allclose(
        moved.scale * stored + moved.shift, second.scale * value + second.shift, rtol=1e-9, atol=1e-6
    )
    for sign in (1.0, -1.0):
        joined = first.plus(second, sign)
        np.testing.assert_allclose(joined.scale * stored + joined.shift, value + sign * other, rtol=1e-9, atol=1e-6)


def test_the_identity() -> None:
    frame = Frame.identity(3)
    assert frame.is_identity and frame.scale.shape == frame.shift.shape == (1, 1, 1)
    assert not Frame(np.full((1, 4), 2.0), np.zeros((1, 1))).is_identity
    assert not Frame(np.ones((1, 1)), np.full((1, 4), 1e-300)).is_identity


def test_shifts_agree_beside_the_largest_scales_each_for_itself() -> None:
    large = np.array([1.0, 1e-15])
    assert agree(large, np.array([1.0, 3e-15]))
    assert not agree_each(large, np.array([1.0, 3e-15]))
    assert agree_each(large, large * (1 + 1e-12)) and agree(large, large * (1 + 1e-12))
    for function in (agree, agree_each):
        assert not function(large, large * (1 + 1e-8))
        assert not function(np.ones(3), np.ones(4)), "shapes that do not broadcast"
        assert function(np.ones((1, 1)), np.ones((1, 4)))
        assert function(np.zeros(4), np.zeros(1))
    assert not agree_each(np.array([0.0]), np.array([1e-300]))


def test_a_sum_that_cancels_is_zero() -> None:
    third = np.array([1 / 3])
    assert total(third * 3, -np.ones(1))[0] == 0.0
    assert total(np.array([0.1]), np.array([0.2]), np.array([-0.3]))[0] == 0.0
    assert total(np.array([1.0]), np.array([-1.0 + 1e-9]))[0] != 0.0


def test_compress_drops_only_what_is_constant() -> None:
    same = np.broadcast_to(np.arange(3.0)[:, None], (3, 4))
    assert compress(same, (0, 1)).shape == (3, 1)
    assert compress(same, (0,)).shape == (3, 4)
    assert compress(np.ones((3, 4)), (0, 1)).shape == (1, 1)
    np.testing.assert_array_equal(np.broadcast_to(compress(same, (1,)), (3, 4)), same)


def test_ranks_change_as_in_numpy() -> None:
    vector = np.arange(4.0)
    raised, lowered = to_rank(vector, 3), to_rank(vector[None, None], 1)
    assert raised is not None and raised.shape == (1, 1, 4)
    assert lowered is not None and lowered.shape == (4,)
    assert to_rank(vector[:, None], 1) is None, "a leading axis that varies cannot be dropped"
    assert varying_axes(np.ones((1, 4, 1, 2))) == (1, 3)
