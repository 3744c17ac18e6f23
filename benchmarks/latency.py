"""What folding buys at run time: the LayerNorm baseline, the unfolded and the folded model of every kind of network.

    python -m benchmarks.latency [--only NAME ...] [--rounds 20] [--json FOLDER] [--write docs/benchmarks.md]

Published sizes, random weights, the statistics of random inputs; onnxruntime on the CPU, two threads, batch 1 and 8:
`normfold bench` on each. Prints the table of docs/benchmarks.md, and with --write puts it there. --json: a folder for
the raw samples.
--quick: the fixtures' sizes and few rounds, to see that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import randomise
from normfold.bench.job import Probe
from normfold.bench.result import Bench, Row
from normfold.bench.run import bench
from normfold.bench.statistics import Ratio
from normfold.bench.table import seconds
from normfold.checkpoint.save import save_checkpoint
from normfold.inputs.spec import InputSpec, draw, traced_sizes
from normfold.models import create
from normfold.system.files import write_text

THREADS = 2
BATCHES = (1, 8)
START, END = "<!-- latency: made by benchmarks/latency.py -->", "<!-- latency: end -->"


@dataclass(frozen=True)
class Model:
    """A network at its published size. inputs: its specification, with the sizes that it is measured at."""

    title: str
    arch: str
    inputs: str
    args: dict[str, Any] = field(default_factory=dict)


PICTURE = "x:float32[B,3,224,224]"
MODELS = (
    Model("DeiT-T, PRepBN", "deit_tiny_prepbn", PICTURE),
    Model("Swin-T, PRepBN", "swin_tiny_prepbn", PICTURE),
    Model("T2T-ViT-14, UN", "t2t_vit_14_un", PICTURE),
    Model(
        "post-norm encoder (base: 6 x 512), UN",
        "postnorm_encoder",
        "x:float32[B,1,64,512]",
        {"length": 64, "features": 512, "dim": 512, "depth": 6, "heads": 8, "mlp_ratio": 4.0, "norm": "un"},
    ),
    Model("LLaMA-350M, PRepBN, 32 tokens", "llama_350m_prepbn", "ids:int64[B,L=32]<32000"),
)
QUICK = (
    Model("ViT, PRepBN", "vit", "x:float32[B,1,8,8]", {"norm": "prepbn"}),
    Model("language model, PRepBN", "char_lm", "ids:int64[B,L=16]<128", {"norm": "prepbn"}),
)


def measure(model: Model, folder: Path, **options: Any) -> Bench:
    """Save the model as a checkpoint and benchmark that, as a user would."""
    return bench(saved(model, folder), batches=BATCHES, threads=THREADS, **options)


def saved(model: Model, folder: Path) -> Path:
    """The model as a checkpoint in `folder`."""
    torch.manual_seed(0)
    spec = InputSpec.parse(model.inputs)
    feeds = draw([spec], traced_sizes([spec]), seed=0)
    module = randomise(create(model.arch, **model.args), feeds)
    example = torch.from_numpy(feeds[spec.name])
    path = folder / f"{model.arch}.pt"
    given = {"arch": model.arch, "arch_args": model.args, "inputs": [model.inputs]}
    save_checkpoint(path, module, example_input={spec.name: example}, **given)
    return path


HEAD = """| model | batch | LayerNorm | unfolded | folded | folded / LayerNorm | folded / unfolded | peak memory |
|---|---|---|---|---|---|---|---|
"""


def line(model: Model, row: Row) -> str:
    """One row of the table."""
    names = ("layernorm", "unfolded", "folded")
    times = [seconds(found.median) if (found := row.summary(name)) is not None else "not measured" for name in names]
    ratios = row.ratios()
    compared = [told(ratios.get(("folded", other))) for other in ("layernorm", "unfolded")]
    probes = [row.probes.get(name) for name in names]
    known = [probe.memory.peak if isinstance(probe, Probe) else None for probe in probes]
    peaks = ["?" if peak is None else f"{peak / 1e6:.0f}" for peak in known]
    return f"| {model.title} | {row.batch} | {' | '.join((*times, *compared, ' / '.join(peaks) + ' MB'))} |\n"


def told(ratio: Ratio | None) -> str:
    """A ratio, its interval and what follows from it."""
    if ratio is None:
        return "not measured"
    span = "" if ratio.low is None or ratio.high is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    return f"{ratio.value:.2f}{span}: {ratio.verdict}"


def main() -> None:
    """Measure what was asked for, print the table, and write it where it belongs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names of architectures")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FOLDER")
    parser.add_argument("--write", type=Path, metavar="docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    settings = {"rounds": 2, "launches": 2} if options.quick else {"rounds": options.rounds}
    models = [model for model in (QUICK if options.quick else MODELS) if not options.only or model.arch in options.only]
    text = ""
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(model, Path(folder), **settings)
        if not text:
            where, versions = found.machine["cpu"], found.machine["versions"]
            text = f"{where}, {THREADS} threads, onnxruntime {versions['onnxruntime']}, "
            text += f"load {found.machine['load']} at the start.\n\n{HEAD}"
            print(text, end="")
        rows = "".join(line(model, row) for row in found.rows)
        print(rows, end="", flush=True)
        text += rows
        if options.json is not None:
            write_text(options.json / f"{model.arch}.json", found.dumps())
    if options.write is not None:
        page = options.write.read_text(encoding="utf-8")
        before, after = page.split(START)[0], page.split(END)[1]
        write_text(options.write, f"{before}{START}\n{text}{END}{after}")


if __name__ == "__main__":
    main()
