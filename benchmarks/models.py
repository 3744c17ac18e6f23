"""What folding does to every architecture of the papers: writes docs/models.md.

    python benchmarks/models.py [--rounds 15] [--only NAME ...] [-o docs/models.md]

Each model is built at its published size with random weights and the statistics of random inputs, exported, and folded;
its LayerNorm (or RMSNorm) twin is exported beside it. Latency: onnxruntime on the CPU, default optimisations, two
threads, one session per variant, the variants interleaved; medians, as ratios. Error: onnxruntime without optimisations
against the module in float64, the largest over one batch, relative to the root mean square of the output.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import nn

from normfold.analysis.analyse import analyse
from normfold.checkpoint.source import Source
from normfold.export.to_onnx import export
from normfold.graph.operators import op_counts
from normfold.graph.prepare import prepare
from normfold.graph.write import save
from normfold.inputs.spec import InputSpec, call_arguments, draw, traced_sizes
from normfold.models import create
from normfold.norms.detect import find_norms
from normfold.rewrite.graph import rewrite

THREADS = 2
PICTURES = ("x:float32[B,3,224,224]",)
TOKENS = ("ids:int64[B,L=32]<32000",)

# Published model -> its twin with a statistic per token, and its inputs.
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "deit_tiny_prepbn": ("deit_tiny_ln", PICTURES),
    "deit_small_prepbn": ("deit_small_ln", PICTURES),
    "swin_tiny_prepbn": ("swin_tiny_ln", PICTURES),
    "swin_small_prepbn": ("swin_small_ln", PICTURES),
    "pvt_tiny_prepbn": ("pvt_tiny_ln", PICTURES),
    "pvt_small_prepbn": ("pvt_small_ln", PICTURES),
    "pvt_medium_prepbn": ("pvt_medium_ln", PICTURES),
    "slab_deit_tiny": ("slab_deit_tiny_ln", PICTURES),
    "slab_swin_tiny": ("slab_swin_tiny_ln", PICTURES),
    "slab_pvt_tiny": ("slab_pvt_tiny_ln", PICTURES),
    "cswin_tiny_prepbn": ("cswin_tiny_ln", PICTURES),
    "slab_cswin_tiny": ("slab_cswin_tiny_ln", PICTURES),
    "t2t_vit_14_un": ("t2t_vit_14_ln", PICTURES),
    "llama_350m_prepbn": ("llama_350m_rms", TOKENS),
    "nmt_un": ("nmt_ln", ("src:int64[B,S=24<=1024]<10000", "ids:int64[B,L=16<=1024]<10000")),
    "deepnet_encoder_un": ("deepnet_encoder_ln", ("src:int64[B,S=32<=1024]<32000",)),
}


@dataclass(frozen=True)
class Row:
    """What was found of one model."""

    name: str
    parameters: int
    norms: int
    folded: int
    partial: int
    nodes: tuple[int, int, int]
    error: tuple[float, float]
    latency: dict[int, tuple[float, float, float]]


def randomise(module: nn.Module, feeds: Mapping[str, np.ndarray], *, negative: float = 0.0) -> nn.Module:
    """The module as if it had been trained: its norms' weights and biases drawn, their statistics those of `feeds`.

    Fresh statistics would make a wrong fold look right, and drawn ones would let the activations of a deep network
    explode; so every norm observes what reaches it, and what it stores is that, off by up to a factor of two.
    negative: the share of weights that get the other sign.
    """
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf in ("iter", "warm"):
            tensor.zero_()
        elif leaf in ("weight", "bias") and tensor.ndim == 1:
            tensor.normal_(0.0 if leaf == "bias" else 1.0, 0.2, generator=generator)
        if leaf == "weight" and tensor.ndim == 1 and negative:
            tensor.mul_(1 - 2 * (torch.rand(tensor.shape, generator=generator) < negative).to(tensor.dtype))

    def observe(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        var = norm.get_buffer("running_var" if hasattr(norm, "running_var") else "running_phi")
        first = isinstance(norm, nn.modules.batchnorm._BatchNorm) or args[0].shape[-1] != var.numel()
        channels = args[0].movedim(1 if first else -1, 0).flatten(1)
        mean = getattr(norm, "running_mean", None)
        if mean is not None:
            mean.copy_(channels.mean(1))
        moment = channels.square().mean(1) if mean is None else channels.var(1, correction=0)
        factor = torch.empty_like(var).uniform_(0.5, 2.0, generator=generator)
        var.copy_((moment + 1e-3) * factor.reshape(var.shape))

    def weigh(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        # RepBN's alpha * x is to be smaller than BN(x): gated units square what a residual stream gathers otherwise.
        size = args[0].square().mean().sqrt()
        norm.get_parameter("alpha").uniform_(0.05, 0.3, generator=generator).div_(size)

    stored = [part for part in module.modules() if {"running_var", "running_phi"} & part._buffers.keys()]
    hooks = [part.register_forward_pre_hook(observe) for part in stored]
    hooks += [part.register_forward_pre_hook(weigh) for part in module.modules() if "alpha" in part._parameters]
    args, kwargs = call_arguments(module.forward, {name: torch.from_numpy(value) for name, value in feeds.items()})
    with torch.no_grad():
        module.eval()(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    return module


def source(name: str, specs: tuple[InputSpec, ...]) -> Source:
    """The model, as if it had been loaded."""
    torch.manual_seed(0)
    # Many: statistics of a few tokens would meet outliers in every other text.
    module = randomise(create(name), draw(specs, sizes(specs, 16), seed=0))
    return Source(
        path=Path(name),
        sha256="",
        format="torch",
        module=module,
        graph=None,
        program=None,
        inputs=specs,
        arch=name,
        arch_args={},
        norms=find_norms(module),
        warnings=(),
        trusted=False,
    )


def session(path: Path, *, optimised: bool = True) -> ort.InferenceSession:
    """A CPU session on THREADS threads."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 3
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def latencies(paths: list[Path], feeds: dict[str, np.ndarray], rounds: int) -> list[float]:
    """Median seconds of each, run in turn."""
    sessions = [session(path) for path in paths]
    times: list[list[float]] = [[] for _ in paths]
    for round_ in range(rounds + 2):
        for kept, each in zip(times, sessions, strict=True):
            start = time.perf_counter()
            each.run(None, feeds)
            if round_ >= 2:
                kept.append(time.perf_counter() - start)
    return [statistics.median(kept) for kept in times]


