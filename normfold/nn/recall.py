"""What every norm needs in training: checkpointing, statistics over several ranks, refusal of damaged batches.

Every norm here changes its statistics inside an operator of its own (`torch.library.custom_op`) that names what it
mutates. Compilers leave such an operator whole: they can neither split it nor compute it twice from a counter that has
moved on. Its body runs as plain Python on real tensors, compiled or not, and reads no value of an accelerator.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normfold.errors import BatchError

# How many training calls of one module may wait for their backward pass and still be recomputed.
_WAITING = 16
_numbers = itertools.count()
# By module: what its last training calls decided, each with what tells it from the others.
_calls: dict[int, deque[tuple[Tensor, tuple[Tensor, ...]]]] = {}


class Stateful(nn.Module):
    """A norm whose training calls are remembered, so that gradient checkpointing computes each again as it was."""

    def __init__(self) -> None:
        super().__init__()
        self._renew()

    def _renew(self) -> None:
        # A tensor and no number: a compiler would make a program of its own for every number. On the CPU, wherever the
        # module is built: its value is read, and on the meta device operators would compute nothing.
        number = next(_numbers)
        self._key = torch.tensor(number, device="cpu")
        weakref.finalize(self, _calls.pop, number, None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._renew()


def recomputing() -> bool:
    """Whether this call comes from inside a backward pass: checkpointing computes a forward pass again."""
    return bool(torch._C._current_graph_task_id() != -1)


def remember(key: Tensor, mark: Tensor, results: Sequence[Tensor]) -> None:
    """Keep what a training call decided; mark: what is the same when the call is computed again, such as its mean."""
    kept = tuple(result.clone() for result in results)
    _calls.setdefault(int(key), deque(maxlen=_WAITING)).append((mark.clone(), kept))


def recall(key: Tensor, mark: Tensor) -> tuple[Tensor, ...] | None:
    """What the call that is being computed again decided the first time; None where it is no such call.

    The nearest mark wins (ties: the latest call), chosen on the device, so that nothing waits for it.
    """
    if not recomputing():
        return None
    calls = [call for call in _calls.get(int(key), ()) if call[0].shape == mark.shape and call[0].device == mark.device]
    if not calls:
        return None
    calls.reverse()
    distance = torch.stack([(known - mark).abs().sum() for known, _ in calls])
    nearest = distance.argmin()
    columns = zip(*(results for _, results in calls), strict=True)
    return tuple(torch.stack(column).index_select(0, nearest[None])[0] for column in columns)


def sample(x: Tensor) -> Tensor:
    """A few of x's numbers, by which a call is known again."""
    flat = x.detach().flatten()
    return flat[:: max(1, flat.numel() // 64)][:64].to(torch.promote_types(x.dtype, torch.float32))


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def across_ranks(*values: Tensor) -> tuple[Tensor, ...]:
    """The sum of each over all ranks of the default group; themselves where there is none."""
    if not _several_ranks():
        return values
    flat = torch.cat([value.flatten() for value in values])
    dist.all_reduce(flat)
    parts = torch.split(flat, [value.numel() for value in values])
    return tuple(part.view(value.shape) for part, value in zip(parts, values, strict=True))


def whole(value: float, name: str, *, least: int = 0) -> int:
    """A number of steps: 20000, or 2e4. Raises ValueError for what is no whole number of `least` or more."""
    if not isinstance(value, int | float) or value != value // 1 or value < least:
        raise ValueError(f"{name} takes a whole number of {least} or more, not {value!r}")
    return int(value)


def require_channels(x: Tensor, channels: int, *, axis: int, what: str) -> None:
    """Raise ValueError for an input that would broadcast, or that has no fractions."""
    if x.dim() < 1 + max(axis, 0) or x.shape[axis] != channels:
        raise ValueError(f"{what} has {channels} channels on axis {axis} of its input, got one of {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{what} takes floating-point input, got {x.dtype}")


def require_tokens(count: int, *, sync: bool) -> None:
    """Raise BatchError for a training batch that has no statistics.

    Not on one rank of several with `sync`, where the others wait for its share: `reject` looks at the sum of all.
    """
    if count < 2 and not (sync and _several_ranks()):
        raise BatchError(
            f"a training batch of {count} token{'s' * (count != 1)} has no statistics: give it two or more, or call "
            "model.eval() first. The statistics are as they were."
        )


def reject(sound: Tensor, what: str) -> None:
    """Raise BatchError unless `sound`. On an accelerator nothing waits: its caller keeps the old statistics instead."""
    if sound.device.type == "cpu" and not bool(sound):
        raise BatchError(
            f"{what}: a training batch holds NaN or infinite values, or fewer than two tokens that are no padding. "
            "The statistics are as they were; look for what made it (a loss that diverged, a damaged sample)."
        )


def store(buffer: Tensor, value: Tensor, when: Tensor) -> None:
    """Write `value` into `buffer` where `when` (one bool) holds."""
    buffer.copy_(torch.where(when, value.to(buffer.dtype), buffer))


def precise(x: Tensor, *others: Tensor) -> torch.dtype:
    """What statistics of x are computed in: float32 or what is wider."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    for other in others:
        dtype = torch.promote_types(dtype, other.dtype)
    return dtype


def mean_square_parts(x: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of squares (C,) and number (1,) of the tokens of x (..., C), without those where `padding` is True."""
    work = x.detach().to(precise(x))
    if padding is None:
        tokens = work.numel() // work.shape[-1]
        return work.square().flatten(0, -2).sum(0), work.new_full((1,), float(tokens))
    squares = torch.where(padding[..., None], torch.zeros((), dtype=work.dtype, device=work.device), work.square())
    return squares.flatten(0, -2).sum(0), (~padding).sum().to(work.dtype)[None]


def matching_mask(pad_mask: Tensor, shape: Sequence[int], *, what: str) -> Tensor:
    """`pad_mask` as bool of `shape`. Raises ValueError."""
    if tuple(pad_mask.shape) == tuple(shape):
        return pad_mask.bool()
    if len(shape) == 1 and tuple(pad_mask.shape) == (1, *shape):
        return pad_mask[0].bool()
    raise ValueError(f"{what} needs a pad_mask of shape {tuple(shape)}, got {tuple(pad_mask.shape)}")
