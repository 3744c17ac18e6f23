"""How long folding takes and how much memory, on a 100 MB ONNX file, beside onnxslim on the same file.

    python benchmarks/fold_speed.py [--rounds 5]
    python benchmarks/fold_speed.py --nodes 3500 7000 14000 28000 50000 [--rounds 5]
    python -m benchmarks.fold_speed --verify OTHER [--rounds 1]

Builds a pre-norm Transformer encoder with PRepBN and random statistics (about 25 million parameters), then runs,
interleaved and each in its own process: `normfold` (load, analyse, rewrite, save, timed apart) and `onnxslim.slim`.
Prints medians, the ratio, the peak resident memory above that of the imports, and the time of `normfold --help`.
The figures in docs/benchmarks.md are this output.

With --nodes: seconds of each stage on ever deeper decoders without biases (benchmarks/large_model.py, 16 channels: one
residual stream, two norms to a block, every shift carried by the writers of the stream), as a table.

With --verify: how long `normfold verify` takes for ONNX files of three models of the package transformers (published
sizes, drawn weights and statistics), by the normfold in this folder and by the one in OTHER, the folder of another
commit (`git worktree add OTHER COMMIT`), interleaved. Seconds on the clock, and of the processors.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Operators of one block of benchmarks/large_model.py.
NODES_OF_BLOCK = 34

_NORMFOLD = r"""
import json, re, sys, time
from pathlib import Path
from normfold.graph.prepare import prepare
from normfold.graph.write import save
from normfold.analysis.analyse import analyse
from normfold.graph.read import read_graph
from normfold.rewrite.graph import rewrite
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
idle, times, clock = peak(), {}, time.perf_counter()
def lap(name):
    global clock
    now = time.perf_counter(); times[name] = now - clock; clock = now
model = prepare(read_graph(Path(sys.argv[1]))); lap("load")
plan = analyse(model); lap("analyse")
result = rewrite(model, plan); lap("rewrite")
save(result, Path(sys.argv[2])); lap("save")
statuses = [site.status for site in plan.sites]
print(json.dumps({"seconds": times, "peak": peak() - idle, "nodes": [len(model.graph), len(result.graph)],
                  "sites": len(statuses), "folded": statuses.count("folded")}))
"""
_ONNXSLIM = r"""
import json, re, sys, time
import onnx, onnxslim
def peak(): return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
idle, start = peak(), time.perf_counter()
result = onnxslim.slim(sys.argv[1])
slimmed = time.perf_counter() - start
onnx.save(result, sys.argv[2])
times = {"slim": slimmed, "all": time.perf_counter() - start}
print(json.dumps({"seconds": times, "peak": peak() - idle, "nodes": [len(result.graph.node)]}))
"""


def build(path: Path) -> None:
    """A 14-block, 384-channel encoder with PRepBN, exported to `path`."""
    import torch

    from normfold.checkpoint.source import Source
    from normfold.export.to_onnx import export
    from normfold.graph.write import save
    from normfold.inputs.spec import InputSpec
    from normfold.models import create
    from normfold.norms.detect import find_norms

    torch.manual_seed(0)
    module = create(
        "vit", norm="prepbn", image_size=32, patch_size=4, channels=3, dim=384, depth=14, heads=6, mlp_ratio=4.0
    )
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.3, 3.0)
        elif name.endswith("running_mean"):
            tensor.normal_(0.0, 0.5)
    source = Source(
        path=path,
        sha256="",
        format="torch",
        module=module.eval(),
        graph=None,
        program=None,
        inputs=(InputSpec.parse("x:float32[B,3,32,32]"),),
        arch="vit",
        arch_args={},
        norms=find_norms(module),
        warnings=(),
        trusted=False,
    )
    save(export(source), path)


def measure(code: str, source: Path, target: Path) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", code, source, target], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def scaling(nodes: list[int], rounds: int) -> None:
    """Print the table of nodes against seconds; the sizes are interleaved."""
    from benchmarks.large_model import write

    stages = ("load", "analyse", "rewrite", "save")
    with tempfile.TemporaryDirectory() as folder:
        sources = [Path(folder) / f"{size}.onnx" for size in nodes]
        for source, size in zip(sources, nodes, strict=True):
            write(source, blocks=size // NODES_OF_BLOCK, channels=16, hidden=32, heads=2, vocabulary=64)
        runs: list[list[dict[str, Any]]] = [[] for _ in sources]
        for _ in range(rounds):
            for found, source in zip(runs, sources, strict=True):
                found.append(measure(_NORMFOLD, source, Path(folder) / "out.onnx"))
    print("| nodes | norms folded | load | analyse | rewrite | save | analyse + rewrite, per 1,000 nodes |")
    print("|---|---|---|---|---|---|---|")
    for found in runs:
        seconds = {stage: statistics.median(run["seconds"][stage] for run in found) for stage in stages}
        before, after = found[0]["nodes"]
        each = 1000 * (seconds["analyse"] + seconds["rewrite"]) / before
        laps = " | ".join(f"{value:.2f} s" for value in seconds.values())
        folded = f"{found[0]['folded']} of {found[0]['sites']}"
        print(f"| {before:,} -> {after:,} | {folded} | {laps} | {each:.2f} s |")


def _pictures() -> torch.nn.Module:
    from transformers import MobileNetV2Config, MobileNetV2Model

    return MobileNetV2Model(MobileNetV2Config())


def _deit() -> torch.nn.Module:
    from transformers import DeiTConfig, DeiTModel

    return DeiTModel(DeiTConfig(hidden_size=192, num_attention_heads=3, intermediate_size=768))


def _bert() -> torch.nn.Module:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig())


# Name, model, inputs. BERT takes its token types: without them `onnx.reference` does not run its graph.
VERIFIED = {
    "MobileNetV2, 224 x 224": (_pictures, ("pixel_values:float32[B,3,224,224]",)),
    "DeiT-tiny, 224 x 224": (_deit, ("pixel_values:float32[B,3,224,224]",)),
    "BERT, 12 layers, 64 tokens": (_bert, ("input_ids:int64[B,64]<30522", "token_type_ids:int64[B,64]<2")),
}


def verification(other: Path, rounds: int) -> None:
    """Print the table of verifications, here and in the folder of the other commit."""
    import torch

    from normfold.pipeline.run import fold

    here = Path(__file__).resolve().parent.parent
    print("| model | samples | before | now | before / now |\n|---|---:|---:|---:|---:|")
    # All of them before anything is exported: that leaves transformers' table of activations changed.
    torch.manual_seed(0)
    modules = {name: build() for name, (build, _) in VERIFIED.items()}
    for name, (_, inputs) in VERIFIED.items():
        with tempfile.TemporaryDirectory() as folder:
            source, target = Path(folder) / "source.onnx", Path(folder) / "folded.onnx"
            _export(modules.pop(name), inputs, source)
            fold(source, target, verify=False)
            runs: dict[Path, list[tuple[float, float]]] = {other.resolve(): [], here: []}
            for _ in range(rounds):
                for tree, found in runs.items():
                    found.append(_verified(tree, source, target))
        (old, old_busy), (new, new_busy) = (map(statistics.median, zip(*found)) for found in runs.values())  # noqa: B905
        told = [f"{clock:.0f} s ({busy:.0f} s)" for clock, busy in ((old, old_busy), (new, new_busy))]
        print(f"| {name} | 32 | {told[0]} | {told[1]} | {old / new:.1f} ({old_busy / new_busy:.1f}) |", flush=True)


def _export(module: torch.nn.Module, inputs: tuple[str, ...], path: Path) -> None:
    from normfold.checkpoint.source import Source
    from normfold.export.to_onnx import export
    from normfold.graph.write import save
    from normfold.inputs.spec import InputSpec
    from normfold.norms.detect import find_norms

    for key, tensor in module.state_dict().items():
        if key.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif key.endswith("running_mean"):
            tensor.normal_(0.0, 0.2)
    module.config.return_dict = False
    specs = tuple(map(InputSpec.parse, inputs))
    source = Source(path, "", "torch", module.eval(), None, specs, norms=find_norms(module))
    save(export(source), path)


def _verified(tree: Path, source: Path, target: Path) -> tuple[float, float]:
    """Seconds on the clock and of the processors. Raises CalledProcessError where the verdict is not "passed"."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "normfold", "verify", target, "--against", source],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    after = os.times()
    busy = sum(after[2:4]) - sum(before[2:4])
    return time.perf_counter() - start, busy


