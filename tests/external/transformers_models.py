"""Models of the `transformers` package from small configurations.

For `--model tests.external.transformers_models:NAME`. Each takes one tensor and returns one: the package's models
return dataclasses. Weights are random; `randomised` draws statistics too, since fresh ones (mean 0, variance 1) make
wrong folds look right.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

SERIES = "x:float32[B,32,3]"
PICTURE = "x:float32[B,3,64,64]"
TOKENS = "x:int64[B,L=16<=32]<50"
# The factories below and what each takes.
INPUTS = {
    "patchtst": SERIES,
    "patchtst_pre_norm": SERIES,
    "patchtsmixer": SERIES,
    "levit": PICTURE,
    "mobilevit": PICTURE,
    "segformer": PICTURE,
    "wav2vec2_conformer": "x:float32[B,800]",
    "bert": TOKENS,
    "llama": TOKENS,
}


class One(nn.Module):
    """One output of a model that returns several, by its name."""

    def __init__(self, model: nn.Module, output: str = "logits", **options: Any) -> None:
        super().__init__()
        self.model, self.output, self.options = model, output, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.model(x, **self.options)[self.output]
        assert isinstance(found, torch.Tensor)
        return found


def patchtst(pre_norm: bool = False) -> nn.Module:
    """A transformer over patches of time series; BatchNorm over (batch, patches, channels)."""
    config = transformers.PatchTSTConfig(
        num_input_channels=3,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        d_model=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        ffn_dim=32,
        norm_type="batchnorm",
        pre_norm=pre_norm,
        num_targets=4,
    )
    return One(transformers.PatchTSTForClassification(config), "prediction_logits")


def patchtst_pre_norm() -> nn.Module:
    """The same with the norms in front of their layers."""
    return patchtst(pre_norm=True)


def patchtsmixer() -> nn.Module:
    """An MLP-Mixer over patches of time series."""
    config = transformers.PatchTSMixerConfig(
        num_input_channels=3,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        d_model=16,
        num_layers=2,
        norm_mlp="BatchNorm",
        prediction_length=8,
    )
    return One(transformers.PatchTSMixerForPrediction(config), "prediction_outputs", return_loss=False)


def levit() -> nn.Module:
    """A hybrid of convolutions and attention; MatMul -> Reshape -> BatchNorm -> Reshape."""
    config = transformers.LevitConfig(
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        num_labels=5,
    )
    return One(transformers.LevitForImageClassification(config))


def mobilevit() -> nn.Module:
    """MobileNet blocks with transformers in between."""
    config = transformers.MobileViTConfig(
        image_size=64,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 24, 24, 32, 64],
        num_attention_heads=2,
        num_labels=5,
    )
    return One(transformers.MobileViTForImageClassification(config))


def segformer() -> nn.Module:
    """LayerNorm in the encoder, one BatchNorm in the decode head."""
    config = transformers.SegformerConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=16,
        num_labels=5,
    )
    return One(transformers.SegformerForSemanticSegmentation(config))


def wav2vec2_conformer() -> nn.Module:
    """Speech: LayerNorm around BatchNorm behind a depthwise convolution."""
    config = transformers.Wav2Vec2ConformerConfig(
        vocab_size=12,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=(16, 16, 16),
        conv_kernel=(10, 3, 3),
        conv_stride=(5, 2, 2),
        num_feat_extract_layers=3,
        conv_depthwise_kernel_size=7,
        attn_implementation="eager",
    )
    return One(transformers.Wav2Vec2ConformerForCTC(config))


def bert() -> nn.Module:
    """Post-norm LayerNorm."""
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    return One(transformers.BertForSequenceClassification(config))


def llama() -> nn.Module:
    """Pre-norm RMSNorm."""
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=32,
        attn_implementation="eager",
    )
    return One(transformers.LlamaForCausalLM(config), use_cache=False)


def checkpoint(name: str, folder: Path) -> Path:
    """The state of one of the models above as a file, weights and statistics drawn."""
    torch.manual_seed(0)
    path = folder / f"{name}.pt"
    torch.save(randomised(globals()[name]()).state_dict(), path)
    return path


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """`module` with drawn statistics, and drawn weights and biases of norms; gammas of both signs."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.state_dict().items():
        leaf = name.rsplit(".", 1)[-1]
        if leaf == "running_var":
            tensor.uniform_(0.3, 3.0, generator=generator)
        elif leaf == "running_mean":
            tensor.normal_(0.0, 0.5, generator=generator)
        elif leaf in ("weight", "bias") and tensor.ndim == 1:
            tensor.normal_(1.0 if leaf == "weight" else 0.0, 0.5, generator=generator)
    return module.eval()
