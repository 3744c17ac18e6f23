"""A trained LayerNorm model converted: how much accuracy is left after 5, 20 and 50 % of the original steps.

`fade`: PRepBN, fading over 60 % of the steps. `swap`: RepBN at once. `+ distil`: the loss is, one half each,
the answers and the predictions of the LayerNorm model itself. 0 %: RepBN with exact statistics,
by `recalibrate` layer by layer, not trained.
python -m experiments.convert [--quick]
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.common import Figures, Setting, load, main, measured
from experiments.vit import SIZE
from fixtures.make_fixtures import Data, Recipe, cross_entropy, fit
from normfold.models import create
from normfold.nn import finish, recalibrate, replace_layernorm

SHARES = (5, 20, 50)
# Of the original training's largest rate: the weights are good already.
RATE = 1e-3


def distilled(teacher: nn.Module, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Half the cross entropy of the answers, half the Kullback-Leibler divergence from the teacher's predictions."""
    logits = model(x)
    with torch.no_grad():
        wanted = teacher(x).log_softmax(-1)
    away = F.kl_div(logits.log_softmax(-1), wanted, reduction="batchmean", log_target=True)
    return (F.cross_entropy(logits, y) + away) / 2


def converted(teacher: nn.Module, data: Data, recipe: Recipe, *, fade: bool, distil: bool) -> nn.Module:
    """A copy of `teacher` with RepBN, trained on by `recipe`."""
    model = copy.deepcopy(teacher)
    if fade:
        replace_layernorm(model, to="prepbn", step=recipe.steps * 6 // 10)
    else:
        replace_layernorm(model, to="repbn")
    fit(model, recipe, data, (lambda m, x, y: distilled(teacher, m, x, y)) if distil else cross_entropy)
    assert not finish(model).left
    return model


def run(setting: Setting) -> Figures:
    """Train a LayerNorm model and convert it in every way."""
    data = load("mnist", setting)
    steps = setting.number(full=2000, quick=60)
    torch.manual_seed(setting.seed)
    model = create("vit", **SIZE)
    teacher = fit(model, Recipe("vit", {}, "mnist", steps, batch=64, shift=2, seed=setting.seed), data)
    found = {"LayerNorm": measured(teacher, data)}

    fresh = copy.deepcopy(teacher)
    replace_layernorm(fresh, to="repbn")
    recalibrate(fresh, data.train_x[:1024].split(256), layerwise=True)
    found["recalibrated, 0 %"] = measured(fresh, data)
    for share in SHARES[-1:] if setting.quick else SHARES:
        recipe = Recipe("vit", {}, "mnist", steps * share // 100, 64, RATE, shift=2, seed=1000 + setting.seed)
        for fade, distil in ((False, False), (True, False), (False, True), (True, True)):
            name = f"{'fade' if fade else 'swap'}{' + distil' if distil else ''}, {share} %"
            found[name] = measured(converted(teacher, data, recipe, fade=fade, distil=distil), data)
    return found


if __name__ == "__main__":
    main("convert", run)
