"""Small configurations of models of the `transformers` package, for benchmarks/zoo_models.py."""

from __future__ import annotations

from typing import Any

_STAGES: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
_ENCODER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
_PATCHES = {"image_size": 64, "patch_size": 8, **_ENCODER, "num_hidden_layers": 4}
_SEGMENTS = {**_PATCHES, "out_indices": [1, 2, 3, 4], "auxiliary_channels": 16, "num_labels": 5}
_SPEECH = {
    "vocab_size": 12,
    **_ENCODER,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
_CONFORMER = {**_ENCODER, "conv_kernel_size": 7, "subsampling_conv_channels": 16, "num_mel_bins": 32}
_SERIES = {"num_input_channels": 3, "context_length": 32, "patch_length": 8, "patch_stride": 8, "d_model": 16}
_QUERIES = {
    "d_model": 32,
    "num_queries": 20,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
}


def _basic(*stages: str) -> tuple[str, dict[str, Any]]:
    return "ResNetConfig", {**_STAGES, "layer_type": "basic", "out_features": list(stages)}


# Class, configuration, and where it takes something else than a picture: its argument and the shape.
TRANSFORMERS: dict[str, tuple[Any, ...]] = {
    "resnet": ("ResNetForImageClassification", _STAGES),
    "resnet basic": ("ResNetForImageClassification", {**_STAGES, "layer_type": "basic"}),
    "regnet": ("RegNetForImageClassification", {**_STAGES, "groups_width": 16}),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25}),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.35}),
    "mobilenet_v2 segmentation": ("MobileNetV2ForSemanticSegmentation", {"depth_multiplier": 0.35}),
    "mobilevitv2": ("MobileViTV2ForImageClassification", {"width_multiplier": 0.5, "image_size": 64}),
    "mobilevit segmentation": (
        "MobileViTForSemanticSegmentation",
        {
            "image_size": 64,
            "hidden_sizes": [16, 24, 32],
            "neck_hidden_sizes": [8, 8, 16, 24, 24, 32, 64],
            "num_attention_heads": 2,
            "aspp_out_channels": 16,
        },
    ),
    "levit": (
        "LevitForImageClassification",
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
        },
    ),
    "efficientnet": (
        "EfficientNetForImageClassification",
        {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 64, "hidden_dim": 1280},
    ),
    "cvt": (
        "CvtForImageClassification",
        {"embed_dim": [16, 48, 96], "depth": [1, 1, 2], "drop_path_rate": [0.0, 0.0, 0.0]},
    ),
    "swiftformer": (
        "SwiftFormerForImageClassification",
        {"depths": [1, 1, 2, 1], "embed_dims": [16, 32, 48, 64]},
    ),
    "hgnet_v2": ("HGNetV2ForImageClassification", {}),
    "textnet": ("TextNetForImageClassification", {}),
    "pp_lcnet": ("PPLCNetForImageClassification", {}),
    "pp_lcnet_v3": ("PPLCNetV3Backbone", {}),
    "pp_ocrv5 detection": ("PPOCRV5MobileDetForObjectDetection", {}),
    "rt_detr resnet": ("RTDetrResNetBackbone", {**_STAGES, "hidden_sizes": [32, 64, 96, 128]}),
    "rt_detr": (
        "RTDetrForObjectDetection",
        {
            "backbone_config": ("RTDetrResNetConfig", _basic("stage2", "stage3", "stage4")[1]),
            **_QUERIES,
            "encoder_hidden_dim": 32,
            "encoder_in_channels": [32, 48, 64],
            "decoder_in_channels": [32, 32, 32],
            "feat_strides": [8, 16, 32],
            "num_labels": 5,
        },
    ),
    "detr": (
        "DetrForObjectDetection",
        {"backbone_config": _basic("stage4"), **_QUERIES, "encoder_layers": 2},
    ),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [8, 16, 24, 32],
            "num_attention_heads": [1, 1, 2, 2],
            "decoder_hidden_size": 16,
        },
    ),
    "glpn": (
        "GLPNForDepthEstimation",
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 2, 2]},
    ),
    "upernet": (
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": _basic("stage1", "stage2", "stage3", "stage4"),
            "hidden_size": 32,
            "auxiliary_in_channels": 48,
            "auxiliary_channels": 16,
        },
    ),
    "beit segmentation": ("BeitForSemanticSegmentation", _SEGMENTS),
    "data2vec segmentation": ("Data2VecVisionForSemanticSegmentation", _SEGMENTS),
    "dpt": (
        "DPTForDepthEstimation",
        {
            **_PATCHES,
            "patch_size": 16,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [8, 16, 24, 32],
            "fusion_hidden_size": 16,
            "use_batch_norm_in_fusion_residual": True,
            "is_hybrid": False,
        },
    ),
    "vitpose": (
        "VitPoseForPoseEstimation",
        {
            "backbone_config": (
                "VitPoseBackboneConfig",
                {"image_size": [64, 64], **_ENCODER, "mlp_ratio": 2},
            ),
            "num_labels": 5,
            "use_simple_decoder": False,
        },
    ),
    "vitmatte": (
        "VitMatteForImageMatting",
        {
            "backbone_config": (
                "VitDetConfig",
                {
                    **_PATCHES,
                    "pretrain_image_size": 64,
                    "patch_size": 16,
                    "num_channels": 4,
                    "window_block_indices": [0],
                    "window_size": 2,
                    "out_features": ["stage4"],
                },
            ),
            "hidden_size": 32,
            "fusion_hidden_sizes": [16, 16, 16, 16],
            "convstream_hidden_sizes": [8, 16, 24],
        },
        "pixel_values",
        (1, 4, 64, 64),
    ),
    "convnext": ("ConvNextForImageClassification", {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}),
    "hubert": ("HubertForCTC", {**_SPEECH, "conv_pos_batch_norm": True}, "input_values", (1, 800)),
    "wav2vec2_conformer": (
        "Wav2Vec2ConformerForCTC",
        {**_SPEECH, "conv_depthwise_kernel_size": 7},
        "input_values",
        (1, 800),
    ),
    "parakeet": ("ParakeetForCTC", {"encoder_config": _CONFORMER}, "input_features", (1, 64, 32)),
    "lasr": ("LasrForCTC", {"encoder_config": _CONFORMER}, "input_features", (1, 64, 32)),
    "clap audio": (
        "ClapAudioModel",
        {
            "patch_embeds_hidden_size": 16,
            "spec_size": 64,
            "num_mel_bins": 16,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "hidden_size": 32,
            "window_size": 2,
            "patch_size": 4,
            "patch_stride": [4, 4],
        },
        "input_features",
        (1, 1, 256, 16),
    ),
    "patchtst": (
        "PatchTSTForPrediction",
        {
            **_SERIES,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "ffn_dim": 32,
            "norm_type": "batchnorm",
            "prediction_length": 8,
        },
        "past_values",
        (1, 32, 3),
    ),
    "patchtsmixer": (
        "PatchTSMixerForPrediction",
        {**_SERIES, "num_layers": 2, "norm_mlp": "BatchNorm", "prediction_length": 8},
        "past_values",
        (1, 32, 3),
    ),
    "perceiver": (
        "PerceiverForImageClassificationConvProcessing",
        {
            "num_latents": 16,
            "d_latents": 32,
            "num_blocks": 1,
            "num_self_attends_per_block": 2,
            "num_self_attention_heads": 2,
            "num_cross_attention_heads": 1,
            "image_size": 64,
        },
        "inputs",
    ),
}
