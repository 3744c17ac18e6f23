"""What folding and verifying take of memory: three times the largest set of live tensors, plus 300 MB, at most."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from normfold.inputs.cases import draw_cases
from normfold.inputs.of_graph import graph_inputs
from normfold.verify.demand import live_elements

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell the peak")

MORE = 300e6
GIGABYTE = 1e9
# Folds, verifies, and says how much memory it took at most. (getrusage would tell the peak of the parent, if larger.)
RUN = """
import re, sys
from pathlib import Path
from normfold.verify.run import judge
from normfold.pipeline.run import fold
report = fold(sys.argv[1], sys.argv[2])
assert judge(Path(sys.argv[2])).passed
print(len(report.unfolded), int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""


class Layers:
    """Conv, BatchNormalization and Relu, one after the other."""

    def __init__(self, *shape: int | str) -> None:
        self.rng, self.nodes, self.weights = np.random.default_rng(0), [], []
        self.value, self.shape = "x", shape

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def add(self, kind: str, *inputs: str, **attributes: object) -> None:
        name = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, [self.value, *inputs], [name], name=name, **attributes))
        self.value = name

    def conv(self, outputs: int, inputs: int, *kernel: int, **attributes: object) -> None:
        fan = inputs * int(np.prod(kernel))
        weights = self.rng.standard_normal((outputs, inputs, *kernel)) / np.sqrt(fan / 2)
        self.add("Conv", self.weight(weights), **attributes)
        rows = [self.rng.uniform(low, high, outputs) for low, high in ((0.5, 2), (-1, 1), (-0.2, 0.2), (0.5, 2))]
        self.add("BatchNormalization", *map(self.weight, rows))
        self.add("Relu")

    def save(self, path: Path) -> Path:
        inputs = [helper.make_tensor_value_info("x", 1, self.shape)]
        outputs = [helper.make_tensor_value_info(self.value, 1, None)]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.weights)
        onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), path)
        return path


def dilated(path: Path, layers: int, batch: int | str) -> Path:
    """As networks for EEG have them: a receptive field of seconds by few layers."""
    net, channels = Layers(batch, 64, 15_000), 64
    for number in range(layers):
        outputs = 64 if number % 2 else 128
        net.conv(outputs, channels, 3, dilations=[4096], pads=[4096, 4096])
        channels = outputs
    return net.save(path)


def pictures(path: Path) -> Path:
    """Depthwise and pointwise convolutions on pictures, and a classifier."""
    net = Layers("B", 3, 160, 160)
    net.conv(32, 3, 3, 3, pads=[1] * 4, strides=[2, 2])
    channels = 32
    for outputs, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)):
        net.conv(channels, 1, 3, 3, pads=[1] * 4, group=channels, strides=[stride, stride])
        net.conv(outputs, channels, 1, 1)
        channels = outputs
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.add("MatMul", net.weight(net.rng.standard_normal((channels, 10)) / 16))
    return net.save(path)


def peak(path: Path) -> int:
    run = subprocess.run(
        [sys.executable, "-c", RUN, path, path.with_suffix(".folded.onnx")], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    unfolded, taken = map(int, run.stdout.split())
    assert unfolded == 0
    return taken


def live_bytes(path: Path) -> int:
    """Of the largest case that is drawn, in float64."""
    model = ir.load(path)
    cases = draw_cases(graph_inputs(model, path))
    return 8 * max(live_elements(model, {name: x.shape for name, x in case.feeds.items()}) for case in cases)


def check(path: Path, *, least: float = 0.0) -> int:
    live = live_bytes(path)
    assert live > least
    tiny = Layers(1, 2, 8)
    tiny.conv(2, 2, 3)
    taken = peak(path)
    assert taken - peak(tiny.save(path.with_name("tiny.onnx"))) < 3 * live + MORE
    return taken


def test_a_convolution_of_wide_dilation_takes_little(tmp_path: Path) -> None:
    assert check(dilated(tmp_path / "one.onnx", 1, 1), least=2e7) < GIGABYTE


@pytest.mark.slow
def test_a_network_of_wide_dilations_takes_less_than_a_gigabyte(tmp_path: Path) -> None:
    assert check(dilated(tmp_path / "several.onnx", 4, "N"), least=9e7) < GIGABYTE


@pytest.mark.slow
def test_a_network_on_pictures_takes_three_times_its_live_tensors(tmp_path: Path) -> None:
    check(pictures(tmp_path / "pictures.onnx"), least=4e7)
