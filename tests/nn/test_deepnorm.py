"""deepnorm_, FFNBN and LinearAttention."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.models.deepnet import DeepNetTranslator
from normfold.models.encoder import PostNormEncoder
from normfold.nn.attention import LinearAttention
from normfold.nn.deepnorm import deepnorm_, encoder_decoder, encoder_only
from normfold.nn.ffn import FFNBN


def gain(weight: Tensor) -> float:
    """The gain of a Xavier normal weight."""
    return float(weight.detach().std() / math.sqrt(2 / sum(weight.shape)))


def test_the_papers_table() -> None:
    assert encoder_only(8) == pytest.approx((2.0, 64**-0.25))
    assert encoder_only(100) == pytest.approx((200**0.25, 800**-0.25))
    encoder, decoder = encoder_decoder(6, 3)
    assert encoder == pytest.approx((0.81 * (6**4 * 3) ** (1 / 16), 0.87 * (6**4 * 3) ** (-1 / 16)))
    assert decoder == pytest.approx((9**0.25, 36**-0.25))


def test_torchs_encoder() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 8)
    names = list(model.state_dict())
    report = deepnorm_(model)
    assert (report.encoder, report.decoder, len(report.layers)) == (encoder_only(8), None, 8)
    assert list(model.state_dict()) == names
    first = model.layers[0]
    beta = 64**-0.25
    for weight, expected in (
        (first.self_attn.in_proj_weight[:64], 1.0),
        (first.self_attn.in_proj_weight[64:128], 1.0),
        (first.self_attn.in_proj_weight[128:], beta),
        (first.self_attn.out_proj.weight, beta),
        (first.linear1.weight, beta),
        (first.linear2.weight, beta),
    ):
        assert gain(weight) == pytest.approx(expected, rel=0.05)
    x, mask = torch.randn(2, 5, 64), torch.zeros(2, 5, dtype=torch.bool)
    mask[0, 3:] = True
    h = x
    for part in model.layers:
        h = part.norm1(2.0 * h + part.self_attn(h, h, h, key_padding_mask=mask, need_weights=False)[0])
        h = part.norm2(2.0 * h + part.linear2(F.relu(part.linear1(h))))
    for mode in (True, False):
        torch.testing.assert_close(model.train(mode)(x, src_key_padding_mask=mask), h)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_torchs_translator() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(32, 4, 3, 2, 64, dropout=0.0, batch_first=True)
    report = deepnorm_(model)
    assert (report.encoder, report.decoder) == encoder_decoder(3, 2)
    layer = model.decoder.layers[0]
    x, memory = torch.randn(2, 5, 32), torch.randn(2, 4, 32)
    alpha = 6**0.25
    h = layer.norm1(alpha * x + layer.self_attn(x, x, x, need_weights=False)[0])
    h = layer.norm2(alpha * h + layer.multihead_attn(h, memory, memory, need_weights=False)[0])
    h = layer.norm3(alpha * h + layer.linear2(F.relu(layer.linear1(h))))
    torch.testing.assert_close(layer(x, memory), h)
    assert gain(layer.linear1.weight) == pytest.approx(24**-0.25, rel=0.05)


def test_this_packages_layers() -> None:
    encoder = PostNormEncoder(depth=8)
    before = encoder(torch.ones(1, 1, 28, 28))
    report = deepnorm_(encoder)
    assert (report.encoder, report.decoder) == (encoder_only(8), None)
    assert [block.alpha for block in encoder.blocks] == [2.0] * 8
    assert not torch.allclose(encoder(torch.ones(1, 1, 28, 28)), before)
    translator = DeepNetTranslator(vocab=20, dim=16, encoder_depth=3, decoder_depth=2, heads=2, hidden=32)
    report = deepnorm_(translator)
    assert (report.encoder, report.decoder) == encoder_decoder(3, 2)
    assert gain(translator.encoder.layers[0].self_attn.q_proj.weight) == pytest.approx(1.0, rel=0.15)


def test_what_has_no_residual_stream_of_that_kind() -> None:
    with pytest.raises(UsageError, match="no layer with a residual stream"):
        deepnorm_(nn.Sequential(nn.Linear(2, 2), nn.ELU(alpha=1.0)))
    with pytest.raises(UsageError, match=r"layers\.0 is a pre-norm layer"):
        deepnorm_(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, norm_first=True), 1, enable_nested_tensor=False)
        )


def test_ffnbn_is_its_equation() -> None:
    torch.manual_seed(0)
    net = FFNBN(6, 12)
    x = torch.randn(4, 5, 6)
    h = F.batch_norm(net.fc1(x).reshape(20, 12), None, None, net.bn.weight, net.bn.bias, True).reshape(4, 5, 12)
    torch.testing.assert_close(net(x), net.fc2(F.gelu(h)))
    net.eval()
    h = (net.fc1(x) - net.bn.running_mean) / torch.sqrt(net.bn.running_var + 1e-5)
    torch.testing.assert_close(net(x), net.fc2(F.gelu(h)))


def test_linear_attention_is_public() -> None:
    assert LinearAttention(8, 2, 3)(torch.randn(2, 9, 8)).shape == (2, 9, 8)
