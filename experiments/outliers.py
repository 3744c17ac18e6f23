"""What outlier filtration changes where BatchNorm suffers: a post-norm encoder over the rows of MNIST's pictures.

One picture a batch makes statistics that fluctuate. Variants: LayerNorm, BatchNorm, UN without and with outlier
filtration. `gap`: bits per answer in evaluation less those of the last tenth of the training batches, which says
whether the stored statistics serve. `skipped`: percent of the batches that a norm took for outliers, on average.
python -m experiments.outliers [--quick]
"""

from __future__ import annotations

import torch
from torch import nn

from experiments.common import Figures, Setting, load, main, measured, recorded
from fixtures.make_fixtures import Recipe, fit
from normfold.models import create
from normfold.nn import UN1d

BATCH = 1
RATE = 1e-3


def skipped(model: nn.Module) -> float:
    """The share of iterations, in percent, that UN took for outliers."""
    norms = [module for module in model.modules() if isinstance(module, UN1d)]
    return sum(100 * float(norm.skip_counter.sum()) / float(norm.iters.sum()) for norm in norms) / len(norms)


def run(setting: Setting) -> Figures:
    """Train every variant from the same start on the same batches."""
    data = load("mnist", setting)
    steps = setting.number(full=4000, quick=100)
    window = {"window": 4, "warmup": steps // 5}
    variants = {
        "LayerNorm": ("ln", {}),
        "BatchNorm": ("bn", {}),
        "UN": ("un", window),
        "UN, filtered": ("un", {**window, "filtration": True}),
    }
    found: Figures = {}
    for name, (norm, options) in variants.items():
        torch.manual_seed(setting.seed)
        model = create("postnorm_encoder", norm=norm, norm_args=options)
        losses: list[float] = []
        recipe = Recipe("", {}, "mnist", steps, batch=BATCH, rate=RATE, shift=2, seed=setting.seed)
        fit(model, recipe, data, recorded(losses))
        last = losses[-max(1, steps // 10) :]
        found[name] = measured(model, data)
        found[name]["gap"] = found[name]["bits"] - sum(last) / len(last)
        if norm == "un":
            found[name]["skipped"] = skipped(model)
    return found


if __name__ == "__main__":
    main("outliers", run)
