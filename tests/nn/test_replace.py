"""replace_layernorm on torch's, transformers', timm-like and own modules."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from normfold.errors import UsageError
from normfold.nn.batchnorm import TokenBatchNorm
from normfold.nn.repbn import LinearNorm, RepBN
from normfold.nn.replace import replace_layernorm
from normfold.nn.schedules import progress
from normfold.nn.un import UN1d
from normfold.norms.detect import find_norms

CHANNELS = 8


class LlamaRMSNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class GemmaRMSNorm(LlamaRMSNorm):
    """The weight is stored as its difference from 1."""

    def forward(self, x: Tensor) -> Tensor:
        return (1 + self.weight) * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class T5LayerNorm(LlamaRMSNorm):
    """An RMSNorm by another name."""


class OwnNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.randn(channels))
        self.gamma = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, unbiased=False) * self.gamma + self.beta


class LayerNorm2d(nn.LayerNorm):
    """As timm has it: over axis 1 of a picture."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class OlmoLayerNorm(nn.Module):
    """Without weights; the size alone says what it is over."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normalized_shape = (channels,)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, self.normalized_shape)


class L2Norm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x, dim=-1)


class ScaleNorm(LlamaRMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x / x.norm(dim=-1, keepdim=True)


class GatedRMSNorm(LlamaRMSNorm):
    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        y = super().forward(x)
        return y if gate is None else y * gate


def trained(norm: nn.Module) -> nn.Module:
    """With a weight and bias that are not fresh."""
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return norm


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.fc = norm, nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc(self.norm(x))


NORMS = {
    "layernorm": lambda: nn.LayerNorm(CHANNELS),
    "layernorm-no-bias": lambda: nn.LayerNorm(CHANNELS, bias=False),
    "layernorm-plain": lambda: nn.LayerNorm(CHANNELS, elementwise_affine=False),
    "rmsnorm": lambda: nn.RMSNorm(CHANNELS),
    "llama": lambda: LlamaRMSNorm(CHANNELS),
    "gemma": lambda: GemmaRMSNorm(CHANNELS),
    "t5": lambda: T5LayerNorm(CHANNELS),
    "own": lambda: OwnNorm(CHANNELS),
    "olmo": lambda: OlmoLayerNorm(CHANNELS),
}
RMS = {"rmsnorm", "llama", "gemma", "t5"}
TARGETS = {"prepbn": LinearNorm, "repbn": RepBN, "un": UN1d, "bn": TokenBatchNorm}


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", NORMS)
def test_weights_are_the_starting_point(name: str, to: str) -> None:
    """Once its statistics are those of the data, the new norm is y = weight * normalised(x) + bias by channel."""
    torch.manual_seed(0)
    old = trained(NORMS[name]())
    model = nn.Sequential(Block(old), Block(trained(nn.LayerNorm(CHANNELS))))
    twin = copy.deepcopy(old)
    report = replace_layernorm(model, to)
    new = model[0].norm
    assert isinstance(new, TARGETS[to])
    assert [(norm.name, norm.to, norm.channels) for norm in report.replaced] == [
        ("0.norm", TARGETS[to].__name__, CHANNELS),
        ("1.norm", TARGETS[to].__name__, CHANNELS),
    ]
    assert report.replaced[0].kind == ("RMSNorm" if name in RMS else "LayerNorm")
    assert not report.kept
    part = new.norm2.bn if to == "prepbn" else new.bn if to == "repbn" else new
    # One channel apart from all others: its normalised value is known.
    y = twin(1e4 * torch.eye(CHANNELS)).diagonal()
    one = CHANNELS**0.5 if name in RMS else (CHANNELS - 1) ** 0.5
    torch.testing.assert_close(part.weight * one + part.bias, y, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        part.weight * -one + part.bias, twin(-1e4 * torch.eye(CHANNELS)).diagonal(), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", NORMS)
def test_the_first_step_of_a_fade_computes_what_was_there(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(trained(NORMS[name]())), Block(trained(NORMS[name]())))
    before = copy.deepcopy(model)
    replace_layernorm(model, "prepbn", step=10)
    x = torch.randn(4, 5, CHANNELS)
    assert torch.equal(model(x), before(x))
    assert not torch.equal(model(x), before(x)), "and the second one does not"


def test_a_warm_up_changes_nothing_either() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Block(trained(nn.LayerNorm(CHANNELS))))
    before = copy.deepcopy(model)
    replace_layernorm(model, to="prepbn", step=2, warm=3)
    for step in range(4):
        x = torch.randn(4, 5, CHANNELS)
        assert torch.equal(model(x), before(x)), step


@pytest.mark.parametrize("to", TARGETS)
def test_a_norm_over_axis_1_stays_one(to: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, CHANNELS, 3), trained(LayerNorm2d(CHANNELS)), nn.Conv2d(CHANNELS, 2, 1))
    before = copy.deepcopy(model)
    report = replace_layernorm(model, to)
    assert [norm.kind for norm in report.replaced] == ["LayerNorm"]
    x = torch.randn(2, 3, 6, 6)
    y = model(x)
    if to == "prepbn":
        torch.testing.assert_close(y, before(x))
    inner = model[0](x)
    if to == "bn":
        normalised = nn.functional.batch_norm(inner, None, None, before[1].weight, before[1].bias, True)
        torch.testing.assert_close(y, before[2](normalised))
    assert y.shape == before(x).shape


def test_what_is_no_norm_of_channels_stays_and_says_why() -> None:
    model = nn.ModuleDict(
        {
            "fine": nn.LayerNorm(CHANNELS),
            "wide": nn.LayerNorm((4, CHANNELS)),
            "scale": ScaleNorm(CHANNELS),
            "gated": GatedRMSNorm(CHANNELS),
            "length": L2Norm(),
            "narrow": nn.LayerNorm(1),
            "group": nn.GroupNorm(2, CHANNELS),
            "meta": nn.LayerNorm(CHANNELS, device="meta"),
            "batch": nn.BatchNorm1d(CHANNELS),
            "linear": nn.Linear(CHANNELS, CHANNELS),
        }
    )
    report = replace_layernorm(model, "repbn")
    assert [norm.name for norm in report.replaced] == ["fine"]
    reasons = {norm.name: norm.reason for norm in report.kept}
    assert reasons.keys() == {"wide", "scale", "gated", "length", "narrow", "group", "meta"}
    assert "2 axes" in reasons["wide"]
    assert "something else" in reasons["scale"]
    assert "takes more than x (gate)" in reasons["gated"]
    assert "no weight that says how many channels" in reasons["length"]
    assert "one channel" in reasons["narrow"]
    assert "not loaded" in reasons["meta"]
    assert str(report).startswith("1 norms replaced, 7 kept\nfine: LayerNorm(8) is RepBN now\nwide: ")


def test_leave_by_name_pattern_and_predicate() -> None:
    def model() -> nn.Module:
        return nn.Sequential(Block(nn.LayerNorm(CHANNELS)), Block(nn.RMSNorm(CHANNELS)), nn.LayerNorm(CHANNELS))

    for leave in ("0.norm", ["0.norm", "2"], "*.norm", lambda name, module: isinstance(module, nn.RMSNorm)):
        net = model()
        report = replace_layernorm(net, "un", leave=leave)
        kept = {norm.name for norm in report.kept}
        assert kept and all(norm.reason == "it was to be left" for norm in report.kept)
        for norm in find_norms(net):
            assert (norm.kind == "UN") == (norm.name not in kept)
    with pytest.raises(UsageError, match=r"leave='head\.norm' is no norm of this model; its norms are 0\.norm"):
        replace_layernorm(model(), "un", leave="head.norm")


def test_again_does_nothing_and_shared_norms_stay_shared() -> None:
    shared = nn.LayerNorm(CHANNELS)
    model = nn.Sequential(Block(shared), Block(shared))
    assert len(replace_layernorm(model, "prepbn").replaced) == 2
    assert model[0].norm is model[1].norm
    again = replace_layernorm(model, "prepbn")
    assert again.replaced == again.kept == ()


def test_device_type_mode_and_frozen_weights_are_kept() -> None:
    norm = nn.LayerNorm(CHANNELS, dtype=torch.float64).requires_grad_(False)
    model = nn.Sequential(norm, nn.LayerNorm(CHANNELS)).eval()
    replace_layernorm(model, "prepbn")
    assert model[0].norm2.bn.running_var.dtype == torch.float64
    assert not any(parameter.requires_grad for parameter in model[0].parameters())
    assert all(parameter.requires_grad for parameter in model[1].parameters())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("name", ["layernorm-plain", "olmo"])
def test_a_norm_without_weights_gets_the_type_of_its_model(name: str, to: str) -> None:
    block = Block(NORMS[name]()).to(torch.bfloat16)
    for model in (nn.Sequential(block), nn.Sequential(NORMS[name](), block.fc)):
        assert len(replace_layernorm(model, to).replaced) == 1
        y = model(torch.randn(2, 3, CHANNELS, dtype=torch.bfloat16))
        assert y.dtype == torch.bfloat16
        assert {value.dtype for value in model.state_dict().values()} <= {torch.bfloat16, torch.int64}


@pytest.mark.parametrize("to", TARGETS)
def test_a_model_may_ask_a_norm_for_its_type(to: str) -> None:
    """Mamba and BLIP-2 do: `self.norm(x.to(self.norm.weight.dtype))`."""
    model = nn.Sequential(nn.LayerNorm(CHANNELS, dtype=torch.float64))
    replace_layernorm(model, to)
    assert model[0].weight.dtype == torch.float64
    assert not any(name == "0.weight" for name, _ in model.named_parameters()) or to in ("un", "bn")


class Again(nn.Module):
    """One layer, three times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Block(trained(nn.LayerNorm(CHANNELS)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(self.layer(x)))


def test_the_first_step_of_a_layer_that_is_called_again_and_again() -> None:
    """Each call moves the schedule; a warm-up of as many calls is one step."""
    torch.manual_seed(0)
    model = Again()
    before, early = copy.deepcopy(model), copy.deepcopy(model)
    replace_layernorm(model, "prepbn", warm=3, step=30)
    replace_layernorm(early, "prepbn", step=30)
    x = torch.randn(4, 5, CHANNELS)
    assert torch.equal(model(x), before(x))
    assert not torch.equal(early(x), before(x))
    assert progress(model).done == 0.0 and int(model.layer.norm.warm) == 0


def test_bad_requests_are_refused_before_anything_changes() -> None:
    model = nn.Sequential(Block(nn.LayerNorm(CHANNELS)))
    for to, options, message in (
        ("gn", {}, "cannot make 'gn'"),
        ("un", {"step": 3}, "un has no option step; it has"),
        ("prepbn", {"window_size": 3}, "no option window_size"),
        ("un", {"window_size": 0}, "window_size of UN1d takes a whole number of 1 or more, not 0"),
        ("prepbn", {"step": 0}, "step of LinearNorm takes a whole number of 1 or more, not 0"),
        ("prepbn", {"step": "a"}, "not 'a'"),
    ):
        with pytest.raises(UsageError, match=message):
            replace_layernorm(model, to, **options)
    assert isinstance(model[0].norm, nn.LayerNorm)
    (kept,) = replace_layernorm(nn.LayerNorm(CHANNELS), "un").kept
    assert kept.reason == "it is the model itself"


@pytest.mark.parametrize("to", TARGETS)
def test_torchs_encoder_does_not_bypass_the_new_norms(to: str) -> None:
    """Its fused path reads norm1.weight and computes LayerNorm."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(CHANNELS, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    replace_layernorm(model, to)
    x, padding = torch.randn(3, 5, CHANNELS), torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    model(x, src_key_padding_mask=padding)
    model.eval()
    with torch.no_grad():
        fast = model(x, src_key_padding_mask=padding)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            slow = model(x, src_key_padding_mask=padding)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(fast, slow)


@pytest.mark.slow
@pytest.mark.parametrize("to", TARGETS)
def test_transformers_models(to: str) -> None:
    import transformers as hf

    tiny = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    models = [
        (hf.BertModel(hf.BertConfig(**tiny, vocab_size=50)), 5),
        (hf.LlamaModel(hf.LlamaConfig(**tiny, vocab_size=50)), 5),
        (hf.GemmaModel(hf.GemmaConfig(**tiny, num_key_value_heads=2, head_dim=8, vocab_size=50)), 5),
        (hf.GPT2Model(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=50)), 5),
        (hf.T5EncoderModel(hf.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)), 5),
    ]
    ids = torch.randint(4, 50, (3, 7))
    for model, norms in models:
        model.eval()
        before = model(input_ids=ids).last_hidden_state
        report = replace_layernorm(model, to)
        assert (len(report.replaced), report.kept) == (norms, ()), type(model).__name__
        for module in model.modules():
            if type(module) in TARGETS.values():
                module.train()
        after = model(input_ids=ids).last_hidden_state
        after.square().mean().backward()
        if to == "prepbn":
            torch.testing.assert_close(after, before)
        assert bool(torch.isfinite(model.eval()(input_ids=ids).last_hidden_state).all())
