from __future__ import annotations

import numpy as np
import pytest

from tests.graph.evaluator.one_node import agrees, evaluated, floats

# onnxruntime expands it into a dozen float32 operators, or computes a power in float32.
LOOSE = 1e-3


def statistics(*shape: int) -> list[np.ndarray]:
    """Scale, shift, mean and variance."""
    return [floats(*shape, seed=1), floats(*shape, seed=2), floats(*shape, seed=3), abs(floats(*shape, seed=4)) + 0.1]


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15])
def test_batch_norm(opset: int) -> None:
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 2, 2), (0, 3, 4)):
        agrees("BatchNormalization", opset, [floats(*shape), *statistics(3)], {"epsilon": 1e-3, "momentum": 0.8})
    agrees("BatchNormalization", opset, [floats(2, 3, 4), *statistics(3)])


def test_batch_norm_of_every_position() -> None:
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5)):
        agrees("BatchNormalization", 7, [floats(*shape), *statistics(*shape[1:])], {"spatial": 0})


def test_batch_norm_in_training() -> None:
    inputs = [floats(2, 3, 4, 5), *statistics(3)]
    for opset in (7, 9, 13):
        agrees("BatchNormalization", opset, inputs, {"momentum": 0.8}, outputs=5)
    for opset in (14, 15):
        agrees("BatchNormalization", opset, inputs, {"momentum": 0.8, "training_mode": 1}, outputs=3)


@pytest.mark.parametrize("shape", [(2, 6, 4), (2, 6, 3, 5), (2, 6, 2, 1, 3)])
def test_instances_and_groups(shape: tuple[int, ...]) -> None:
    for opset in (7, 22):
        agrees("InstanceNormalization", opset, [floats(*shape), *statistics(6)[:2]], {"epsilon": 1e-2})
    for groups in (1, 2, 6):
        form = {"num_groups": groups, "epsilon": 1e-3}
        agrees("GroupNormalization", 18, [floats(*shape), *statistics(groups)[:2]], form, relative=LOOSE)
        agrees("GroupNormalization", 21, [floats(*shape), *statistics(6)[:2]], form, relative=LOOSE)


@pytest.mark.parametrize("axis", [None, -1, -2, 0, 1])
def test_layers(axis: int | None) -> None:
    shape = (2, 3, 4)
    form = {"epsilon": 1e-3} if axis is None else {"epsilon": 1e-3, "axis": axis}
    for size in (shape[-1 if axis is None else axis :], (4,)):
        scale, shift = statistics(*size)[:2]
        for opset in (13, 17):
            agrees("LayerNormalization", opset, [floats(*shape), scale, shift], form, outputs=3)
            agrees("LayerNormalization", opset, [floats(*shape), scale], form)
        agrees("RMSNormalization", 23, [floats(*shape), scale], form)
        agrees("SimplifiedLayerNormalization", 17, [floats(*shape), scale], form, outputs=2)


@pytest.mark.parametrize("axes", [None, [1], [0, 1, 2, 3], [-1], [2, 3]])
def test_mean_and_variance(axes: list[int] | None) -> None:
    for opset in (9, 13):
        agrees("MeanVarianceNormalization", opset, [floats(2, 3, 4, 5)], {} if axes is None else {"axes": axes})


def test_mean_and_variance_of_a_constant() -> None:
    (found,) = evaluated("MeanVarianceNormalization", 13, [np.full((2, 3, 4, 5), 3, np.float32)])
    assert not found.any()


@pytest.mark.parametrize("size", [1, 3, 5, 7, 13])
def test_local_response(size: int) -> None:
    for opset in (7, 13):
        form = {"size": size, "alpha": 0.5, "beta": 0.6, "bias": 2.0}
        agrees("LRN", opset, [floats(2, 6, 3, 4)], form, relative=LOOSE)
        agrees("LRN", opset, [floats(2, 6, 3, 4)], {"size": size}, relative=LOOSE)


def test_local_response_of_an_even_size_has_the_odd_neighbour_behind() -> None:
    x = np.array([1, 2, 3], np.float32).reshape(1, 3, 1)
    (found,) = evaluated("LRN", 13, [x], {"size": 2, "alpha": 2.0, "beta": 1.0, "bias": 0.0})
    np.testing.assert_allclose(found.reshape(-1), [1 / (1 + 4), 2 / (4 + 9), 3 / 9])


@pytest.mark.parametrize("order", [1, 2])
def test_lp(order: int) -> None:
    x = floats(2, 3, 4)
    x[0, 1] = 0
    for opset in (7, 22):
        for axis in (0, 1, -1):
            agrees("LpNormalization", opset, [x], {"p": order, "axis": axis})
