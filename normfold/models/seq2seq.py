"""Encoder, decoder and both together, in the layout that fairseq and torchscale share; and how they are exported."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from normfold.models.text_blocks import (
    CacheShape,
    Decoded,
    DecoderLayer,
    EncoderLayer,
    KeyValue,
    LayerConfig,
    MultiheadAttention,
    Scale,
    cached_length,
    causal_mask,
    source_mask,
    stack,
    token_positions,
    unstack,
)

# The number of the padding token, and so the position row of no position, in both libraries' dictionaries.
PADDING = 1


class SourceKeysValues(NamedTuple):
    """A source as the decoder's attention reads it, (layers, N, heads, S, head_dim) each."""

    source_keys: Tensor
    source_values: Tensor


class _Stack(nn.Module):
    """Embedded tokens, layers, and for pre-norm layers a last norm.

    embed_positions: maps position rows, PADDING + 1 for the first token, to vectors.
    scaled: whether token vectors are multiplied by sqrt(dim) before the positions are added.
    embedding_norm: whether the sum of both is normalised.
    """

    layernorm_embedding: nn.Module | None

    def __init__(
        self,
        layers: Sequence[nn.Module],
        embed_tokens: nn.Embedding,
        embed_positions: nn.Module,
        config: LayerConfig,
        *,
        scaled: bool,
        embedding_norm: bool = False,
    ) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.embed_positions = embed_positions
        self.layernorm_embedding = config.norm(config.dim) if embedding_norm else None
        self.layers = nn.ModuleList(layers)
        self.layer_norm = config.norm(config.dim) if config.alpha is None else None
        self.embed_scale = Scale(math.sqrt(config.dim)) if scaled else None

    def _embed(self, ids: Tensor, rows: Tensor) -> Tensor:
        tokens: Tensor = self.embed_tokens(ids)
        scaled = tokens if self.embed_scale is None else self.embed_scale(tokens)
        x: Tensor = scaled + self.embed_positions(rows)
        return x if self.layernorm_embedding is None else self.layernorm_embedding(x)

    def _finish(self, x: Tensor) -> Tensor:
        return x if self.layer_norm is None else self.layer_norm(x)


class Encoder(_Stack):
    """Source tokens (N, S) int64, padded on either side with PADDING, to (N, S, dim)."""

    def __init__(
        self,
        embed_tokens: nn.Embedding,
        embed_positions: nn.Module,
        config: LayerConfig,
        *,
        depth: int,
        scaled: bool,
        embedding_norm: bool = False,
    ) -> None:
        layers = [EncoderLayer(config) for _ in range(depth)]
        super().__init__(layers, embed_tokens, embed_positions, config, scaled=scaled, embedding_norm=embedding_norm)

    def forward(self, src: Tensor) -> Tensor:
        """(N, S) to (N, S, dim); what stands at padding means nothing."""
        keep = src != PADDING
        x = self._embed(src, token_positions(keep, padding=PADDING))
        # Nothing reads padded positions but the statistics of the norms while they train.
        x = x.masked_fill(~keep[:, :, None], 0.0)
        mask = source_mask(keep, x)
        for layer in self.layers:
            x = layer(x, mask)
        return self._finish(x)


