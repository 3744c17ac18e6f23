"""DeepNorm: norm(alpha * x + f(x)) and the initialisation that goes with it (Wang et al., arXiv:2203.00555)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from normfold.errors import UsageError

# Weights of queries and keys, which the paper initialises with gain 1; all others of a layer get gain beta.
_PLAIN = {"q_proj", "k_proj", "query", "key", "q", "k", "wq", "wk"}
# One weight for queries, keys and values, in this order.
_FUSED = {"qkv", "in_proj", "c_attn", "query_key_value"}
_CROSS = ("encoder_attn", "multihead_attn", "cross_attn", "cross_attention", "crossattention", "enc_attn")


class DeepNorm(NamedTuple):
    """alpha, by which a residual stream is multiplied: norm(alpha * x + f(x)); beta, the gain f is initialised with."""

    alpha: float
    beta: float


def encoder_only(layers: int) -> DeepNorm:
    """The constants of an encoder or decoder alone: (2N)^(1/4), (8N)^(-1/4). Source: arXiv:2203.00555, figure 2."""
    return DeepNorm((2 * layers) ** 0.25, (8 * layers) ** -0.25)


def encoder_decoder(encoder_layers: int, decoder_layers: int) -> tuple[DeepNorm, DeepNorm]:
    """The constants of N encoder and of M decoder layers.

    Encoder: 0.81 (N^4 M)^(1/16) and 0.87 (N^4 M)^(-1/16); decoder: (3M)^(1/4) and (12M)^(-1/4).
    Source: arXiv:2203.00555, figure 2.
    """
    mixed = (encoder_layers**4 * decoder_layers) ** (1 / 16)
    return DeepNorm(0.81 * mixed, 0.87 / mixed), DeepNorm((3 * decoder_layers) ** 0.25, (12 * decoder_layers) ** -0.25)


class DeepNormEncoderLayer(nn.TransformerEncoderLayer):
    """A post-norm `nn.TransformerEncoderLayer` with alpha; `deepnorm_` makes it out of one."""

    alpha: float

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """As its base class."""
        attended = self._sa_block(src, src_mask, src_key_padding_mask, is_causal=is_causal)
        x = self.norm1(self.alpha * src + attended)
        y: Tensor = self.norm2(self.alpha * x + self._ff_block(x))
        return y


class DeepNormDecoderLayer(nn.TransformerDecoderLayer):
    """A post-norm `nn.TransformerDecoderLayer` with alpha; `deepnorm_` makes it out of one."""

    alpha: float

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """As its base class."""
        x = self.norm1(self.alpha * tgt + self._sa_block(tgt, tgt_mask, tgt_key_padding_mask, tgt_is_causal))
        read = self._mha_block(x, memory, memory_mask, memory_key_padding_mask, memory_is_causal)
        x = self.norm2(self.alpha * x + read)
        y: Tensor = self.norm3(self.alpha * x + self._ff_block(x))
        return y


@dataclass(frozen=True, slots=True)
class DeepNormed:
    """What `deepnorm_` set: the constants of the layers that read no other sequence, and of those that do."""

    encoder: DeepNorm | None
    decoder: DeepNorm | None
    layers: tuple[str, ...]


def deepnorm_(model: nn.Module) -> DeepNormed:
    """Make a post-norm transformer a DeepNet, in place: alpha and the beta-scaled Xavier initialisation of the paper.

    Layers: `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer` (norm_first=False), and modules with a number
    `alpha` that multiplies their residual streams: this package's post-norm blocks, your own.
    Without attention to another sequence the constants are those of an encoder or decoder alone, (2N)^(1/4) and
    (8N)^(-1/4), which are the same; with it, layers that have it are the decoder's and the others the encoder's.
    Initialisation: Xavier normal, gain beta for feed-forward, value and output projections, gain 1 for queries and
    keys (told by their names, in a joint weight by their place), biases 0. Embeddings, norms and heads stay.
    Raises UsageError where no layer has an alpha, or one is pre-norm.
    """
    found = list(_layers(model, ""))
    if not found:
        raise UsageError(
            "deepnorm_: no layer with a residual stream to scale: torch's transformer layers, or modules with a number "
            "`alpha` that they multiply x with in norm(alpha * x + f(x))"
        )
    for name, layer in found:
        if getattr(layer, "norm_first", False) or getattr(layer, "alpha", 1.0) is None:
            raise UsageError(f"deepnorm_: {name} is a pre-norm layer; DeepNorm is for post-norm ones")
    crossed = [_reads_another(layer) for _, layer in found]
    several = any(crossed) and not all(crossed)
    encoder, decoder = (
        encoder_decoder(crossed.count(False), crossed.count(True)) if several else (encoder_only(len(found)),) * 2
    )
    for (_, layer), cross in zip(found, crossed, strict=True):
        constants = decoder if cross else encoder
        _set_alpha(layer, constants.alpha)
        _initialise(layer, constants.beta)
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.enable_nested_tensor = module.use_nested_tensor = False
    names = tuple(name for name, _ in found)
    return DeepNormed(None if all(crossed) else encoder, decoder if any(crossed) else None, names)


def _layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    torchs = isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
    alpha = getattr(module, "alpha", "none")
    # RepBN's alpha is a parameter, and activations have an alpha of their own.
    own = (alpha is None or isinstance(alpha, float)) and bool(module._modules)
    if torchs or own:
        yield name or "(the model itself)", module
        return
    for child, inner in module.named_children():
        yield from _layers(inner, f"{name}.{child}" if name else child)


def _reads_another(layer: nn.Module) -> bool:
    return any(child.lower() in _CROSS for child, _ in layer.named_children())


def _set_alpha(layer: nn.Module, alpha: float) -> None:
    if type(layer) is nn.TransformerEncoderLayer:
        layer.__class__ = DeepNormEncoderLayer
    elif type(layer) is nn.TransformerDecoderLayer:
        layer.__class__ = DeepNormDecoderLayer
    owner: Any = layer
    owner.alpha = alpha


@torch.no_grad()
def _initialise(layer: nn.Module, beta: float) -> None:
    for name, part in layer.named_modules():
        leaf = name.rsplit(".", 1)[-1]
        if isinstance(part, nn.MultiheadAttention):
            _attention(part, beta)
        elif isinstance(part, nn.Linear):
            if leaf in _FUSED:
                _fused(part.weight, beta)
            else:
                nn.init.xavier_normal_(part.weight, gain=1.0 if leaf in _PLAIN else beta)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _attention(part: nn.MultiheadAttention, beta: float) -> None:
    """Its joint weight, or its three; the output projection is a Linear of its own."""
    if part._qkv_same_embed_dim:
        _fused(part.in_proj_weight, beta)
    else:
        for weight, gain in ((part.q_proj_weight, 1.0), (part.k_proj_weight, 1.0), (part.v_proj_weight, beta)):
            nn.init.xavier_normal_(weight, gain=gain)
    if part.in_proj_bias is not None:
        nn.init.zeros_(part.in_proj_bias)


def _fused(weight: Tensor, beta: float) -> None:
    for rows, gain in zip(weight.chunk(3), (1.0, 1.0, beta), strict=True):
        nn.init.xavier_normal_(rows, gain=gain)
