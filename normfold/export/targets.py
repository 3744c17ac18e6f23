"""What a model can be meant to run on, and what that says of the opset. opset.py asks the installed runtime."""

from __future__ import annotations

from dataclasses import dataclass

from normfold.errors import UsageError

# torch.onnx translates to this opset and converts upwards; below it there is nothing.
LOWEST_OPSET = 18


@dataclass(frozen=True, slots=True)
class Target:
    """What a model is meant to run on. opset: None where the installed onnxruntime is asked. why: for the report."""

    opset: int | None
    why: str


# A runtime that is not installed cannot be asked: for these the opset is what its importers have read for years.
TARGETS: dict[str, Target] = {
    "onnxruntime": Target(None, ""),
    "tensorrt": Target(
        20, "for TensorRT: its parser has LayerNormalization and Gelu of it, and fuses attention from its parts"
    ),
    "openvino": Target(20, "for OpenVINO: every operator that is written in it has an operation of its own there"),
    "mobile": Target(
        18, "for converters to mobile runtimes: no Attention and no RMSNormalization, which few of them read"
    ),
}


def check_target(name: str | None) -> Target:
    """The target of this name, onnxruntime without one. Raises UsageError."""
    found = TARGETS.get(name or "onnxruntime")
    if found is None:
        raise UsageError(f"--target {name}: choose from {', '.join(TARGETS)}")
    return found
