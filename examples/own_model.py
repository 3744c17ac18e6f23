"""A network of your own: train with PRepBN, save, fold, run. Usage: python examples/own_model.py [FOLDER]"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import normfold
from normfold.nn import RepBN


class Block(nn.Module):
    """A pre-norm MLP block: x + W2 gelu(W1 norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = RepBN(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, L, C) to the same."""
        hidden: Tensor = self.down(nn.functional.gelu(self.up(self.norm(x))))
        return x + hidden


def build(width: int = 16, depth: int = 2) -> nn.Module:
    """The factory that `--model own_model:build` names."""
    return nn.Sequential(*(Block(width) for _ in range(depth)), RepBN(width), nn.Linear(width, 4))


def main(folder: Path) -> None:
    """Train for a moment, save the state dict as most people do, fold it with its factory, compare."""
    torch.manual_seed(0)
    model = build()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(20):
        x = torch.randn(8, 10, 16)
        optimiser.zero_grad()
        loss = nn.functional.mse_loss(model(x), x[..., :4].sin())
        torch.autograd.backward(loss)
        optimiser.step()
    torch.save(model.eval().state_dict(), folder / "own.pt")

    report = normfold.fold(
        folder / "own.pt", folder / "own.onnx", model=f"{Path(__file__).stem}:build", inputs=["x:float32[B,L,16]"]
    )
    print(f"{len(report.norms)} norms, not folded: {len(report.unfolded)}")

    session = onnxruntime.InferenceSession(folder / "own.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(3, 7, 16)
    with torch.no_grad():
        difference = abs(session.run(None, {"x": x.numpy()})[0] - model(x).numpy()).max()
    print(f"onnxruntime and torch differ by {difference:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()))
