"""From LayerNorm to a folded file: progress, finish and the fold, with every norm that folds once it is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from normfold.checkpoint.load import load_checkpoint
from normfold.errors import NormStateError
from normfold.nn.mabn import CenConv2d, MABN2d
from normfold.nn.powernorm import PowerNorm
from normfold.nn.replace import replace_layernorm
from normfold.nn.schedules import finish, progress
from normfold.nn.un import UN1d
from normfold.norms.detect import find_norms
from normfold.pipeline import run as pipeline
from tests.nn.test_replace import CHANNELS, Block


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(nn.LayerNorm(CHANNELS)), Block(nn.RMSNorm(CHANNELS)))
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))


def converted(to: str = "repbn") -> nn.Module:
    """A factory, as a user has it."""
    model = Net()
    replace_layernorm(model, to, **({"step": 4, "warm": 1} if to == "prepbn" else {}))
    return model


def test_from_layernorm_to_a_folded_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = converted("prepbn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    done = []
    for _ in range(5):
        done.append(progress(model).done)
        optimizer.zero_grad()
        model(torch.randn(4, 5, CHANNELS)).square().mean().backward()
        optimizer.step()
        if len(done) == 3:
            early = finish(model)
            assert early.finished == ()
            assert early.left[0] == ("blocks.0.norm", "2 of 4 steps left, 50 % done")
            torch.save(model.state_dict(), tmp_path / "early.pt")
            with pytest.raises(NormStateError, match="2 of 4 steps left"):
                load_checkpoint(
                    tmp_path / "early.pt",
                    model=f"{__name__}:converted",
                    model_args={"to": "prepbn"},
                    inputs=["x:float32[B,L,8]"],
                )
    assert done == [0.0, 0.0, 0.25, 0.5, 0.75]
    assert progress(model).finished and str(progress(model)).startswith("100 % done\nblocks.0.norm: PRepBN, 100 %")
    model.eval()
    x = torch.randn(2, 3, CHANNELS)
    before = model(x)
    assert finish(model).finished == ("blocks.0.norm", "blocks.1.norm")
    assert torch.equal(model(x), before)
    assert [norm.kind for norm in find_norms(model)] == ["RepBN", "RepBN"]
    assert finish(model).finished == progress(model).norms == ()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    report = pipeline.fold(
        tmp_path / "c.pt", tmp_path / "c.onnx", model=f"{__name__}:converted", inputs=["x:float32[B,L,8]"], strict=True
    )
    assert report is not None and (tmp_path / "c.onnx").exists()


class Pictures(nn.Module):
    """MABN behind its centred convolutions, and PowerNorm without group scaling, where they fold."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = CenConv2d(3, CHANNELS, 3, bias=False), MABN2d(CHANNELS, B=2, real_B=4, warmup_iters=2)
        self.fc, self.power, self.head = nn.Linear(CHANNELS, CHANNELS), PowerNorm(CHANNELS), nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu().mean((2, 3))
        return self.head(self.power(self.fc(x)).relu())


@pytest.mark.slow
def test_mabn_and_powernorm_fold_once_trained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Pictures()
    for _ in range(6):
        model(torch.randn(2, 3, 6, 6)).sum().backward()
    torch.save(model.state_dict(), tmp_path / "m.pt")
    report = pipeline.fold(
        tmp_path / "m.pt",
        tmp_path / "m.onnx",
        model=f"{__name__}:Pictures",
        inputs=["x:float32[B,3,6,6]"],
        strict=True,
    )
    assert [site.kind for site in report.graphs[0].sites] == ["MABN", "PowerNorm"]


def test_progress_knows_warm_ups() -> None:
    model = nn.Sequential(UN1d(4, warmup_iters=4), nn.Linear(4, 4))
    assert str(progress(model)) == "0 % done\n0: UN, 0 %, 4 of 4 warm-up steps left"
    for _ in range(4):
        model(torch.randn(3, 4))
    assert progress(model).finished