def error(module: nn.Module, path: Path, specs: tuple[InputSpec, ...]) -> float:
    """The largest error of the graph in float32 against the module in float64, relative to the output's RMS."""
    feeds = draw(specs, sizes(specs, 2), seed=1)
    wide = {k: torch.from_numpy(v).double() if v.dtype.kind == "f" else torch.from_numpy(v) for k, v in feeds.items()}
    args, kwargs = call_arguments(module.forward, wide)
    with torch.no_grad():
        truth = copy.deepcopy(module).double()(*args, **kwargs)
    truth = (truth[0] if isinstance(truth, tuple) else truth).numpy()
    found = session(path, optimised=False).run(None, feeds)[0]
    return float(np.abs(found - truth).max() / np.sqrt(np.mean(np.square(truth))))


def sizes(specs: tuple[InputSpec, ...], batch: int) -> dict[str, int]:
    """The sizes of all dynamic axes at a batch size."""
    return traced_sizes(specs) | {"B": batch}


def measure(name: str, twin: str, texts: tuple[str, ...], rounds: int, folder: Path) -> Row:
    """Export, fold and time one model and its twin."""
    specs = tuple(InputSpec.parse(text) for text in texts)
    original = source(name, specs)
    graph = prepare(export(original))
    plan = analyse(graph, norms=original.norms)
    folded = rewrite(graph, plan)
    reference = export(source(twin, specs))
    paths = [folder / f"{kind}.onnx" for kind in ("twin", "unfolded", "folded")]
    for path, model in zip(paths, (reference, graph, folded), strict=True):
        save(model, path)
    assert original.module is not None
    statuses = [site.status for site in plan.sites]
    latency: dict[int, tuple[float, float, float]] = {}
    for batch in (1, 8):
        # A call is short at batch 1, and needs more rounds to be sure of its median.
        found = latencies(paths, draw(specs, sizes(specs, batch), seed=0), rounds * (8 // batch))
        latency[batch] = (found[0], found[1], found[2])
    return Row(
        name=name,
        parameters=sum(p.numel() for p in original.module.parameters()),
        norms=len(statuses),
        folded=statuses.count("folded"),
        partial=statuses.count("partial"),
        nodes=tuple(sum(op_counts(m).values()) for m in (reference, graph, folded)),  # type: ignore[arg-type]
        error=(error(original.module, paths[1], specs), error(original.module, paths[2], specs)),
        latency=latency,
    )


HEAD = """# The papers' models, folded

Made by `python benchmarks/models.py --rounds {rounds}` on {machine}. Published sizes, random weights
and the statistics of random inputs (latency does not depend on them). *nodes*: twin with LayerNorm or RMSNorm /
unfolded / folded. *error*: float32 against float64, unfolded and folded, relative to the output's root mean square.
*latency*: onnxruntime {ort} on the CPU, {threads} threads, medians of interleaved runs at batch 1 (eight times as many)
and 8, folded against the twin (F/T) and against the unfolded graph (F/U); below 1 the folded graph is faster.

| model | parameters | norms | folded | partial | nodes | error | 1: F/T | 1: F/U | 8: F/T | 8: F/U |
|---|---|---|---|---|---|---|---|---|---|---|
"""


def line(row: Row) -> str:
    """One row of the table."""
    nodes = " / ".join(map(str, row.nodes))
    ratios = " | ".join(f"{f / t:.2f} | {f / u:.2f}" for t, u, f in row.latency.values())
    parameters = f"{row.parameters / 1e6:.1f} M"
    # A deep network of random gated units overflows on texts other than those its statistics are of.
    errors = f"{row.error[0]:.1e}, {row.error[1]:.1e}" if np.isfinite(row.error).all() else "overflows"
    return f"| {row.name} | {parameters} | {row.norms} | {row.folded} | {row.partial} | {nodes} | {errors} | {ratios} |"


def main() -> None:
    """Measure what was asked for and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/models.md"))
    options = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__.split('+')[0]}"
    text = HEAD.format(rounds=options.rounds, machine=machine, ort=ort.__version__, threads=THREADS)
    for name in options.only:
        twin, texts = MODELS[name]
        with tempfile.TemporaryDirectory() as folder:
            row = measure(name, twin, texts, options.rounds, Path(folder))
        print(line(row), flush=True)
        text += line(row) + "\n"
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
