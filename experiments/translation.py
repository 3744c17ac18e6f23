"""English to German, character by character: an encoder-decoder with LayerNorm, BatchNorm and UN, pre- and post-norm.

UN's paper reports translation near LayerNorm's. The sentences are the messages of Django and their translations, which
come inside its package. `accuracy`: characters that are right where all before them are given.
python -m experiments.translation [--quick]
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.common import Figures, Setting, main, measured
from fixtures.make_fixtures import Data, Recipe, fit
from normfold.models.nmt import TranslationTransformer
from normfold.models.seq2seq import PADDING

# Characters of the longest message that is taken.
LONGEST = 48
HELD = 100
# The numbers beside PADDING; characters follow.
BEGIN, END, FIRST = 0, 2, 3
# What cross entropy leaves out.
NO_ANSWER = -100


class Translator(nn.Module):
    """A source and the target so far in one row, (N, LONGEST + LONGEST + 1) int64, to (N, LONGEST + 1, vocab)."""

    def __init__(self, model: TranslationTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, pairs: Tensor) -> Tensor:
        """Logits of the characters that follow."""
        logits: Tensor = self.model(pairs[:, :LONGEST], pairs[:, LONGEST:])
        return logits


def messages() -> list[tuple[str, str]]:
    """Messages of Django with their German translations, each once, in the order of their English."""
    import django
    import polib

    found: dict[str, str] = {}
    for file in sorted(Path(django.__file__).parent.rglob("locale/de/LC_MESSAGES/django*.po")):
        for entry in polib.pofile(str(file)).translated_entries():
            if not entry.msgid_plural:
                found[entry.msgid] = entry.msgstr
    return sorted(pair for pair in found.items() if max(map(len, pair)) <= LONGEST)


def translations() -> Data:
    """Pairs in rows, those held out drawn at random."""
    pairs = messages()
    characters = sorted({character for pair in pairs for text in pair for character in text})
    number = {character: index for index, character in enumerate(characters, FIRST)}
    x = torch.full((len(pairs), 2 * LONGEST + 1), PADDING)
    y = torch.full((len(pairs), LONGEST + 1), NO_ANSWER)
    for row, (english, german) in enumerate(pairs):
        source, target = ([number[character] for character in text] for text in (english, german))
        x[row, : len(source)] = torch.tensor(source)
        x[row, LONGEST : LONGEST + 1 + len(target)] = torch.tensor([BEGIN, *target])
        y[row, : len(target) + 1] = torch.tensor([*target, END])
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    held, learned = order[:HELD], order[HELD:]
    vocab = len(characters) + FIRST
    spec = f"pairs:int64[B,{x.shape[1]}]<{vocab}"
    return Data("translations", spec, x[learned], y[learned], x[held], y[held], {"vocab": torch.tensor(vocab).numpy()})


def run(setting: Setting) -> Figures:
    """Train every variant from the same start on the same batches."""
    data = translations()
    steps = setting.number(full=500, quick=20)
    size = {"vocab": int(data.extra["vocab"]), "dim": 64, "depth": 2, "heads": 4, "hidden": 128, "positions": 64}
    found: Figures = {}
    for place in ("pre-norm", "post-norm"):
        for name, norm, options in (
            ("LayerNorm", "ln", {}),
            ("BatchNorm", "bn", {}),
            ("UN", "un", {"window": 4, "warmup": steps // 5}),
        ):
            torch.manual_seed(setting.seed)
            model = TranslationTransformer(**size, pre_norm=place == "pre-norm", norm=norm, norm_args=options)
            recipe = Recipe("", {}, "translations", steps, batch=64, seed=setting.seed)
            found[f"{place}, {name}"] = measured(fit(Translator(model), recipe, data), data)
    return found


if __name__ == "__main__":
    main("translation", run)
