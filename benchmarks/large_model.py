"""Folding a model that is large beside the machine's memory: peak memory and time on a synthetic 8 GB decoder.

    python benchmarks/large_model.py FOLDER [--gigabytes 8]

Writes a decoder of LLaMA's blocks (4096 channels, 11008 hidden, vocabulary 32000) with RepBN norms and random
statistics to FOLDER/large.onnx and FOLDER/large.onnx.data, one tensor at a time, then folds it in a process of its own
(`normfold fold --no-verify`) and prints that process's peak memory: VmHWM, and how it was split at its largest sample.
FOLDER needs twice the model's size of free disk; both models are removed at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, HIDDEN, HEADS, VOCABULARY = 4096, 11008, 32, 32000
SMALL_BYTES = 1024
POLL_SECONDS = 0.05


@dataclass(slots=True)
class Decoder:
    """The graph as it grows; weights go straight to `data`."""

    data: BinaryIO
    channels: int
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, array: np.ndarray) -> str:
        if array.nbytes <= SMALL_BYTES:
            self.tensors.append(numpy_helper.from_array(array, name))
            return name
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        entries = {"location": Path(self.data.name).name, "offset": self.data.tell(), "length": array.nbytes}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        array.tofile(self.data)
        self.tensors.append(tensor)
        return name

    def weight(self, name: str, rows: int, columns: int) -> str:
        array = self.rng.standard_normal((rows, columns), dtype=np.float32)
        array *= np.float32(rows**-0.5)
        return self.constant(name, array)

    def node(self, op_type: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def linear(self, x: str, name: str, rows: int, columns: int) -> str:
        return self.node("MatMul", [x, self.weight(f"{name}.weight", rows, columns)], name)

    def norm(self, x: str, name: str) -> str:
        """RepBN, BN(x) + alpha * x, over the channels of (batch, length, channels)."""
        parts = {
            "gamma": self.rng.uniform(0.5, 1.5, self.channels),
            "beta": self.rng.normal(0.0, 0.1, self.channels),
            "mean": self.rng.normal(0.0, 0.1, self.channels),
            "var": self.rng.uniform(0.5, 1.5, self.channels),
        }
        names = [self.constant(f"{name}.{key}", part.astype(np.float32)) for key, part in parts.items()]
        turned = self.node("Transpose", [x], f"{name}.in", perm=[0, 2, 1])
        normed = self.node("BatchNormalization", [turned, *names], f"{name}.bn", epsilon=1e-5)
        skip = self.node("Mul", [turned, self.constant(f"{name}.alpha", np.float32([0.25]))], f"{name}.skip")
        return self.node("Transpose", [self.node("Add", [normed, skip], f"{name}.sum")], name, perm=[0, 2, 1])

    def attention(self, x: str, name: str, heads: int) -> str:
        shape = self.constant(f"{name}.split", np.array([0, 0, heads, -1], dtype=np.int64))
        parts = []
        for part, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
            flat = self.linear(x, f"{name}.{part}", self.channels, self.channels)
            split = self.node("Reshape", [flat, shape], f"{name}.{part}.heads")
            parts.append(self.node("Transpose", [split], f"{name}.{part}.turned", perm=perm))
        scores = self.node("MatMul", parts[:2], f"{name}.scores")
        root = self.constant(f"{name}.root", np.float32([(self.channels // heads) ** -0.5]))
        weights = self.node("Softmax", [self.node("Mul", [scores, root], f"{name}.scaled")], f"{name}.weights", axis=-1)
        mixed = self.node(
            "Transpose", [self.node("MatMul", [weights, parts[2]], f"{name}.mixed")], f"{name}.back", perm=[0, 2, 1, 3]
        )
        joined = self.constant(f"{name}.join", np.array([0, 0, -1], dtype=np.int64))
        return self.linear(self.node("Reshape", [mixed, joined], f"{name}.joined"), f"{name}.o", *2 * [self.channels])

    def feed_forward(self, x: str, name: str, hidden: int) -> str:
        gate = self.linear(x, f"{name}.gate", self.channels, hidden)
        silu = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.silu")
        up = self.linear(x, f"{name}.up", self.channels, hidden)
        return self.linear(self.node("Mul", [silu, up], f"{name}.product"), f"{name}.down", hidden, self.channels)


def write(path: Path, *, blocks: int, channels: int, hidden: int, heads: int, vocabulary: int) -> None:
    """A decoder of `blocks` blocks at `path`, its weights in `path` + ".data"."""
    with path.with_name(f"{path.name}.data").open("wb") as data:
        graph = Decoder(data, channels, np.random.default_rng(0))
        x = graph.node("Gather", [graph.weight("embedding", vocabulary, channels), "ids"], "embedded")
        for number in range(blocks):
            mixed = graph.attention(graph.norm(x, f"{number}.norm1"), f"{number}.attention", heads)
            x = graph.node("Add", [x, mixed], f"{number}.attended")
            fed = graph.feed_forward(graph.norm(x, f"{number}.norm2"), f"{number}.mlp", hidden)
            x = graph.node("Add", [x, fed], f"{number}.out")
        graph.linear(graph.norm(x, "norm"), "logits", channels, vocabulary)
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length", vocabulary])]
    made = helper.make_graph(graph.nodes, "decoder", inputs, outputs, graph.tensors)
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)


@dataclass(slots=True)
class Peak:
    """Of a process, in bytes: VmHWM, and the anonymous and mapped parts of the largest resident size that was seen."""

    whole: int = 0
    anonymous: int = 0
    mapped: int = 0

    def look(self, process: int) -> None:
        try:
            text = Path(f"/proc/{process}/status").read_text()
        except OSError:
            return
        found = {key: int(kilobytes) * 1024 for key, kilobytes in re.findall(r"(\w+):\s+(\d+) kB", text)}
        self.whole = max(self.whole, found.get("VmHWM", 0))
        if found.get("VmRSS", 0) > self.anonymous + self.mapped:
            self.anonymous, self.mapped = found["RssAnon"], found["RssFile"] + found["RssShmem"]


def watched(command: list[str]) -> tuple[Peak, float]:
    """Run a command to its end; its peak memory and its seconds."""
    peak, start = Peak(), time.perf_counter()
    with subprocess.Popen(command, env={**os.environ, "COLUMNS": "120"}) as process:
        while process.poll() is None:
            peak.look(process.pid)
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(process.returncode)
    return peak, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    arguments = parser.parse_args()
    block = 4 * (4 * CHANNELS**2 + 3 * CHANNELS * HIDDEN)
    blocks = max(1, round((arguments.gigabytes * 1e9 - 8 * CHANNELS * VOCABULARY) / block))
    free = shutil.disk_usage(arguments.folder).free
    if free < 2.2e9 * arguments.gigabytes:
        raise SystemExit(
            f"{arguments.folder} has {free / 1e9:.0f} GB free; two models of {arguments.gigabytes} GB do not fit"
        )
    source, target = arguments.folder / "large.onnx", arguments.folder / "folded.onnx"
    files = [file for place in (source, target) for file in (place, place.with_name(f"{place.name}.data"))]
    try:
        write(source, blocks=blocks, channels=CHANNELS, hidden=HIDDEN, heads=HEADS, vocabulary=VOCABULARY)
        size = sum(file.stat().st_size for file in files[:2])
        command = [sys.executable, "-m", "normfold", "fold", str(source), "-o", str(target), "--no-verify"]
        peak, seconds = watched(command)
        print(f"{blocks} blocks, {size / 1e9:.2f} GB; folded file to file in {seconds:.0f} s")
        print(f"peak {peak.whole / 1e9:.2f} GB, {peak.whole / size:.2f} times the model ", end="")
        print(f"(anonymous {peak.anonymous / 1e9:.2f} GB, mapped {peak.mapped / 1e9:.2f} GB at the largest sample)")
    finally:
        for file in files:
            file.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
