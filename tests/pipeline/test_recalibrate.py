"""`normfold recalibrate`: from a checkpoint and real inputs to a checkpoint with exact statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.save import save_checkpoint
from normfold.cli.app import app
from normfold.models import create
from normfold.nn import recalibrate
from normfold.nn.un import UN1d

RUN = CliRunner()


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.spare = nn.Linear(4, 4), UN1d(4), UN1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.fc(x))


def vit() -> nn.Module:
    torch.manual_seed(0)
    return create("vit", norm="prepbn", norm_args={"steps": 3, "warm": 1})


def saved(folder: Path) -> tuple[Path, Path, np.ndarray]:
    """A checkpoint with its architecture, and pictures for it."""
    model = vit()
    x = torch.randn(70, 1, 8, 8)
    save_checkpoint(
        folder / "c.pt",
        model,
        arch="vit",
        arch_args={"norm": "prepbn", "norm_args": {"steps": 3, "warm": 1}},
        example_input=x[:2],
    )
    np.savez(folder / "data.npz", x=x.numpy())
    return folder / "c.pt", folder / "data.npz", x.numpy()


def run(*words: object) -> Result:
    return RUN.invoke(app, ["recalibrate", *map(str, words)])


@pytest.mark.parametrize("layerwise", [None, False, True])
def test_a_checkpoint_of_a_built_in_architecture(tmp_path: Path, layerwise: bool | None) -> None:
    """Its statistics are fresh: layerwise unless it is said otherwise."""
    source, data, x = saved(tmp_path)
    flags = {None: [], False: ["--no-layerwise"], True: ["--layerwise"]}[layerwise]
    result = run(source, "--data", data, "-o", tmp_path / "out.pt", "--batch", "16", *flags)
    assert result.exit_code == 0, result.output
    assert "norms recalibrated from 70 rows" in result.stdout
    assert ("one after the other" in result.stdout) == (layerwise is not False)
    expected = load_checkpoint(source, allow_unfinished=True).module
    assert expected is not None
    before = {key: value.clone() for key, value in expected.state_dict().items()}
    recalibrate(expected, [torch.from_numpy(x)], layerwise=layerwise is not False)
    found = load_checkpoint(tmp_path / "out.pt", allow_unfinished=True)
    assert found.module is not None and found.arch == "vit"
    changed = 0
    for key, value in found.module.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[key], rtol=1e-4, atol=1e-5)
        changed += not torch.equal(value, before[key])
        assert "running" in key or torch.equal(value, before[key]), key
    assert changed > 4


def test_a_module_of_ones_own_and_a_norm_that_is_never_called(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Own()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x[:10])
    np.savez(tmp_path / "b.npz", x=x[10:])
    options = ["--model", f"{__name__}:Own", "--input", "x:float32[B,4]"]
    data = ["--data", tmp_path / "a.npz", "--data", tmp_path / "b.npz"]
    result = run(tmp_path / "c.pt", *data, "-o", tmp_path / "o.pt", *options)
    assert result.exit_code == 0, result.output
    assert "spare was never called" in result.stderr
    assert "1 norm recalibrated from 30 rows" in result.stdout
    again = load_checkpoint(tmp_path / "o.pt", model=f"{__name__}:Own").module
    assert again is not None
    with torch.no_grad():
        inner = model.fc(torch.from_numpy(x))
    torch.testing.assert_close(again.norm.running_var, inner.square().mean(0))


def half() -> nn.Module:
    """A factory, as a user of half precision has it."""
    return Own().half()


def test_a_module_in_half_precision_is_measured_in_float32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = half()
    torch.save(model.state_dict(), tmp_path / "c.pt")
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    np.savez(tmp_path / "h.npz", x=x.astype(np.float16))
    options = ["--model", f"{__name__}:half", "--input", "x:float16[B,4]", "-o", tmp_path / "o.pt"]
    refused = run(tmp_path / "c.pt", "--data", tmp_path / "h.npz", *options)
    assert refused.exit_code == 2 and "x is float16 and the model takes float32" in refused.stderr
    result = run(tmp_path / "c.pt", "--data", tmp_path / "x.npz", *options)
    assert result.exit_code == 0, result.output
    assert "half precision and was converted to float32" in result.stderr
    found = torch.load(tmp_path / "o.pt", weights_only=True)["state_dict"]["norm.running_var"]
    with torch.no_grad():
        inner = model.float().fc(torch.from_numpy(x))
    torch.testing.assert_close(found, inner.square().mean(0))


def test_bad_requests_write_nothing(tmp_path: Path) -> None:
    source, data, x = saved(tmp_path)
    np.savez(tmp_path / "other.npz", y=x)
    np.savez(tmp_path / "double.npz", x=x.astype(np.float64))
    (tmp_path / "taken.pt").touch()
    plain = tmp_path / "plain.pt"
    torch.save(nn.Linear(4, 4).state_dict(), plain)
    linear = ["--model", "torch.nn:Linear", "--model-args", '{"in_features": 4, "out_features": 4}']
    np.savez(tmp_path / "four.npz", input=x.reshape(-1, 4))
    before = sorted(path.name for path in tmp_path.iterdir())
    for words, message in (
        ((source, "--data", tmp_path / "other.npz", "-o", tmp_path / "o.pt"), "has no array 'x'"),
        ((source, "--data", tmp_path / "double.npz", "-o", tmp_path / "o.pt"), "x is float64"),
        ((source, "--data", tmp_path / "none.npz", "-o", tmp_path / "o.pt"), "--data takes npz files"),
        ((source, "--data", data, "-o", tmp_path / "o.onnx"), "writes torch files"),
        ((source, "--data", data, "-o", tmp_path / "taken.pt"), "--force replaces it"),
        ((source, "--data", data, "-o", tmp_path / "no" / "o.pt"), "no"),
        ((source, "--data", data, "-o", tmp_path / "o.pt", "--batch", "0"), "1 or more"),
        (
            (plain, "--data", tmp_path / "four.npz", "-o", tmp_path / "o.pt", *linear, "--input", "input:float32[B,4]"),
            "no norm with stored statistics",
        ),
    ):
        result = run(*words)
        assert result.exit_code == 2, (words, result.output)
        assert message in result.stderr.replace("\n", " "), (message, result.stderr)
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert run(source, "--data", data, "-o", tmp_path / "taken.pt", "--force").exit_code == 0
