"""A decoder with its key-value cache: how long the prompt takes, and how long the tokens after it.

Such a model takes `ids` (N, L), `past_keys` and `past_values` (layers, N, heads, P, head_dim) and returns the logits
(N, L, vocabulary) and the keys and values of all P + L positions (export/parts.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from normfold.inputs.spec import InputSpec

# As in the figure of arXiv 2405.11582, LLaMA-350M: 44 -> 50.4 tokens a second at batch 1.
PROMPT = 32
GENERATED = 100
MODES = ("prompt", "generate")

IDS, KEYS, VALUES = "ids", "past_keys", "past_values"

Ids = npt.NDArray[np.int64]
# Token numbers and the cache before them: the largest logit's numbers at the last position, and the cache after them.
Step = Callable[[Ids, Any, Any], tuple[Ids, Any, Any]]


def is_decoder(names: Iterable[str]) -> bool:
    """Whether a model with inputs of these names decodes with a cache."""
    return {IDS, KEYS, VALUES} <= set(names)


def sizes(inputs: Sequence[InputSpec], batch: int) -> dict[str, int]:
    """The dynamic axes of a prompt: `batch` rows of `PROMPT` tokens, nothing in the cache."""
    specs = {spec.name: spec for spec in inputs}
    found: dict[str, int] = {}
    wanted = ((specs[IDS].dims[:2], (batch, PROMPT)), (specs[KEYS].dims[3:4], (0,)))
    for dims, chosen in wanted:
        found |= {dim: size for dim, size in zip(dims, chosen, strict=True) if isinstance(dim, str)}
    return found


def generate(step: Step, feeds: Mapping[str, npt.NDArray[Any]]) -> Callable[[], None]:
    """A call that makes `GENERATED` tokens, the likeliest each time, after the prompt in `feeds`, which is run now."""
    first = step(feeds[IDS], feeds[KEYS], feeds[VALUES])

    def call() -> None:
        ids, keys, values = first
        for _ in range(GENERATED):
            ids, keys, values = step(ids, keys, values)

    return call


def likeliest(logits: npt.NDArray[Any]) -> Ids:
    """(N, L, vocabulary) to the numbers (N, 1) that follow the last position."""
    return np.asarray(logits[:, -1:].argmax(-1), dtype=np.int64)
