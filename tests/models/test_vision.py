"""The papers' vision models in small: where numbers are moved to, exports at every batch, training."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn
from torch.export import Dim

from normfold.errors import ArchitectureError
from normfold.models import create
from normfold.models.attention import softmax_attention
from normfold.models.layout import from_windows, relative_positions, shift_mask, split_qkv, to_windows
from normfold.models.swin import PatchMerging
from normfold.models.t2t import sinusoids
from normfold.nn.attention import depthwise, linear_attention
from normfold.nn.layout import merge_heads, split_heads, to_picture, to_tokens

# One small network for each shape of graph, on pictures of IMAGE pixels.
IMAGE = 64
SMALL: dict[str, dict[str, Any]] = {
    "cswin_tiny_un": {"dim": 8, "depths": (1, 1, 1), "heads": (2, 2, 2), "stripes": (1, 2, 4)},
    "slab_cswin_tiny": {"dim": 8, "depths": (1, 1), "heads": (2, 2), "stripes": (1, 8), "attention": "LS"},
    "slab_deit_tiny": {"dim": 12, "depth": 1, "heads": 2},
    "deit_tiny_prepbn": {"dim": 12, "depth": 1, "heads": 2},
    "pvt_tiny_prepbn": {
        "dims": (8, 12),
        "depths": (1, 1),
        "heads": (1, 2),
        "mlp_ratios": (2, 2),
        "reductions": (4, 1),
    },
    "slab_pvt_tiny": {"dims": (8, 12), "depths": (1, 1), "heads": (1, 2), "mlp_ratios": (2, 2)},
    "swin_tiny_bn": {"dim": 8, "depths": (2, 2), "heads": (2, 2), "window": 4},
    "slab_swin_tiny": {"dim": 8, "depths": (1, 2), "heads": (2, 2), "window": 4, "attention": "LS"},
    "slab_swin_tiny_un": {"dim": 8, "depths": (2, 2), "heads": (2, 2), "attention": "L", "linear_window": 4},
    "slab_cswin_tiny_un": {"dim": 8, "depths": (1, 1), "heads": (2, 2), "attention": "L", "linear_stripes": (2, 8)},
    "slab_pvt_tiny_un": {
        "dims": (8, 12),
        "depths": (1, 1),
        "heads": (1, 2),
        "mlp_ratios": (2, 2),
        "reductions": (4, 2),
    },
    "pvt_v2_b0_un": {"dims": (8, 12), "depths": (1, 1), "heads": (1, 2), "reductions": (4, 1)},
    "slab_pvt_v2_b0": {"dims": (8, 12), "depths": (1, 1), "heads": (1, 2), "reductions": (4, 1)},
    "deit_tiny_bn": {"dim": 12, "depth": 1, "heads": 2, "distilled": True},
    "t2t_vit_14_un": {"dim": 12, "depth": 1, "heads": 2, "token_dim": 8},
    "t2t_vit_t_14_un": {"dim": 12, "depth": 1, "heads": 2, "token_dim": 8},
}
# float32 rounding over a few layers on logits of order 1; a baked-in size or a wrong axis is off by far more.
TOLERANCE = 1e-4


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = create(name, image_size=IMAGE, classes=10, **SMALL[name])
    for key, buffer in model.named_buffers():
        if key.endswith("running_var"):
            nn.init.uniform_(buffer, 0.3, 3.0)
        elif key.endswith("running_mean"):
            nn.init.normal_(buffer, std=0.3)
    return model.eval()


def pictures(batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("name", SMALL)
def test_traces_hold_at_every_batch(name: str) -> None:
    """What every export begins with: a batch size that became a number would show here."""
    model = small(name)
    traced = torch.export.export(model, (pictures(3),), dynamic_shapes=({0: Dim("batch")},)).module()
    for batch in (3, 1, 5):
        with torch.no_grad():
            torch.testing.assert_close(traced(pictures(batch)), model(pictures(batch)), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_exports_hold_at_every_batch(name: str) -> None:
    model = small(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        axes = ({0: Dim("batch")},)
        program = torch.onnx.export(model, (pictures(3),), dynamo=True, dynamic_shapes=axes, verbose=False)
    assert program is not None
    session = ort.InferenceSession(program.model_proto.SerializeToString())
    for batch in (3, 1, 5):
        with torch.no_grad():
            expected = model(pictures(batch)).numpy()
        (got,) = session.run(None, {session.get_inputs()[0].name: pictures(batch).numpy()})
        np.testing.assert_allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", SMALL)
def test_rows_of_a_batch_do_not_touch(name: str) -> None:
    model, x = small(name), pictures(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:2], model(x[1:2]), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_that_counts_is_trained(name: str) -> None:
    model = small(name).train()
    model(pictures(2)).square().mean().backward()
    # Not read at all (`cls_token`, `scale`), fixed (`w`, T2T's positions), or not yet: PRepBN's first step is norm1's.
    idle = {key for key, value in model.named_parameters() if value.grad is None}
    assert all(key.endswith((".scale", ".w")) or key in ("cls_token", "pos_embed") or ".norm2." in key for key in idle)
    assert len(idle) < len(list(model.parameters())) / 2


@pytest.mark.parametrize("name", SMALL)
def test_without_norms_it_is_the_same_network(name: str) -> None:
    bare = create(name, image_size=IMAGE, norm="identity", **SMALL[name]).state_dict()
    full = create(name, image_size=IMAGE, **SMALL[name]).state_dict()
    assert bare
    assert set(bare) < set(full)
    assert all("norm" in key or "conv_embed.2" in key for key in set(full) - set(bare))


def test_windows_come_back_and_hold_neighbours() -> None:
    x = torch.arange(2 * 4 * 6 * 3.0).reshape(2, 4, 6, 3)
    windows = to_windows(x, 2, 3)
    assert windows.shape == (2, 4, 6, 3)
    torch.testing.assert_close(windows[1, 1], x[1, :2, 3:].reshape(6, 3))
    torch.testing.assert_close(windows[1, 2], x[1, 2:, :3].reshape(6, 3))
    torch.testing.assert_close(from_windows(windows, 4, 6, 2, 3), x)
    square = x[:, :, :4]
    for shape in ((2, 2), (4, 1), (1, 4), (4, 4)):
        torch.testing.assert_close(from_windows(to_windows(square, *shape), 4, 4, *shape), square)


def test_tokens_and_heads_come_back() -> None:
    x = torch.randn(2, 6, 4, 4)
    torch.testing.assert_close(to_picture(to_tokens(x), 4, 4), x)
    tokens = to_tokens(x)
    torch.testing.assert_close(tokens[0, 5], x[0, :, 1, 1])
    torch.testing.assert_close(split_heads(tokens, 3)[:, 1], tokens[..., 2:4])
    torch.testing.assert_close(merge_heads(split_heads(tokens, 3)), tokens)
    side_by_side = torch.cat([tokens, 2 * tokens, 3 * tokens], dim=-1)
    for factor, part in enumerate(split_qkv(side_by_side, 3), start=1):
        torch.testing.assert_close(part, factor * split_heads(tokens, 3))


def test_relative_positions_number_offsets() -> None:
    numbers = relative_positions(3)
    for a in range(9):
        for b in range(9):
            rows, columns = a // 3 - b // 3 + 2, a % 3 - b % 3 + 2
            assert int(numbers[a, b]) == 5 * rows + columns


def test_the_shift_mask_separates_what_the_roll_brought_together() -> None:
    side, window, shift = 8, 4, 2
    place = torch.arange(side * side).reshape(1, side, side, 1).roll((-shift, -shift), dims=(1, 2))
    tokens = to_windows(place, window, window)[0, :, :, 0]
    near = [
        (tokens // side)[:, :, None].sub((tokens // side)[:, None]).abs() < window,
        (tokens % side)[:, :, None].sub((tokens % side)[:, None]).abs() < window,
    ]
    torch.testing.assert_close(shift_mask(side, side, window, shift), torch.where(near[0] & near[1], 0.0, -100.0))


def test_patch_merging_reads_a_square_column_by_column() -> None:
    merging = PatchMerging(1, 4, norm=nn.Identity)
    with torch.no_grad():
        merging.reduction.weight.copy_(torch.eye(4)[:2])
        y = merging(torch.arange(16.0).reshape(1, 16, 1))
    torch.testing.assert_close(y[0], torch.tensor([[0.0, 4.0], [2.0, 6.0], [8.0, 12.0], [10.0, 14.0]]))


def test_softmax_attention_is_the_usual_one() -> None:
    q, k, v = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
    bias = torch.randn(4, 5, 5, dtype=torch.float64)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(softmax_attention(q, k, v, bias=bias), expected)


def test_linear_attention_is_attention_with_a_product_of_rectified_vectors() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 9, 4, dtype=torch.float64)
    conv = depthwise(2, 3).double()
    got = linear_attention(q, k, v, heads=2, conv=conv, height=3, width=3)
    for head in range(2):
        one, other, value = (x[..., 2 * head : 2 * head + 2] for x in (q, k, v))
        weights = one.relu() @ other.relu().transpose(1, 2)
        expected = weights / (weights.sum(-1, keepdim=True) + 1e-6) @ value
        local = conv(value.transpose(1, 2).reshape(2, 2, 3, 3)).flatten(2).transpose(1, 2)
        torch.testing.assert_close(got[:, head], expected + local)


def test_sinusoids_interleave_sine_and_cosine() -> None:
    table = sinusoids(5, 6)[0]
    for position in range(5):
        for pair in range(3):
            angle = position / 10000 ** (2 * pair / 6)
            assert table[position, 2 * pair] == pytest.approx(np.sin(angle), abs=1e-6)
            assert table[position, 2 * pair + 1] == pytest.approx(np.cos(angle), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "config", "says"),
    [
        ("swin_tiny_ln", {"image_size": 226}, "do not tile"),
        ("swin_tiny_ln", {"heads": (5, 6, 12, 24)}, "5 heads do not divide"),
        ("swin_tiny_ln", {"heads": (3, 6)}, "cannot be built"),
        ("swin_tiny_ln", {"image_size": 36, "window": 3}, "odd side 9"),
        ("slab_cswin_tiny", {"norm": "ln"}, "norm ln has no option base_eps, steps"),
        ("t2t_vit_14_un", {"image_size": 100}, "shrunk 16 times"),
    ],
)
def test_what_does_not_fit_is_an_architecture_error(name: str, config: dict[str, Any], says: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        create(name, **config)
