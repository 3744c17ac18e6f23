"""The cells of the GPU study in onnxruntime's CUDA provider, opset by opset: writes gpu_ort.json.

    ORT=FOLDER bash benchmarks/gpu_ort.sh [--seconds 300] [--device cuda|cpu] [--resume]

The graphs lie in benchmarks/gpu_graphs/ without their weights (gpu_graphs.py made them) and are filled here. Inputs and
outputs are bound on the device; a call is timed by the clock, from an idle device until it is idle again. torch is
imported before onnxruntime, for it brings the CUDA libraries that the provider is linked to.
`--device cpu` is a rehearsal with tiny networks, whose figures mean nothing.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks import gpu_budget, gpu_cells, gpu_device, gpu_figures
from benchmarks.gpu_models import FOLDED, LAYERNORM, LIMIT, PUBLISHED, TINY, UNFOLDED, Model
from normfold.bench import machine, nvidia
from normfold.bench.runners.ort import bound
from normfold.inputs.spec import InputSpec, draw

SCHEMA = 1
GRAPHS = Path(__file__).resolve().parent / "gpu_graphs"
DEFAULT = "default"
OPSETS = (DEFAULT, "17", "23", "21", "18")
# The exporter goes down to 18; the graphs of 17 are made of its.
LOWERED = "17"
STORED = ("18", "21", "23", DEFAULT)
VARIANTS = (LAYERNORM, UNFOLDED, FOLDED, LIMIT)
# A decoder with its cache is another graph of the same network.
CACHED = "_cached"
FORMATS = {"float32": "float32", "tf32": "float32", "float16": "float16"}
DRAWN = "drawn"
_NUMPY = {onnx.TensorProto.FLOAT: np.float32, onnx.TensorProto.FLOAT16: np.float16}

FORWARD, GENERATE, GENERATE_CACHED = "forward", "generate", "generate, cached"
PLAIN, GRAPH = "plain", "graph"


@dataclass(frozen=True)
class Cell:
    """What is measured; see gpu_cells.Cell. opset: of the graph."""

    model: str
    workload: str
    mode: str
    column: str
    batch: int
    opset: str

    @property
    def key(self) -> str:
        """Its name in lines and records."""
        return f"{self.model}, {self.workload}, opset {self.opset}, {self.mode}, {self.column}, batch {self.batch}"


def cells(models: Sequence[Model]) -> list[Cell]:
    """All cells, the most telling first: the default opset at batch 1, then what differs in one way, in two."""
    found = [
        Cell(model.name, workload, mode, column, batch, opset)
        for model in models
        for workload in ((FORWARD, GENERATE, GENERATE_CACHED) if model.generates else (FORWARD,))
        # A CUDA graph has one shape, and a generation one a token.
        for mode in ((PLAIN, GRAPH) if workload == FORWARD else (PLAIN,))
        for column in FORMATS
        for batch in (model.batches if workload == FORWARD else (1,))
        for opset in OPSETS
    ]
    order = {model.name: place for place, model in enumerate(models)}
    return sorted(found, key=lambda cell: (_distance(cell), order[cell.model], cell.batch))


def _distance(cell: Cell) -> int:
    of_batch = {1: 0, 128: 1}.get(cell.batch, 2)
    of_opset = {DEFAULT: 0, "17": 1, "23": 1}.get(cell.opset, 2)
    of_column = {"float32": 0, "float16": 1, "tf32": 2}[cell.column]
    return of_batch + of_opset + of_column + (cell.mode == GRAPH) + (cell.workload != FORWARD)


def fill(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with drawn weights where they were left out, the same in every call; `model` itself is changed."""
    block = np.random.default_rng(0).standard_normal(1 << 20).astype(np.float32)
    # Operands of Add and Sub, biases of layers and of norms (2), means (3).
    added = {
        name
        for node in model.graph.node
        for index, name in enumerate(node.input)
        if node.op_type in ("Add", "Sub") or index in (2, 3)
    }
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        drawn = np.resize(block, int(np.prod(tensor.dims, dtype=np.int64)))
        drawn *= np.float32(0.02)
        # A vector that is not added may be variances, or what is divided by.
        if sum(size > 1 for size in tensor.dims) == 1 and tensor.name not in added:
            drawn += 1.0
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = drawn.astype(_NUMPY[tensor.data_type]).tobytes()
    return model


