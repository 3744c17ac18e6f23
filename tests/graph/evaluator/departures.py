"""Where the evaluator is known not to follow onnxruntime, and why: docs/truth.md lists them from here.

An entry names cases by a pattern. One that no case needs any more is an error (tests/evaluator/test_agreement.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Departure:
    """pattern: of the names of the rows. why: in a sentence. variant: how the names of the cases end."""

    operator: str
    pattern: str
    why: str
    variant: str = ""

    def matches(self, name: str) -> bool:
        return re.search(self.pattern, name) is not None and name.endswith(self.variant)


# float64 tensors that onnxruntime computes in float32 inside, or with constants of float32: held to float32's bound.
SINGLE = frozenset({"Attention", "DFT", "FastGelu", "Gelu", "GroupNormalization", "Shrink"})

DEPARTURES: tuple[Departure, ...] = (
    Departure(
        "Sign",
        r"/Sign float32\[17\]",
        "Of a float16 NaN onnxruntime says 0, of a float32 one NaN. The evaluator has NaN for both.",
        ", float16",
    ),
    Departure(
        "ArgMax",
        r"/ArgMax float32\[1.0, nan, 3.0\]",
        "onnxruntime passes over a NaN that is not in the first place. The evaluator takes NaN for the largest.",
    ),
    Departure(
        "Resize",
        r"/Resize .* axes=\[-1,-2\] keep_aspect_ratio_policy=not_",
        "With negative axes and a keep_aspect_ratio_policy onnxruntime leaves the sizes as they are. The evaluator "
        "follows the specification, as onnxruntime does when the same axes are written without a sign.",
    ),
    Departure(
        "QuantizeLinear",
        r"/QuantizeLinear float8e4m3fn saturate=0",
        "To float8e4m3fn without saturation onnxruntime makes 448 of what lies from 480 to 496, and NaN of what lies "
        "below, down to 464, and above. The evaluator has NaN for all of it.",
    ),
    Departure(
        "Attention",
        r"/Attention .* one query, four keys",
        "With a past, and one query beside several new keys, onnxruntime's kernels of opsets 23 and 24 leave is_causal "
        "away; its function of opset 25 does not, nor does the evaluator.",
    ),
    Departure(
        "Conv, MaxPool, AveragePool, LpPool",
        r"Pool F\[1, 1, 8\] .* over gaps",
        "auto_pad SAME where the strides jump over more than the window covers, so that there is too much input: "
        "onnxruntime takes it off at both ends, differently from one operator to the next. The evaluator pads nothing.",
    ),
    Departure(
        "MaxPool",
        r"/MaxPool float32\[\[\[1.0, nan",
        "Of a window with a NaN onnxruntime gives the largest of the others, and the lowest float for -inf; it "
        "depends on the type and on the opset. The evaluator gives NaN and -inf.",
    ),
)

# What no case can show.
NOTES = (
    (
        "MeanVarianceNormalization",
        "Of numbers that are all the same the specification makes 0; onnxruntime divides by their deviation, 0 "
        "or what rounding left of it.",
    ),
    (
        "MaxPool, AveragePool, LpPool",
        "A window larger than the padded input is an error here, so that sizes that a graph cannot take are found out. "
        "onnxruntime gives nothing, or what the window does cover.",
    ),
    ("Split, BatchNormalization", "With an output in the middle left out onnxruntime crashes. The evaluator does not."),
    (
        "Sparse tensors",
        "A Constant with sparse_value is not covered, nor are sparse initializers: onnx-ir reads neither.",
    ),
)


def known(name: str) -> Departure | None:
    """The entry that names this case, None where there is none."""
    return next((entry for entry in DEPARTURES if entry.matches(name)), None)
