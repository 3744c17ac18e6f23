"""What a float16 model takes where its float32 source takes float32, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from normfold.inputs.spec import InputSpec
from normfold.system.numbers import HALF


def half_specs(specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """What the float16 graph takes where the float32 one takes `specs`."""
    return tuple(replace(spec, dtype=HALF) if spec.dtype == "float32" else spec for spec in specs)


def single_specs(specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """What a float32 source takes, as far as the float16 model that was made of it tells."""
    return tuple(replace(spec, dtype="float32") if spec.dtype == HALF else spec for spec in specs)