def read(name: str, form: str, opset: str, variant: str) -> onnx.ModelProto:
    """One graph of an archive, without weights. Raises KeyError, saying why, where it could not be made."""
    if opset == LOWERED:
        return lowered(read(name, form, "18", variant))
    member = f"{form}/{opset}/{variant}.onnx"
    with zipfile.ZipFile(GRAPHS / f"{name}.zip") as archive:
        if member not in archive.namelist():
            raise KeyError(json.loads(archive.read("notes.json"))["missing"].get(member, f"there is no {member}"))
        return onnx.load_model_from_string(archive.read(member))


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """A graph of opset 18 at 17, where axes of reductions are attributes and Split needs no count; it is changed."""
    integers = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
    }
    for node in model.graph.node:
        newer = {"noop_with_empty_axes"} if node.op_type.startswith("Reduce") else {"num_outputs"}
        if node.op_type == "Resize" or (node.op_type == "Pad" and any(node.input[3:])):
            raise ValueError(f"{node.op_type}: opset 17 has nothing that does the same")
        if node.op_type == "ReduceSum" or not node.op_type.startswith(("Reduce", "Split")):
            continue
        kept = [attribute for attribute in node.attribute if attribute.name not in newer]
        if node.op_type != "Split" and len(node.input) > 1:
            kept.append(onnx.helper.make_attribute("axes", integers[node.input[1]].tolist()))
            del node.input[1:]
        del node.attribute[:]
        node.attribute.extend(kept)
    next(each for each in model.opset_import if each.domain == "").version = int(LOWERED)
    return model


def measure(cell: Cell, model: Model, device: str, *, deadline: float) -> dict[str, Any]:
    """Everything that is found of a cell, as plain data."""
    clock = gpu_device.Cpu()
    variants: dict[str, gpu_cells.Variant] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in VARIANTS:
        try:
            variants[name] = prepare(cell, model, name, device)
            found[name] = variants[name].found
        # onnxruntime's exceptions share no base, and each means that there is no figure of this variant.
        except Exception as error:
            found[name] = {"error": gpu_budget.explain(error)}
            gc.collect()
    seconds = 0.0 if device == "cpu" else gpu_cells.CELL_SECONDS
    samples = gpu_cells.timed(variants, clock, deadline=deadline, seconds=seconds)
    for name, milliseconds in samples.items():
        found[name].update(gpu_figures.summary(milliseconds, cell.batch, generates=cell.workload != FORWARD))
    rounds = min((len(each) for each in samples.values()), default=0)
    return {
        **vars(cell),
        "rounds": rounds,
        "cut": rounds < gpu_cells.FEWEST_ROUNDS,
        "variants": found,
        "ratios": gpu_figures.ratios(samples),
        "state": nvidia.state() if device == "cuda" else {},
    }


def prepare(cell: Cell, model: Model, name: str, device: str) -> gpu_cells.Variant:
    """Fill and open one graph, bind its inputs and outputs, and make its steps."""
    archive = model.name + (CACHED if cell.workload == GENERATE_CACHED else "")
    proto = fill(read(archive, FORMATS[cell.column], cell.opset, name))
    before = nvidia.memory_used() if device == "cuda" else None
    with tempfile.TemporaryDirectory(prefix="normfold-") as folder:
        optimised = None if model.generates else Path(folder) / "optimised.onnx"
        session = open_session(proto.SerializeToString(), cell, device, optimised)
        operators = None if optimised is None else counts(optimised)
    steps = {FORWARD: _forward, GENERATE: _uncached, GENERATE_CACHED: _cached}[cell.workload](
        session, cell, model, device
    )
    for step in steps:
        step()
    after = nvidia.memory_used() if device == "cuda" else None
    taken = None if before is None or after is None else max(0, after - before)
    opset = next(each.version for each in proto.opset_import if each.domain == "")
    found = {"memory": {"device": taken}, "operators": operators, "version": opset}
    return gpu_cells.Variant(steps, None, found)  # type: ignore[arg-type]


