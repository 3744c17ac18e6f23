"""LiteRT, once TensorFlow Lite, on the CPU with XNNPACK: a torch module converted by litert-torch.

int8 is the default recipe of Google's quantiser, `static_wi8_ai8`: weights and activations in eight bits, of everything
that it can quantise. The converter takes a LayerNorm apart, so its statistic is computed in eight bits too; the mode
`float-norms` leaves all of it in float32, between a dequantisation and a quantisation.
"""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.bench import memory
from normfold.bench.runners.base import Call, Feeds, Runner, not_installed

if TYPE_CHECKING:
    from normfold.bench.job import Job

FLOAT_NORMS = "float-norms"
# The scopes that the converter gives operators have the classes of their modules; that of a product may have the norm
# in front of it too, so that operators count as well.
_STATISTICS = r"(Layer|RMS)Norm"
_PARTS = ("MEAN", "SUM", "SQUARED_DIFFERENCE", "SUB", "ADD", "MUL", "DIV", "SQRT", "RSQRT", "RESHAPE")

# What litert-torch calls the one function of a module, and its inputs, in their order.
_FUNCTION, _INPUT = "serving_default", "args_{}"


def convert(job: Job) -> None:
    """The pickled module as job.scratch, in float32 and at the sizes of the job."""
    import litert_torch
    import torch

    from normfold.inputs.spec import call_arguments, draw, parse_specs

    sys.path[:0] = job.import_from
    feeds = draw(parse_specs(job.inputs), job.sizes, seed=job.seed)

    class InOrder(torch.nn.Module):
        """Takes its inputs in the order of the specifications."""

        def __init__(self) -> None:
            super().__init__()
            self.module: torch.nn.Module = pickle.loads(Path(job.model).read_bytes())

        def forward(self, *values: torch.Tensor) -> Any:
            args, kwargs = call_arguments(self.module.forward, dict(zip(feeds, values, strict=True)))
            return self.module(*args, **kwargs)

    litert_torch.convert(InOrder().eval(), tuple(map(torch.from_numpy, feeds.values()))).export(job.scratch)


def quantise(job: Job) -> None:
    """The same in int8; what it is calibrated on has the sizes of the job."""
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer, recipe

    from normfold.bench.runners.qdq import calibration

    convert(job)
    samples = [
        {_INPUT.format(place): array for place, array in enumerate(feeds.values())}
        for feeds in stacked(calibration(job), job)
    ]
    made = quantizer.Quantizer(job.scratch)
    made.load_quantization_recipe(recipe.static_wi8_ai8())
    if job.mode == FLOAT_NORMS:
        left = algorithm_manager.AlgorithmName.NO_QUANTIZE
        for operator in _PARTS:
            made.update_quantization_recipe(_STATISTICS, qtyping.TFLOperationName(operator), algorithm_key=left)
    made.quantize(made.calibrate({_FUNCTION: samples})).export_model(job.scratch, overwrite=True)


def stacked(samples: Sequence[Feeds], job: Job) -> Iterator[Feeds]:
    """The samples in batches of the job's sizes; the last one begins again with the first samples.

    Raises ValueError where they differ from these in another axis.
    """
    import numpy as np

    from normfold.inputs.spec import parse_specs

    shapes = {spec.name: spec.shape(job.sizes) for spec in parse_specs(job.inputs)}
    rows = {name: np.concatenate([feeds[name] for feeds in samples]) for name, shape in shapes.items() if shape}
    for name, array in rows.items():
        if array.shape[1:] != shapes[name][1:]:
            raise ValueError(f"{name} has the sizes {array.shape[1:]} in the data, and {shapes[name][1:]} is measured")
    batches = max((-(-len(array) // shapes[name][0]) for name, array in rows.items()), default=1)
    for batch in range(batches):
        yield {
            name: np.take(rows[name], np.arange(shape[0]) + batch * shape[0], axis=0, mode="wrap")
            if shape
            else samples[0][name]
            for name, shape in shapes.items()
        }


def open_model(job: Job, feeds: Feeds) -> Call:
    """Inputs are copied in with every call: LiteRT may use their memory for something else while it runs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(job.model, num_threads=job.threads)
    entries = dict(interpreter.get_signature_runner().get_input_details())
    interpreter.allocate_tensors()
    fed = [
        (entry["index"], stored(array, entry))
        for array, entry in ((array, entries[_INPUT.format(place)]) for place, array in enumerate(feeds.values()))
    ]

    def call() -> None:
        for index, array in fed:
            interpreter.set_tensor(index, array)
        interpreter.invoke()

    return call


def stored(array: Any, entry: Mapping[str, Any]) -> Any:
    """An input as the model takes it: a quantised one is `round(array / scale) + zero_point`, within its type."""
    import numpy as np

    wanted = np.dtype(entry["dtype"])
    scale, zero_point = entry["quantization"]
    if array.dtype.kind != "f" or wanted.kind == "f" or not scale:
        return array.astype(wanted)
    limits = np.iinfo(wanted)
    return np.clip(np.rint(array / scale) + zero_point, limits.min, limits.max).astype(wanted)


def inspect(job: Job) -> tuple[Mapping[str, int], int]:
    """The operators of the file, which the converter has fused already, and the bytes of its constants."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(Path(job.model).read_bytes())
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    codes = [names.get(code.builtinCode, "CUSTOM") for code in model.operatorCodes]
    counts = Counter(codes[each.opcodeIndex] for graph in model.subgraphs for each in graph.operators)
    # Those of large files lie behind what the buffers describe.
    weights = sum(int(buffer.size) + (0 if buffer.data is None else len(buffer.data)) for buffer in model.buffers)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))), weights


def lacks(device: str, mode: str = "", dtype: str = "") -> str:
    """The interpreter and the converter; what has not been tried."""
    missing = not_installed("ai_edge_litert", "litert") or not_installed("litert_torch", "litert")
    if missing:
        return missing
    if mode == "generate":
        return "ort and torch keep the cache of a decoder in place, litert does not here"
    if mode == FLOAT_NORMS and dtype not in ("", "int8"):
        return f"{FLOAT_NORMS} is a way to quantise: --dtype int8"
    return "litert-torch converts modules in float32; float16 is for its GPU delegates" if dtype == "float16" else ""


LITERT = Runner(
    name="litert",
    title="LiteRT on the checkpoint",
    library="ai_edge_litert.interpreter",
    packages=("ai-edge-litert",),
    modes={"cpu": ("plain", FLOAT_NORMS)},
    glosses={FLOAT_NORMS: "int8 without the LayerNorms"},
    dtypes=("float32", "int8"),
    prepare={"float32": convert, "int8": quantise},
    fixed_sizes=True,
    runs_modules=True,
    open=open_model,
    meter=lambda device: memory.Resident(),
    inspect=inspect,
    lacks=lacks,
)
