"""Norms: stored statistics, computed ones, local ones."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from onnx import TensorProto

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import F, U, const, row


def cases() -> Iterator[Case]:
    yield from batch()
    yield from instance()
    yield from layer()
    yield from local()


def batch() -> Iterator[Case]:
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5), (1, 3, 2, 3, 4), (0, 3, 4)):
        stored = [U(0.5, 2, 3), F(3), F(3), U(0.3, 3, 3)]
        for epsilon, momentum in product((None, 1e-3), (None, 0.7)):
            yield row("BatchNormalization", F(*shape), *stored, epsilon=epsilon, momentum=momentum)
        yield row("BatchNormalization", F(*shape), *map(const, stored), epsilon=0.1)
        yield row("BatchNormalization", F(*shape), *stored, spatial=1)
        yield row("BatchNormalization", F(*shape), *stored, training_mode=0)
        yield row("BatchNormalization", F(*shape), *stored, training_mode=1, epsilon=1e-3, momentum=0.8, outputs=3)
        yield row("BatchNormalization", F(*shape), *stored, training_mode=1)
    yield row("BatchNormalization", F(2, 3, 4), U(0.5, 2, 3), F(3), F(3), U(0.3, 3, 3), at=13, outputs=5)
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5)):
        stored = [U(0.5, 2, *shape[1:]), F(*shape[1:]), F(*shape[1:]), U(0.3, 3, *shape[1:])]
        yield row("BatchNormalization", F(*shape), *stored, spatial=0, epsilon=1e-2)


def instance() -> Iterator[Case]:
    for shape, epsilon in product(((2, 3, 4), (2, 3, 4, 5), (1, 3, 2, 3, 4)), (None, 0.01)):
        yield row("InstanceNormalization", F(*shape), F(3), F(3), epsilon=epsilon)
    for groups, epsilon in product((1, 2, 3, 6), (None, 0.01)):
        yield row("GroupNormalization", F(2, 6, 4, 5), F(6), F(6), num_groups=groups, epsilon=epsilon)
    for groups in (2, 3):  # one number a group, until opset 21
        yield row("GroupNormalization", F(2, 6, 4, 5), F(groups), F(groups), num_groups=groups, at=20)
    yield row("GroupNormalization", F(2, 6), F(6), F(6), num_groups=2)
    yield row("GroupNormalization", F(2, 6, 4), F(6), F(6), num_groups=2, stash_type=TensorProto.FLOAT)
    for axes in (None, [0, 2, 3], [1], [0, 1, 2, 3], [-1, 0], [2]):
        yield row("MeanVarianceNormalization", F(2, 3, 4, 5), axes=axes)
    yield row("MeanVarianceNormalization", F(2, 3, 4), axes=[0, 2])
    for across, scaled in product((None, 0, 1), repeat=2):
        forms = {"across_channels": across, "normalize_variance": scaled}
        yield row("MeanVarianceNormalization", F(2, 3, 4, 5), at=8, **forms)


def layer() -> Iterator[Case]:
    for axis in (None, 0, 1, 2, -1, -2, -3):
        width = (2, 3, 4)[axis if axis is not None else -1 :]
        for epsilon, bias in product((None, 0.01), (False, True)):
            yield row(
                "LayerNormalization", F(2, 3, 4), F(*width), F(*width) if bias else None, axis=axis, epsilon=epsilon
            )
        yield row("LayerNormalization", F(2, 3, 4), F(*width), F(*width), axis=axis, outputs=3, stash_type=1)
        yield row("RMSNormalization", F(2, 3, 4), F(*width), axis=axis)
        yield row("RMSNormalization", F(2, 3, 4), F(*width), axis=axis, epsilon=0.1, stash_type=1)
    yield row("LayerNormalization", F(2, 3, 4), F(4), outputs="y,,rest")
    yield row("LayerNormalization", F(2, 3, 4), F(1), F(4))
    yield row("LayerNormalization", F(2, 3, 4), F(3, 4))
    yield row("LayerNormalization", F(0, 4), F(4))
    yield row("RMSNormalization", F(2, 3, 4), F(1))


def local() -> Iterator[Case]:
    for size, shape in product((1, 2, 3, 4, 5), ((2, 6, 3, 4), (1, 3, 4, 4))):
        yield row("LRN", F(*shape), size=size)
        yield row("LRN", F(*shape), size=size, alpha=0.9, beta=0.6, bias=2.0)
    for axis, p in product((None, 0, 1, 2, -1, -2), (None, 1, 2)):
        yield row("LpNormalization", F(2, 3, 4), axis=axis, p=p)
    yield row("LpNormalization", np.zeros((2, 3), np.float32))
