"""A causal character model over CPython's help with RMSNorm, and with PRepBN that fades from it.

The papers' claim: PRepBN costs little of a language model's quality. python -m experiments.char_lm [--quick]
"""

from __future__ import annotations

import torch

from experiments.common import Figures, Setting, load, main, measured
from fixtures.make_fixtures import Recipe, fit
from normfold.models import create


def run(setting: Setting) -> Figures:
    """Train both from the same start on the same batches; PRepBN trains the last 40 % on RepBN alone."""
    data = load("topics", setting)
    steps = setting.number(full=2400, quick=40)
    fade = {"steps": steps // 2, "warm": steps // 10, "base": "rms", "flatten": True, "eps": 1e-6}
    found: Figures = {}
    for norm, options in {"rms": {}, "prepbn": fade}.items():
        torch.manual_seed(setting.seed)
        model = create("char_lm", vocab=len(data.extra["characters"]), norm=norm, norm_args=options)
        recipe = Recipe("", {}, "topics", steps, batch=24, rate=3e-3, seed=setting.seed)
        found[norm] = measured(fit(model, recipe, data), data)
    return found


if __name__ == "__main__":
    main("char_lm", run)