def open_session(content: bytes, cell: Cell, device: str, optimised: Path | None) -> Any:
    """A session with every optimisation on the provider that was asked for, and nothing but that."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    provider: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    if device == "cpu":
        options.intra_op_num_threads = 1
    else:
        ort.preload_dlls()
        settings = {
            "use_tf32": str(int(cell.column == "tf32")),
            "enable_cuda_graph": str(int(cell.mode == GRAPH)),
            "arena_extend_strategy": "kSameAsRequested",
        }
        provider = ("CUDAExecutionProvider", settings)
    session = ort.InferenceSession(content, options, providers=[provider])
    if session.get_providers()[0] != provider[0]:
        raise RuntimeError(f"onnxruntime fell back to {session.get_providers()[0]}: the CUDA libraries did not load")
    return session


def counts(path: Path) -> dict[str, int]:
    """The operators of the graph that onnxruntime really runs."""
    found: dict[str, int] = {}
    for node in onnx.load(path, load_external_data=False).graph.node:
        found[node.op_type] = found.get(node.op_type, 0) + 1
    return found


def _inputs(cell: Cell, model: Model) -> dict[str, np.ndarray[Any, Any]]:
    spec = InputSpec.parse(model.inputs)
    sizes = {"B": cell.batch, "L": model.prompt}
    array = draw([spec], {letter: sizes[letter] for letter in spec.letters}, seed=0)[spec.name]
    return {
        spec.name: array.astype(np.float16)
        if FORMATS[cell.column] == "float16" and array.dtype == np.float32
        else array
    }


def _forward(session: Any, cell: Cell, model: Model, device: str) -> list[Any]:
    return [bound(session, _inputs(cell, model), device)]


def _uncached(session: Any, cell: Cell, model: Model, device: str) -> list[Any]:
    """A step a token on the whole sequence. Which tokens they are makes no difference, and none is read back."""
    import onnxruntime as ort

    prompt = _inputs(cell, model)["ids"]
    every = np.concatenate([prompt, np.ones((cell.batch, model.tokens), np.int64)], axis=1)

    def step(ids: Any) -> None:
        binding = session.io_binding()
        binding.bind_ortvalue_input("ids", ids)
        binding.bind_output(session.get_outputs()[0].name, device, 0)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    lengths = range(prompt.shape[1], every.shape[1])
    held = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(every[:, :each]), device, 0) for each in lengths]
    return [partial(step, ids) for ids in held]


def _cached(session: Any, cell: Cell, model: Model, device: str) -> list[Any]:
    """A step a token with the cache that the step before left on the device."""
    import onnxruntime as ort

    prompt = _inputs(cell, model)["ids"]
    past = next(entry for entry in session.get_inputs() if entry.name == "past_keys")
    layers, _, heads, _, size = past.shape
    empty = np.zeros((layers, cell.batch, heads, 0, size), np.float16 if "float16" in past.type else np.float32)
    outputs = [entry.name for entry in session.get_outputs()]

    def held(array: np.ndarray[Any, Any]) -> Any:
        return ort.OrtValue.ortvalue_from_numpy(array, device, 0)

    start = {"ids": held(prompt), "past_keys": held(empty), "past_values": held(empty)}
    token = held(np.ones((cell.batch, 1), np.int64))
    state: dict[str, Any] = {}

    def step(*, first: bool) -> None:
        if first:
            state.update(start)
        binding = session.io_binding()
        for name, value in state.items():
            binding.bind_ortvalue_input(name, value)
        for name in outputs:
            binding.bind_output(name, device, 0)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        _, keys, values = binding.get_outputs()[:3]
        state.update(ids=token, past_keys=keys, past_values=values)

    return [partial(step, first=i == 0) for i in range(model.tokens)]


def work(path: Path, device: str, *, until: float) -> int:
    """Measure cell after cell."""
    import onnxruntime as ort

    gpu_budget.end_with_parent()
    if device == "cuda" and "CUDAExecutionProvider" not in ort.get_available_providers():
        print(
            f"this onnxruntime ({ort.__version__} in {Path(ort.__file__).parent}) has no CUDAExecutionProvider: name "
            "the folder of an unpacked onnxruntime-gpu with ORT=FOLDER. Nothing was measured",
            file=sys.stderr,
        )
        return gpu_budget.NOTHING
    models = {model.name: model for model in (PUBLISHED if device == "cuda" else TINY)}
    plan = cells(list(models.values()))
    worker = gpu_budget.Worker(path, until=until)
    described = machine.describe(device, os.cpu_count() or 1)
    if not worker.record.is_of(described):
        print(f"{path} was measured on another GPU; leave --resume out", file=sys.stderr)
        return gpu_budget.NOTHING
    worker.record.write(
        schema=SCHEMA,
        device=device,
        onnxruntime=ort.__version__,
        machine=described,
        models={model.name: model.title for model in models.values()},
        planned=[cell.key for cell in plan],
        stopped=None,
    )
    for cell in plan:
        model = models[cell.model]
        found = worker.run(
            cell.key,
            f"{cell.model}, {cell.mode}",
            2.0 if device == "cpu" else 40.0 if model.generates else 8.0,
            partial(measure, cell, model, device, deadline=until - gpu_budget.RESERVE),
            lambda: True,
        )
        if found is not None:
            print(gpu_figures.line(cell.key, found), flush=True)
    worker.record.write(skipped=worker.skipped)
    return 0
