"""Exceptions of other code in one line, and whether memory ran out."""

from __future__ import annotations

from normfold.errors import CannotJudgeError

_LONGEST = 300
_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "allocate memory", "unable to allocate", "bfcarena")


def one_line(error: BaseException) -> str:
    """What an exception says, on one line of at most 300 characters."""
    return " ".join(str(error).split())[:_LONGEST] or "no reason given"


def raised(error: BaseException) -> str:
    """The class and the first line of an exception of the user's code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:_LONGEST].rstrip('.')}" if lines else type(error).__name__


def last_line(text: str) -> str:
    """The last line of what a process printed, where Python and most libraries put the reason; empty if none."""
    lines = text.strip().splitlines()
    return lines[-1][:_LONGEST] if lines else ""


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an exception, or what a process printed, says that memory ran out; libraries have no class for it."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "memoryerror" in said or any(word in said for word in _OUT_OF_MEMORY)


def check_memory(error: Exception, doing: str) -> None:
    """Raise CannotJudgeError if `error` says that memory or time ran out: that is no verdict on the model."""
    if isinstance(error, CannotJudgeError):
        raise error
    if is_out_of_memory(error):
        raise CannotJudgeError(
            f"memory ran out while running {doing}: {one_line(error)}. Try smaller inputs (--input with smaller sizes "
            "or limits) or fewer --samples"
        ) from error
