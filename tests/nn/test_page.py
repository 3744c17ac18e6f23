"""The code of docs/training.md runs as it is written there."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from normfold.nn import RepBN, progress
from tests.paths import DOCS

BLOCK = re.compile(r"(?:^    .*\n|^\n(?=    ))+", re.MULTILINE)


class Network(nn.Module):
    """(N, L, 256) to (N, L, 2), with a last norm of the name that the page leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.body = nn.LayerNorm(256), nn.Linear(256, 256)
        self.head = nn.ModuleDict({"norm": nn.LayerNorm(256), "out": nn.Linear(256, 2)})

    def forward(self, x: Tensor) -> Tensor:
        """A block and a head."""
        y: Tensor = self.head["out"](self.head["norm"](self.body(self.norm(x))))
        return y


def test_the_code_of_the_page_runs() -> None:
    torch.manual_seed(0)
    model = Network()
    names = {"nn": nn, "model": model, "batches": [torch.randn(8, 5, 256) for _ in range(20)]}
    blocks = [
        re.sub(r"^    ", "", block, flags=re.MULTILINE) for block in BLOCK.findall((DOCS / "training.md").read_text())
    ]
    code = [block for block in blocks if "normfold.nn" in block or "recalibrate(" in block]
    assert len(code) == 3
    for block in code:
        # A schedule of 20,000 steps is for those who train.
        exec(block.replace("step=20000", "step=3").replace("...  ", "_ = [model.train()(x) for x in batches]  "), names)
    assert progress(model).done == 1.0
    assert isinstance(model.norm, RepBN) and isinstance(model.head["norm"], nn.LayerNorm)
