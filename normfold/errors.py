"""What normfold raises.

    NormfoldError              bad input: the message is one paragraph that says what, where and what to do; exit code 2
    ├── UsageError             contradictory or malformed options
    ├── InputSpecError         inputs, or a specification of them, that cannot be read or do not fit the model
    ├── CheckpointError        a checkpoint that cannot be read, or is not what it claims to be
    ├── ArchitectureError      no architecture for these weights, or weights that do not fit it
    ├── NormStateError         a norm whose stored statistics cannot be used (NaN, negative, unfinished)
    ├── BatchError             a training batch that would damage the statistics of a norm; also a ValueError
    ├── ExportError            the model could not be exported to ONNX
    ├── GraphError             an ONNX graph that is malformed or that normfold cannot read
    ├── NotExpressibleError    a fold that the parameters of the torch module cannot hold
    ├── OutputError            the output cannot be written where it was asked for
    ├── CannotJudgeError       there is nothing to judge with: no source, no provider, no memory
    ├── NotFoldedError         with `strict`: a norm was not folded; exit code 3; `report` says which and why
    └── VerificationError      the result differs from the source; exit code 1
        └── DifferenceError    a fold that differs, of which nothing was written; `report` has the figures

    InternalError              a broken invariant of normfold itself; deliberately unrelated, exit code 4

A fold that cannot be done is neither: it is a `Refuse` value in the plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normfold.report.report import Report


class NormfoldError(Exception):
    """Bad input. `exit_code` is what the command line exits with."""

    exit_code = 2


class UsageError(NormfoldError):
    """Contradictory or malformed options."""


class InputSpecError(NormfoldError):
    """An input specification that cannot be parsed or does not fit the model."""


class CheckpointError(NormfoldError):
    """A checkpoint that cannot be read, or is not what it claims to be."""


class ArchitectureError(NormfoldError):
    """No architecture for these weights, or weights that do not fit it."""


class NormStateError(NormfoldError):
    """A norm whose stored statistics cannot be used: NaN, negative, missing, or a schedule that has not ended."""


class BatchError(NormfoldError, ValueError):
    """A training batch from which a norm can take no statistics: NaN in it, or a single token."""


class ExportError(NormfoldError):
    """The model could not be exported to ONNX."""


class GraphError(NormfoldError):
    """An ONNX graph that is malformed or that normfold cannot read."""


class NotExpressibleError(NormfoldError):
    """A fold that the parameters of the torch module cannot hold."""


class OutputError(NormfoldError):
    """The output cannot be written where it was asked for."""


class CannotJudgeError(NormfoldError):
    """A verdict cannot be reached: no source to compare with, no such provider, not enough memory."""


class NotFoldedError(NormfoldError):
    """`strict` was asked for and a norm with stored statistics is still there. report: which, and why."""

    exit_code = 3

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class VerificationError(NormfoldError):
    """The result differs from the source."""

    exit_code = 1


class DifferenceError(VerificationError):
    """The folded graph does not compute what the source computes; nothing was written. report: with the figures."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class InternalError(Exception):
    """A broken invariant of normfold itself: please report it."""
