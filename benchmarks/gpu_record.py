"""What folding changes in the modules of the GPU study's networks: writes benchmarks/gpu_folds/NAME.json.

    python -m benchmarks.gpu_record [--only NAME ...]

Each network is made with random weights and the statistics of random inputs, saved, and folded as a user would
(`inspect(...).to_torch()`); of the folded module only its structure is kept, which is a few kilobytes:

identity: norms that become nn.Identity. kept: norms that stay. maps: norms of which a multiplication or an addition
stays, with its shape. biases: layers that gain a bias, with its size. behind: convolutions that gain an addition.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu_models import FOLDS, PUBLISHED, TINY, Model
from benchmarks.models import randomise
from normfold import inspect, save_checkpoint
from normfold.inputs.spec import InputSpec, draw, traced_sizes
from normfold.models import create
from normfold.norms.detect import find_norms
from normfold.rewrite.module import ChannelMap
from normfold.system.files import write_text


def trained(model: Model) -> nn.Module:
    """The unfolded network as if it had been trained."""
    torch.manual_seed(0)
    spec = InputSpec.parse(model.inputs)
    batch = draw([spec], traced_sizes([spec]) | {"B": 16}, seed=0)
    return randomise(create(model.arch, **model.arguments()), batch)


def folded(model: Model, original: nn.Module) -> nn.Module:
    """The same, folded by the product."""
    spec = InputSpec.parse(model.inputs)
    with tempfile.TemporaryDirectory(prefix="normfold-") as folder:
        path = Path(folder) / f"{model.name}.pt"
        example = torch.from_numpy(draw([spec], traced_sizes([spec]), seed=0)[spec.name])
        given = {"arch": model.arch, "arch_args": model.arguments(), "inputs": [model.inputs]}
        save_checkpoint(path, original, example_input={spec.name: example}, **given)
        return inspect(path).to_torch()


def changes(original: nn.Module, result: nn.Module) -> dict[str, Any]:
    """What is different in the structure of `result`."""
    found: dict[str, Any] = {"identity": [], "kept": [], "maps": {}, "biases": {}, "behind": {}}
    for norm in find_norms(original):
        part = result.get_submodule(norm.name)
        if isinstance(part, ChannelMap):
            found["maps"][norm.name] = _shapes(part)
        else:
            found["identity" if isinstance(part, nn.Identity) else "kept"].append(norm.name)
    for name, part in original.named_modules():
        if not isinstance(part, nn.Linear | nn.modules.conv._ConvNd):
            continue
        now = result.get_submodule(name)
        if isinstance(now, nn.Sequential):
            now, added = now
            found["behind"][name] = _shapes(added)
        if part.bias is None and now.bias is not None:
            found["biases"][name] = now.bias.numel()
    return found


def _shapes(part: ChannelMap) -> dict[str, list[int] | None]:
    return {
        half: None if tensor is None else list(tensor.shape)
        for half, tensor in (("scale", part.scale), ("shift", part.shift))
    }


def record(model: Model) -> dict[str, Any]:
    """The changes of one network, from a real fold."""
    original = trained(model)
    return {"arch": model.arch, **changes(original, folded(model, original))}


def main() -> None:
    """Fold what was asked for and write the records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", help="names, as in benchmarks/gpu_models.py")
    options = parser.parse_args()
    FOLDS.mkdir(exist_ok=True)
    for model in (*TINY, *PUBLISHED):
        if options.only and model.name not in options.only:
            continue
        found = record(model)
        write_text(FOLDS / f"{model.name}.json", json.dumps(found, indent=1) + "\n")
        counts = ", ".join(f"{key} {len(value)}" for key, value in found.items() if key != "arch")
        print(f"{model.name}: {counts}", flush=True)


if __name__ == "__main__":
    main()
