"""A small trained network for every test of a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normfold import models
from tests.checkpoint.files import ARGS, settled


@pytest.fixture
def vit() -> nn.Module:
    torch.manual_seed(0)
    return settled(models.create("vit", **ARGS))
