"""The runtimes to measure: one file each, one row each in RUNNERS. How to add one: docs/extending/runtime.md."""

from __future__ import annotations

from collections.abc import Mapping

from normfold.bench.runners.base import Runner
from normfold.bench.runners.litert import LITERT
from normfold.bench.runners.openvino import OPENVINO
from normfold.bench.runners.ort import ORT
from normfold.bench.runners.torch import TORCH

RUNNERS: Mapping[str, Runner] = {
    "ort": ORT,
    "torch": TORCH,
    "openvino": OPENVINO,
    "litert": LITERT,
}
DEVICES = tuple(dict.fromkeys(device for runner in RUNNERS.values() for device in runner.modes))
DTYPES = tuple(dict.fromkeys(dtype for runner in RUNNERS.values() for dtype in runner.dtypes))
