"""DeepNet: post-norm Transformers of a thousand layers, with torchscale's names (Wang et al., arXiv:2203.00555)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from normfold.models.blocks import NormArgs, norm_layer
from normfold.models.seq2seq import PADDING, Decoder, Encoder, EncoderDecoder
from normfold.models.text_blocks import LayerConfig
from normfold.nn.deepnorm import encoder_decoder, encoder_only


def initialise(stack: nn.Module, beta: float) -> None:
    """Xavier normal with gain beta where the paper wants it (values, attention outputs, feed-forward), 1 elsewhere."""
    for name, part in stack.named_modules():
        if isinstance(part, nn.Linear) and part.bias is not None:
            scaled = name.rsplit(".", 1)[-1] in ("v_proj", "out_proj", "fc1", "fc2")
            nn.init.xavier_normal_(part.weight, gain=beta if scaled else 1.0)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=part.embedding_dim**-0.5)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)


class DeepNetEncoder(Encoder):
    """Tokens (N, S) int64, padded on either side with 1, to the logits (N, S, vocab) of a token at every position.

    positions: the longest input. norm: any name `blocks.norm` knows; norm_args: its options.
    """

    def __init__(
        self,
        *,
        vocab: int = 32000,
        dim: int = 512,
        depth: int = 18,
        heads: int = 8,
        hidden: int = 2048,
        positions: int = 1024,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        constants = encoder_only(depth)
        config = LayerConfig(dim, heads, hidden, norm_layer(norm, norm_args), constants.alpha, F.gelu, nested=True)
        tokens, places = nn.Embedding(vocab, dim), nn.Embedding(positions + PADDING + 1, dim)
        super().__init__(tokens, places, config, depth=depth, scaled=False)
        self.output_projection = nn.Linear(dim, vocab, bias=False)
        initialise(self, constants.beta)

    def forward(self, src: Tensor) -> Tensor:
        """(N, S) to (N, S, vocab)."""
        logits: Tensor = self.output_projection(super().forward(src))
        return logits


class DeepNetTranslator(EncoderDecoder):
    """Source (N, S) and target tokens (N, L) to the logits (N, L, vocab) of the target tokens that follow.

    encoder_depth, decoder_depth: N and M of the paper's table. positions: the longest source or target.
    norm: any name `blocks.norm` knows; norm_args: its options. One table embeds sources and targets and projects the
    output.
    """

    def __init__(
        self,
        *,
        vocab: int = 32000,
        dim: int = 512,
        encoder_depth: int = 18,
        decoder_depth: int = 18,
        heads: int = 8,
        hidden: int = 2048,
        positions: int = 1024,
        norm: str = "ln",
        norm_args: NormArgs | None = None,
    ) -> None:
        constants = encoder_decoder(encoder_depth, decoder_depth)
        norms = norm_layer(norm, norm_args)
        configs = [LayerConfig(dim, heads, hidden, norms, alpha, F.gelu, nested=True) for alpha, _ in constants]
        tokens = nn.Embedding(vocab, dim)
        places = [nn.Embedding(positions + PADDING + 1, dim) for _ in configs]
        encoder = Encoder(tokens, places[0], configs[0], depth=encoder_depth, scaled=False)
        decoder = Decoder(tokens, places[1], configs[1], depth=decoder_depth, scaled=False)
        super().__init__(encoder, decoder)
        initialise(encoder, constants[0].beta)
        initialise(decoder, constants[1].beta)
        decoder.output_projection.weight = tokens.weight
