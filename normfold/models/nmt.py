"""The encoder-decoder Transformer for translation, in fairseq's layout and with its names."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from normfold.models.blocks import NormArgs, norm_layer
from normfold.models.families import Each, each
from normfold.models.seq2seq import PADDING, Decoder, Encoder, EncoderDecoder
from normfold.models.text_blocks import LayerConfig, SinusoidalPositions

# fairseq writes this into the checkpoints of both stacks.
_VERSION = 3.0


class TranslationTransformer(EncoderDecoder):
    """Source (N, S) and target tokens (N, L), padded with 1, to the logits (N, L, vocab) of the tokens that follow.

    vocab, depth, heads, hidden: one number, or one for encoder and one for decoder. positions: the longest source or
    target. shared: which of the three tables of words are one: "all", "decoder" (its embedding and the output
    projection) or "none"; the state dict has all three in any case. pre_norm: whether norms stand in front of their
    branches instead of behind the sums. learned_positions: a table instead of sinusoids. embedding_norm: whether
    embeddings are normalised.
    norm: any name `blocks.norm` knows; norm_args: its options. The defaults are fairseq's transformer_iwslt_de_en with
    pre-norm layers and one table.
    Source: Ott et al., arXiv:1904.01038; with UN: Yang et al., arXiv:2208.01313.
    """

    def __init__(
        self,
        *,
        vocab: Each = 10000,
        dim: int = 512,
        depth: Each = 6,
        heads: Each = 4,
        hidden: Each = 1024,
        positions: int = 1024,
        shared: Literal["all", "decoder", "none"] = "all",
        pre_norm: bool = True,
        learned_positions: bool = False,
        embedding_norm: bool = False,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        words = each(vocab)
        if shared not in ("all", "decoder", "none") or (shared == "all" and words[0] != words[1]):
            raise ValueError(f"tables of {words[0]} and {words[1]} words cannot be shared as {shared!r}")
        layer = norm_layer(norm, norm_args)
        tables = [nn.Embedding(count, dim, padding_idx=PADDING) for count in words[: 1 if shared == "all" else 2]]
        stacks = []
        for part, (kind, depth_of, heads_of, hidden_of) in enumerate(
            zip((Encoder, Decoder), each(depth), each(heads), each(hidden), strict=True)
        ):
            config = LayerConfig(dim, heads_of, hidden_of, layer, None if pre_norm else 1.0)
            rows = positions + PADDING + 1
            places = (
                nn.Embedding(rows, dim, padding_idx=PADDING)
                if learned_positions
                else SinusoidalPositions(rows, dim, padding=PADDING)
            )
            stack = kind(
                tables[min(part, len(tables) - 1)],
                places,
                config,
                depth=depth_of,
                scaled=True,
                embedding_norm=embedding_norm,
            )
            stack.register_buffer("version", torch.tensor([_VERSION]))
            stacks.append(stack)
        encoder, decoder = stacks
        assert isinstance(encoder, Encoder) and isinstance(decoder, Decoder)
        super().__init__(encoder, decoder)
        if shared != "none":
            decoder.output_projection.weight = decoder.embed_tokens.weight
        self._initialise()

    def _initialise(self) -> None:
        tables = [part for part in self.modules() if isinstance(part, nn.Embedding)]
        for part in self.modules():
            if isinstance(part, nn.Linear) and all(part.weight is not table.weight for table in tables):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        for table in tables:
            nn.init.normal_(table.weight, std=table.embedding_dim**-0.5)
