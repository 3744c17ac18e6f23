"""A post-norm Transformer of 200 layers on characters of CPython's help: as it is, and after `deepnorm_`.

The paper's claim: plain post-LayerNorm diverges or stalls at such depths, DeepNorm trains. `first`, `last`: bits per
answer over the first and last ten training batches; `one character`: what frequencies of characters alone achieve.
python -m experiments.deepnorm200 [--quick]
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from experiments.common import Figures, Setting, load, main, measured, recorded
from fixtures.make_fixtures import CONTEXT, Data, Recipe, fit
from normfold.nn import deepnorm_

DIM = 32
RATE = 1e-3


class DeepReader(nn.Module):
    """ids (N, L) to the logits (N, L, vocab) of the characters that follow; every layer is initialised on its own."""

    def __init__(self, vocab: int, depth: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(vocab, DIM), nn.Parameter(0.02 * torch.randn(CONTEXT, DIM))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(DIM, 2, 2 * DIM, dropout=0.0, activation="gelu", batch_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(DIM, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        """(N, L) to (N, L, vocab)."""
        x = self.characters(ids) + self.places[: ids.shape[1]]
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).triu(1)
        for layer in self.layers:
            x = layer(x, src_mask=later)
        logits: Tensor = self.head(x)
        return logits


def one_character(data: Data) -> float:
    """Bits per answer of the frequencies in the training text."""
    counts = torch.bincount(data.train_y, minlength=len(data.extra["characters"])) + 1.0
    return -float((counts / counts.sum()).log2()[data.held_y.flatten()].mean())


def run(setting: Setting) -> Figures:
    """Train both from the same seed on the same batches."""
    data = load("topics", setting)
    vocab = len(data.extra["characters"])
    # All windows are of one length: the graph need not know another.
    data = replace(data, spec=f"ids:int64[B,{CONTEXT}]<{vocab}", held_x=data.held_x[:40], held_y=data.held_y[:40])
    depth, steps = 12 if setting.quick else 200, setting.number(full=200, quick=20)
    found: Figures = {"one character": {"bits": one_character(data)}}
    for name in ("post-LayerNorm", "DeepNorm"):
        torch.manual_seed(setting.seed)
        model = DeepReader(vocab, depth)
        if name == "DeepNorm":
            deepnorm_(model)
        losses: list[float] = []
        fit(model, Recipe("", {}, "topics", steps, batch=8, rate=RATE, seed=setting.seed), data, recorded(losses))
        found[name] = measured(model, data) | {"first": sum(losses[:10]) / 10, "last": sum(losses[-10:]) / 10}
    return found


if __name__ == "__main__":
    main("deepnorm200", run)
