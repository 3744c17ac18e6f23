"""Where the evaluator is known not to follow onnxruntime, and why: docs/truth.md lists them from here.

An entry names cases by a pattern. One that no case needs any more is an error (tests/evaluator/test_agreement.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Departure:
    """pattern: of the names of the cases. who: what is right. why: in a sentence."""

    operator: str
    pattern: str
    why: str

    def matches(self, name: str) -> bool:
        return re.search(self.pattern, name) is not None


# float64 tensors that onnxruntime computes in float32 inside, or with constants of float32: held to float32's bound.
SINGLE = frozenset({"Gelu", "GroupNormalization", "Shrink"})

DEPARTURES: tuple[Departure, ...] = (
    Departure(
        "Sign",
        r"/Sign .*, float16$",
        "Of a float16 NaN onnxruntime says 0, of a float32 one NaN. The evaluator has NaN for both.",
    ),
    Departure(
        "ArgMax",
        r"/ArgMax float32\[1.0, nan, 3.0\]",
        "onnxruntime passes over a NaN that is not in the first place. The evaluator takes NaN for the largest.",
    ),
    Departure(
        "MaxPool",
        r"/MaxPool float32\[\[\[1.0, nan",
        "Of a window with a NaN onnxruntime gives the largest of the others, and the lowest float for -inf; it "
        "depends on the type and on the opset. The evaluator gives NaN and -inf.",
    ),
)


def known(name: str) -> Departure | None:
    """The entry that names this case, None where there is none."""
    return next((entry for entry in DEPARTURES if entry.matches(name)), None)
