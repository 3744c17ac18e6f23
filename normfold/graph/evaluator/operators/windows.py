"""Where the windows of convolutions and pooling lie on the spatial axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from torch.nn import functional as F

from normfold.graph.evaluator.call import Call
from normfold.graph.evaluator.values import Tensor


@dataclass(frozen=True, slots=True)
class Windows:
    """By spatial axis: the kernel's size, steps, gaps, and padding before and behind (negative: cut off)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """What a window covers, its gaps included."""
        return tuple((size - 1) * gap + 1 for size, gap in zip(self.kernel, self.dilations, strict=True))

    def counts(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """How many whole windows lie on padded axes that had these sizes. Raises ValueError where none does."""
        found = tuple(
            (size + begin + end - extent) // stride + 1
            for size, begin, end, extent, stride in zip(
                sizes, self.begins, self.ends, self.extents, self.strides, strict=True
            )
        )
        if min(found, default=1) < 1:
            raise ValueError(f"a window of {list(self.extents)} is larger than the padded input")
        return found


def windows(call: Call, sizes: Sequence[int], kernel: Sequence[int], *, same_counts_gaps: bool = True) -> Windows:
    """The windows that a node's attributes describe.

    SAME pads so that there are ceil(size / stride) of them, an odd one at the end (UPPER) or at the beginning (LOWER).
    same_counts_gaps: as the standard has it; onnxruntime's pooling does as if the windows had no gaps, and makes fewer.
    """
    rank = len(sizes)
    given = call.integers("kernel_shape")
    if given and given != list(kernel):
        raise ValueError(f"kernel_shape is {given}, and the weight has {list(kernel)}")
    strides = tuple(call.integers("strides") or [1] * rank)
    dilations = tuple(call.integers("dilations") or [1] * rank)
    pads = call.integers("pads") or [0] * (2 * rank)
    mode = call.text("auto_pad", "NOTSET")
    if mode == "VALID":
        pads = [0] * (2 * rank)
    elif mode in ("SAME_UPPER", "SAME_LOWER"):
        needed = [
            same_padding(size, stride, (count - 1) * (gap if same_counts_gaps else 1) + 1)
            for size, stride, count, gap in zip(sizes, strides, kernel, dilations, strict=True)
        ]
        small = [total // 2 for total in needed]
        large = [total - total // 2 for total in needed]
        pads = [*small, *large] if mode == "SAME_UPPER" else [*large, *small]
    elif mode != "NOTSET":
        raise call.refuse(f"auto_pad {mode!r}")
    if len(strides) != rank or len(dilations) != rank or len(pads) != 2 * rank:
        raise ValueError(f"strides, dilations or pads do not fit {rank} spatial axes")
    return Windows(tuple(kernel), strides, dilations, tuple(pads[:rank]), tuple(pads[rank:]))


def taps_of(layout: Windows, counts: Sequence[int]) -> list[tuple[slice, ...]]:
    """For each element of the kernel, in order: what it reads of a padded input, over all windows."""
    return [
        tuple(
            slice(tap * gap, tap * gap + (count - 1) * stride + 1, stride)
            for tap, gap, count, stride in zip(taps, layout.dilations, counts, layout.strides, strict=True)
        )
        for taps in itertools.product(*map(range, layout.kernel))
    ]


def same_padding(size: int, stride: int, extent: int) -> int:
    """What one axis needs so that ceil(size / stride) windows fit."""
    return max((-(-size // stride) - 1) * stride + extent - size, 0)


def padded(x: Tensor, begins: Sequence[int], ends: Sequence[int], value: float = 0.0) -> Tensor:
    """The last axes padded, or cut where the padding is negative."""
    if not any(begins) and not any(ends):
        return x
    pairs = [pad for pair in zip(reversed(begins), reversed(ends), strict=True) for pad in pair]
    return F.pad(x, pairs, value=value)
