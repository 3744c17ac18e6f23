"""Vision transformers of one size with LayerNorm, BatchNorm, UN and PRepBN on MNIST's pictures.

The papers' claim: norms that fold reach LayerNorm's accuracy. python -m experiments.vit [--quick]
"""

from __future__ import annotations

from typing import Any

import torch

from experiments.common import Figures, Setting, load, main, measured
from fixtures.make_fixtures import Recipe, fit
from normfold.models import create

# 17 tokens of 48 channels.
SIZE = {"image_size": 28, "patch_size": 7, "dim": 48, "depth": 2, "heads": 3}


def norms(steps: int) -> dict[str, dict[str, Any]]:
    """The norms with their schedules; PRepBN trains the last 40 % on RepBN alone."""
    return {
        "ln": {},
        "bn": {},
        "un": {"window": 4, "warmup": steps // 5},
        "prepbn": {"steps": steps // 2, "warm": steps // 10},
    }


def run(setting: Setting) -> Figures:
    """Train every variant from the same start on the same batches."""
    data = load("mnist", setting)
    steps = setting.number(full=2000, quick=60)
    found: Figures = {}
    for norm, options in norms(steps).items():
        torch.manual_seed(setting.seed)
        model = create("vit", **SIZE, norm=norm, norm_args=options)
        recipe = Recipe("vit", {}, "mnist", steps, batch=64, shift=2, seed=setting.seed)
        found[norm] = measured(fit(model, recipe, data), data)
    return found


if __name__ == "__main__":
    main("vit", run)