class Decoder(_Stack):
    """Target tokens (N, L) int64 and the keys and values of a source to the logits (N, L, vocab) of the tokens after.

    Targets may be padded on the right, where causality keeps padding out of sight.
    """

    def __init__(
        self,
        embed_tokens: nn.Embedding,
        embed_positions: nn.Module,
        config: LayerConfig,
        *,
        depth: int,
        scaled: bool,
        embedding_norm: bool = False,
    ) -> None:
        layers = [DecoderLayer(config) for _ in range(depth)]
        super().__init__(layers, embed_tokens, embed_positions, config, scaled=scaled, embedding_norm=embedding_norm)
        self.output_projection = nn.Linear(config.dim, embed_tokens.num_embeddings, bias=False)
        self.cache_shape = CacheShape(depth, config.heads, config.dim // config.heads)

    def sources(self, memory: Tensor) -> list[KeyValue]:
        """What the encoder computed (N, S, dim) as keys and values for every layer, (N, heads, S, head_dim) each."""
        return [attention.keys_values(memory) for attention in self.source_attentions()]

    def source_attentions(self) -> list[MultiheadAttention]:
        """Every layer's attention to the source."""
        return [cast(DecoderLayer, layer).encoder_attn for layer in self.layers]

    def forward(
        self, ids: Tensor, sources: Sequence[KeyValue], keep: Tensor, pasts: Sequence[KeyValue] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """Logits (N, L, vocab), and every layer's cache of the P + L positions so far.

        sources: from `sources`; keep (N, S) bool: True where the source has a token.
        pasts: every layer's cache of P positions, as the last call returned them; P may be 0.
        """
        start = cached_length(pasts[0]) if pasts else None
        rows = torch.arange(ids.shape[1], device=ids.device) + (PADDING + 1 + (start or 0))
        x = self._embed(ids, rows)
        masks = causal_mask(x, start), source_mask(keep, x)
        caches: list[KeyValue] = []
        for i, layer in enumerate(self.layers):
            x, cache = layer(x, sources[i], pasts[i] if pasts else None, masks)
            caches.append(cache)
        return self.output_projection(self._finish(x)), caches


class EncoderDecoder(nn.Module):
    """Source and target tokens to the logits of the target tokens that follow."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, src: Tensor, ids: Tensor) -> Tensor:
        """(N, S) and (N, L) int64 to (N, L, vocab)."""
        logits: Tensor = self.decoder(ids, self.decoder.sources(self.encoder(src)), src != PADDING)[0]
        return logits

    def parts(self) -> tuple[EncoderPart, DecoderPart]:
        """The two modules to export for decoding: the first runs once a source, the second once a token."""
        return EncoderPart(self), DecoderPart(self)


class _Holder(nn.Module):
    """A decoder layer of which only the attention to the source is there."""

    def __init__(self, encoder_attn: MultiheadAttention) -> None:
        super().__init__()
        self.encoder_attn = encoder_attn


class EncoderPart(nn.Module):
    """The encoder together with the projections that the decoder's attention reads it through.

    With the projections here they run once a source instead of once a token, and the encoder's last norm has
    weights behind it to fold into. Submodules are the model's own, under its names.
    """

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.encoder = model.encoder
        self.decoder = nn.Module()
        self.decoder.layers = nn.ModuleList(_Holder(attention) for attention in model.decoder.source_attentions())

    def forward(self, src: Tensor) -> SourceKeysValues:
        """(N, S) int64 to the keys and values of the source in every layer of the decoder."""
        memory = self.encoder(src)
        layers = cast(nn.ModuleList, self.decoder.layers)
        return SourceKeysValues(*stack([cast(_Holder, layer).encoder_attn.keys_values(memory) for layer in layers]))


class DecoderPart(nn.Module):
    """The decoder with its caches stacked, so that they are four tensors however many layers there are."""

    def __init__(self, model: EncoderDecoder) -> None:
        super().__init__()
        self.decoder = model.decoder
        self.cache_shape = model.decoder.cache_shape

    def forward(
        self,
        ids: Tensor,
        source_keys: Tensor,
        source_values: Tensor,
        keep: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
    ) -> Decoded:
        """(N, L) int64 to the logits (N, L, vocab) and the keys and values of P + L positions.

        source_keys, source_values: from `EncoderPart`; keep (N, S) bool: `src != PADDING`; past_keys, past_values:
        (layers, N, heads, P, head_dim), what the last call returned, with P = 0 in the first.
        """
        depth = len(self.decoder.layers)
        pasts = unstack(past_keys, past_values, depth)
        logits, caches = self.decoder(ids, unstack(source_keys, source_values, depth), keep, pasts)
        return Decoded(logits, *stack(caches))
