"""int8 as onnxruntime.quantization writes it: QuantizeLinear and DequantizeLinear around what computes in eight bits.

Static: the ranges of the activations are those of inputs that are given or drawn. Several runtimes read such a file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.bench.runners.base import Feeds, fed_to
from normfold.system.ort import onnxruntime

if TYPE_CHECKING:
    from normfold.bench.job import Job

# So many sets of inputs, drawn or given, say what the activations hold.
DRAWN = 8
MOST_GIVEN = 64


def quantise(job: Job) -> None:
    """job.model in int8, as job.scratch: weights signed, a scale for each channel; activations unsigned, one for all.

    Raises ValueError where the graph is quantised already.
    """
    import onnx

    onnxruntime()  # one build, without telemetry
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    graph = onnx.load(job.model, load_external_data=False).graph
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        raise ValueError("it is quantised already; --dtype float32 measures it as it is")
    constants = {tensor.name for tensor in graph.initializer}
    names = [entry.name for entry in graph.input if entry.name not in constants]
    prepared = f"{job.scratch}.prepared.onnx"
    # Its symbolic shape inference takes Attention of ONNX for that of com.microsoft; shapes are in our files.
    quant_pre_process(job.model, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        job.scratch,
        _reader(names, calibration(job)),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    os.unlink(prepared)


def calibration(job: Job) -> Sequence[Feeds]:
    """The inputs to calibrate on: samples of the files that are given, otherwise drawn at the sizes of the job."""
    from normfold.inputs.cases import read_cases
    from normfold.inputs.spec import draw, parse_specs

    specs = parse_specs(job.inputs)
    if job.data:
        return [case.feeds for case in read_cases([Path(file) for file in job.data], specs, count=MOST_GIVEN)]
    # Not the inputs that are timed.
    return [draw(specs, job.sizes, seed=job.seed + 1 + number) for number in range(DRAWN)]


def _reader(names: Sequence[str], feeds: Iterable[Feeds]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Given(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[Feeds] = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            feed = next(self.left, None)
            return None if feed is None else fed_to(names, feed)

    return Given()
