"""Deterministic parameters and inputs, so that a reference can be stored as its answer alone.

Every tensor is drawn from a generator seeded by its own name, so the order of a
state dict does not matter and nothing but names, shapes and dtypes is needed to
rebuild the exact checkpoint that a reference output was computed from.
"""

from __future__ import annotations

import math
import zlib

import numpy as np


def tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Values (float64) for the parameter or buffer `name` of `shape`."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "running_var":
        return rng.uniform(0.3, 3.0, shape)
    if leaf == "running_mean":
        return rng.normal(0.0, 0.5, shape)
    if leaf == "alpha":
        return rng.uniform(0.05, 0.3, shape)
    if leaf == "bias":
        return rng.normal(0.0, 0.1, shape)
    if leaf == "weight" and len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape)
    if len(shape) >= 2:
        return rng.normal(0.0, 0.5 / math.sqrt(max(1, math.prod(shape[1:]))), shape)
    return rng.normal(0.0, 0.1, shape)


def image(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """A float64 input picture batch (N, 3, H, W), standard normal."""
    return np.random.default_rng([zlib.crc32(b"input:image"), seed]).normal(0.0, 1.0, shape)


def tokens(shape: tuple[int, ...], vocab: int, seed: int = 0) -> np.ndarray:
    """An int64 batch of token ids (N, T) in [4, vocab)."""
    return np.random.default_rng([zlib.crc32(b"input:tokens"), seed]).integers(4, vocab, shape)


def state_dict(record: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """The drawn part of the checkpoint that `record` (a NAME.json) describes, float64.

    Integer and boolean entries (counters, index tables) and those listed under
    `kept` (attention masks that the model computes) are not drawn: keep the values
    that building the model gives them.
    """
    return {
        entry["name"]: tensor(entry["name"], tuple(entry["shape"]), seed)
        for entry in record["entries"]
        if entry["dtype"].startswith("float") and entry["name"] not in record["kept"]
    }
