"""The encoder-decoder Transformer for IWSLT14 German-English, in fairseq's layout and with its names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from normfold.models.blocks import NormArgs, norm_layer
from normfold.models.seq2seq import PADDING, Decoder, Encoder, EncoderDecoder
from normfold.models.text_blocks import LayerConfig, SinusoidalPositions

# fairseq writes this into checkpoints of stacks that end in a norm.
_VERSION = 3.0


class TranslationTransformer(EncoderDecoder):
    """Pre-norm, sinusoidal positions, one embedding table for sources, targets and the output projection.

    The state dict has that table three times: encoder.embed_tokens, decoder.embed_tokens, decoder.output_projection.
    positions: the longest source or target.
    norm: any name `blocks.norm` knows; norm_args: its options. The defaults are fairseq's transformer_iwslt_de_en.
    Source: Ott et al., arXiv:1904.01038; with UN: Yang et al., arXiv:2208.01313.
    """

    def __init__(
        self,
        *,
        vocab: int = 10000,
        dim: int = 512,
        depth: int = 6,
        heads: int = 4,
        hidden: int = 1024,
        positions: int = 1024,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        config = LayerConfig(dim, heads, hidden, norm_layer(norm, norm_args))
        tokens = nn.Embedding(vocab, dim, padding_idx=PADDING)
        places = [SinusoidalPositions(positions + PADDING + 1, dim, padding=PADDING) for _ in range(2)]
        super().__init__(
            Encoder(tokens, places[0], config, depth=depth, scaled=True),
            Decoder(tokens, places[1], config, depth=depth, scaled=True),
        )
        for part in (self.encoder, self.decoder):
            part.register_buffer("version", torch.tensor([_VERSION]))
        self.decoder.output_projection.weight = tokens.weight
        self._initialise(tokens)

    def _initialise(self, tokens: nn.Embedding) -> None:
        for part in self.modules():
            if isinstance(part, nn.Linear) and part.weight is not tokens.weight:
                nn.init.xavier_uniform_(part.weight)
                nn.init.zeros_(part.bias)
        nn.init.normal_(tokens.weight, std=tokens.embedding_dim**-0.5)


NMT: dict[str, Callable[..., nn.Module]] = {
    "nmt_ln": TranslationTransformer,
    "nmt_un": partial(TranslationTransformer, norm="un"),
}