def help_seconds() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "normfold", "--help"], capture_output=True, check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--nodes", type=int, nargs="+", help="a table over graphs of about these many operators")
    parser.add_argument("--verify", type=Path, metavar="OTHER", help="a table of verifications, here and in OTHER")
    asked = parser.parse_args()
    rounds = asked.rounds
    if asked.verify:
        verification(asked.verify, rounds)
        return
    if asked.nodes:
        scaling(asked.nodes, rounds)
        return
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "model.onnx", Path(folder) / "out.onnx"
        build(source)
        ours, theirs, helps = [], [], []
        for _ in range(rounds):
            ours.append(measure(_NORMFOLD, source, target))
            theirs.append(measure(_ONNXSLIM, source, target))
            helps.append(help_seconds())
        size = source.stat().st_size

    def median(runs: list, *keys: str) -> float:  # type: ignore[type-arg]
        values = []
        for run in runs:
            value = run
            for key in keys:
                value = value[key]
            values.append(float(value))
        return statistics.median(values)

    mb = 1e6
    seconds = {stage: median(ours, "seconds", stage) for stage in ("load", "analyse", "rewrite", "save")}
    fold = statistics.median(run["seconds"]["analyse"] + run["seconds"]["rewrite"] for run in ours)
    whole = statistics.median(sum(run["seconds"].values()) for run in ours)
    slim, slim_whole = median(theirs, "seconds", "slim"), median(theirs, "seconds", "all")
    nodes, first = ours[0]["nodes"], ours[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds} rounds, medians")
    print(
        f"file: {size / mb:.0f} MB, {nodes[0]} -> {nodes[1]} nodes, {first['folded']} of {first['sites']} norms folded"
    )
    print("normfold: " + ", ".join(f"{stage} {value:.3f} s" for stage, value in seconds.items()))
    print(f"analyse + rewrite {fold:.3f} s, onnxslim.slim {slim:.3f} s: ratio {fold / slim:.3f}")
    print(f"file to file: normfold {whole:.3f} s, onnxslim {slim_whole:.3f} s: ratio {whole / slim_whole:.3f}")
    print(f"peak memory above the imports: normfold {median(ours, 'peak') / mb:.0f} MB, ", end="")
    print(f"onnxslim {median(theirs, 'peak') / mb:.0f} MB (3 x file + 300 MB is {3 * size / mb + 300:.0f} MB)")
    print(f"normfold --help: {statistics.median(helps):.3f} s")


if __name__ == "__main__":
    main()
