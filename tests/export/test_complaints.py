"""What is said of a module that does not export, and that what it says to write is taken."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import ExportError
from normfold.export.to_onnx import export
from tests.export.test_to_onnx import Baked, Fours, Positions, Sum, assert_same_function, source_of


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class Between(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if 4 < x.shape[1] <= 10 else x


class Twice(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, x], 1) + y


class Strided(nn.Module):
    """A stride and a convolution behind it: torch.export cannot prove what it asks of the length."""

    def __init__(self) -> None:
        super().__init__()
        self.stride = nn.Conv1d(4, 6, 3, 2, 1)
        self.depthwise = nn.Conv1d(6, 6, 3, padding=1, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stride(x.transpose(1, 2)).transpose(1, 2)
        return y + self.depthwise(y.transpose(1, 2)).transpose(1, 2)


class Bessel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.special.bessel_j0(x)


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() * 2)


@pytest.mark.parametrize(
    ("module", "inputs", "complaint"),
    [
        (Baked(), ["x:float32[B=3,8]"], r"fixes axis B at 3: make it static \(3 instead of B\)"),
        (Positions(), ["x:float32[B,L,4]"], "axis L has to be at most 16: write L<=16,"),
        (Sum(), ["x:float32[B=5,8]", "y:float32[C=5,8]"], "axes C and B must be equal: give both the letter B"),
        (Fours(), ["x:float32[B=8,3]"], r"axis B has to be a multiple of 4: write B=4\*n,"),
        (Between(), ["x:float32[B,L]"], "axis L has to be 5 or more and at most 10: write L>=5<=10,"),
        (Strided(), ["x:float32[B,L,4]"], "axis L has to be 3 or more: write L>=3,"),
        (
            Twice(),
            ["x:float32[B,L=3]", "y:float32[B,M=6]"],
            r"axis M must be 2\*L, which normfold cannot express: make it static,",
        ),
        (Branch(), ["x:float32[B,8]"], r"control flow.*test_complaints\.py, line \d+: if x\.sum\(\) > 0.*torch\.where"),
        (Bessel(), ["x:float32[B,8]"], r"cannot be translated to ONNX opset .*bessel_j0"),
        (Flat(), ["x:float32[B,L,8]"], r"only 4D query.* \(in aten\.scaled_dot_product_attention\.default\)"),
        (
            Numpy(),
            ["x:float32[B,8]"],
            r"cannot be captured.*numpy.*test_complaints\.py, line \d+: return torch\.from_numpy",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_stands_in_the_way_is_said(
    module: nn.Module, inputs: Sequence[str], complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=complaint) as caught:
        export(source_of(module, *inputs))
    message = str(caught.value)
    assert "\n" not in message
    assert "\x1b" not in message
    assert not re.search(r"\s/\w+/", message)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("module", "spec"),
    [(Fours(), "x:float32[B=4*n,3]"), (Between(), "x:float32[B,L>=5<=10]"), (Strided(), "x:float32[B,L>=3,4]")],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_what_is_said_to_write_is_taken(module: nn.Module, spec: str) -> None:
    source = source_of(module, spec)
    assert_same_function(source, export(source))
