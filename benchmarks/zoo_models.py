"""The architectures of benchmarks/zoo.py: built from their configurations, nothing downloaded, weights drawn.

Each library is imported only where one of its models is built.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils import _pytree as pytree

from benchmarks.zoo_transformers import TRANSFORMERS

# A picture: the smallest of these edges that the model takes, or else its own.
EDGES = (64, 128)
VIDEO, OBSERVED = 8, 4  # frames; samples that the statistics are taken of


class Builder(Protocol):
    """Builds a model; returned with it is the shape of its input, of one sample, or None for a picture."""

    def __call__(self) -> tuple[nn.Module, tuple[int, ...] | None]: ...


@dataclass(frozen=True)
class Built:
    """A model in eval mode, and the specification of what it takes."""

    module: nn.Module
    shape: tuple[int, ...]

    @property
    def inputs(self) -> str:
        return f"x:float32[{','.join(map(str, self.shape))}]"


class Tensors(nn.Module):
    """A model as a function of one tensor `x`, its floating outputs as a tuple, whatever it wraps them in."""

    def __init__(self, model: nn.Module, argument: str = "") -> None:
        super().__init__()
        self.model, self.argument = model, argument

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**{self.argument: x}) if self.argument else self.model(x)
        leaves = {id(leaf): leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)}
        return tuple(leaf for leaf in leaves.values() if leaf.is_floating_point())


def build(name: str) -> Built:
    """The model `name` of ARCHITECTURES, its norms' statistics those of drawn inputs. The same call gives the same."""
    torch.manual_seed(0)
    model, shape = ARCHITECTURES[name]()
    module = (model if isinstance(model, Tensors) else Tensors(model)).eval()
    if shape is not None:
        return Built(module, shape)
    own = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))[-1]
    error: Exception | None = None
    for edge in (*EDGES, own):
        try:
            with torch.no_grad():
                outputs = module(torch.randn(1, 3, edge, edge))
            if all(output.numel() for output in outputs):
                return Built(module, (1, 3, edge, edge))
        # Whatever a model raises for a picture that is too small for it.
        except Exception as raised:
            error = raised
    raise RuntimeError(f"{name} takes no picture of {EDGES} or {own}: {error}")


def draw_constants(module: nn.Module) -> None:
    """Draw what was not drawn but set: scales of layers, weights and tokens that start at one value, 0 or another.

    A scale of 1e-6 would hide a wrong fold behind it.
    """
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        first = parameter.flatten()[:1]
        if parameter.numel() > 1 and parameter.is_floating_point() and bool((parameter == first).all()):
            mean, deviation = (0.0, 0.02) if first.item() == 0.0 else (1.0, 0.2)
            with torch.no_grad():
                parameter.normal_(mean, deviation, generator=generator)


def _timm(name: str) -> tuple[nn.Module, None]:
    import timm

    return timm.create_model(name, pretrained=False), None


def _torchvision(name: str, shape: tuple[int, ...] | None = None) -> tuple[nn.Module, tuple[int, ...] | None]:
    import torchvision

    return torchvision.models.get_model(name, weights=None, **BACKBONE.get(name.partition("_")[0], {})), shape


def _segmentation(name: str) -> tuple[nn.Module, None]:
    import segmentation_models_pytorch

    architecture, _, encoder = name.partition(" ")
    return getattr(segmentation_models_pytorch, architecture)(encoder, encoder_weights=None), None


def _ultralytics(name: str) -> tuple[nn.Module, None]:
    os.environ.setdefault("YOLO_OFFLINE", "true")
    import ultralytics

    model = (ultralytics.RTDETR if "rtdetr" in name else ultralytics.YOLO)(f"{name}.yaml").model
    for part in model.modules():
        if hasattr(part, "export"):  # as the library's own exporter sets its heads
            part.export, part.format, part.dynamic = True, "onnx", False
    return model, None


def _transformers(
    name: str, options: Mapping[str, Any], argument: str = "pixel_values", shape: tuple[int, ...] = (1, 3, 64, 64)
) -> tuple[nn.Module, tuple[int, ...]]:
    import transformers

    kind = getattr(transformers, name)
    nested = {key: _nested(value) for key, value in options.items()}
    return Tensors(kind(kind.config_class(**nested)), argument), shape


def _nested(value: Any) -> Any:
    """A configuration inside another one: ("ResNetConfig", {...})."""
    import transformers

    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], dict):
        return getattr(transformers, value[0])(**value[1])
    return value


BACKBONE = {key: {"weights_backbone": None} for key in ("fcn", "deeplabv3", "lraspp")} | {
    key: {"init_weights": False} for key in ("googlenet", "inception")
}

TIMM = """
resnet18 resnet18d resnet26t resnetblur50 resnext50_32x4d wide_resnet50_2 seresnet50 legacy_seresnet18 skresnet18
ecaresnet26t gcresnext26ts seresnext26d_32x4d resnetrs50 resnetv2_18 resnetv2_50 botnet26t_256 halonet26t
lambda_resnet26t eca_botnext26ts_256 eca_halonext26ts bat_resnext26ts regnetx_002 regnety_002 regnetz_005 regnetz_b16
regnetv_040 mobilenetv1_100 mobilenetv2_050 mobilenetv3_small_050 mobilenetv3_rw mobilenetv4_conv_small
mobilenetv4_hybrid_medium mobilenet_edgetpu_v2_xs tinynet_e mnasnet_small semnasnet_075 spnasnet_100 fbnetc_100
fbnetv3_b lcnet_035 lcnetv2_small ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_a efficientnet_b0
efficientnet_lite0 efficientnet_es efficientnetv2_rw_t tf_efficientnetv2_b0 tf_efficientnet_b0 mixnet_s cspresnet50
cspdarknet53 cs3darknet_focus_s darknet17 cspnext_tiny densenet121 densenetblur121d dla34 dla46x_c dla60_res2net
dpn48b dpn68 ese_vovnet19b_slim ese_vovnet19b_dw eca_vovnet39b hrnet_w18_small inception_v3 inception_v4
inception_next_atto levit_128s levit_conv_128s levit_256d mobileone_s0 mobilevit_xxs mobilevitv2_050 pnasnet5large
nf_resnet26 pit_ti_224 poolformer_s12 poolformerv2_s12 pvt_v2_b0 repghostnet_050 repvgg_a0 repvgg_a2 repvit_m0_9
repvit_m1 res2net50_14w_8s res2next50 resmlp_12_224 resnest14d resnest50d rexnet_100 rexnetr_100 selecsls42
sequencer2d_s shvit_s1 starnet_s1 starnet_s050 swiftformer_xs tiny_vit_5m_224 tresnet_m vgg11_bn visformer_tiny
vovnet39a xception41 xception41p legacy_xception xcit_nano_12_p16_224 xcit_tiny_12_p8_224 convnext_atto
convnextv2_atto convmixer_768_32 convit_tiny coat_lite_tiny coatnet_nano_rw_224 coatnet_bn_0_rw_224
maxvit_rmlp_pico_rw_256 cait_xxs24_224 crossvit_9_240 crossvit_9_dagger_240 edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientvit_b0 efficientvit_m0 efficientvim_m1 fasternet_t0 fastvit_t8 fastvit_sa12 fastvit_mci0
focalnet_tiny_srf gcvit_xxtiny gernet_s gmlp_ti16_224 hgnet_tiny hgnetv2_b0 iformer_t lowformer_b0 cpubone_b0_bfrobust
csatv2 mambaout_femto caformer_s18 convformer_s18 mvitv2_tiny nextvit_small rdnet_tiny volo_d1_224 twins_svt_small
twins_pcpvt_small swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 deit_tiny_patch16_224 vit_tiny_r_s16_p8_224
tnt_s_patch16_224 nest_tiny davit_tiny hiera_tiny_224 test_byobnet test_efficientnet test_resnet test_vit
test_mambaout
"""

TORCHVISION = """
alexnet vgg11_bn resnet18 resnet50 resnext50_32x4d densenet121 googlenet inception_v3 mnasnet0_5 mobilenet_v2
mobilenet_v3_small mobilenet_v3_large regnet_x_400mf regnet_y_400mf shufflenet_v2_x0_5 shufflenet_v2_x1_5
squeezenet1_1 efficientnet_b0 efficientnet_v2_s maxvit_t convnext_tiny swin_t vit_b_32 fcn_resnet50
deeplabv3_mobilenet_v3_large lraspp_mobilenet_v3_large
"""
VIDEOS = """
r3d_18 mc3_18 r2plus1d_18
"""

SEGMENTATION = (
    "Unet resnet18",
    "Unet mobilenet_v2",
    "Unet vgg11_bn",
    "Unet densenet121",
    "Unet efficientnet-b0",
    "Unet dpn68",
    "Unet timm-skresnet18",
    "Unet mobileone_s0",
    "UnetPlusPlus resnet18",
    "MAnet resnet18",
    "MAnet mobilenet_v2",
    "Linknet resnet18",
    "Linknet se_resnet50",
    "FPN resnet18",
    "FPN timm-efficientnet-b0",
    "PSPNet resnet18",
    "PAN resnet18",
    "DeepLabV3 resnet18",
    "DeepLabV3Plus resnet18",
    "DeepLabV3Plus mobilenet_v2",
    "UPerNet resnet18",
    "UPerNet mit_b0",
    "Segformer mit_b0",
    "Segformer resnet18",
)

ULTRALYTICS = """
yolov3-tiny yolov5n yolov6n yolov8n yolov8n-cls yolov8n-seg yolov8n-pose yolov8n-obb yolov8n-p2 yolov8n-ghost yolov9t
yolov10n yolo11n yolo11n-cls yolo11n-seg yolo11n-obb yolo12n yolo12n-cls yolo26n yolo26n-cls
yolov8n-rtdetr rtdetr-resnet50
"""


def _named(library: str, builders: Mapping[str, Builder]) -> dict[str, Builder]:
    return {f"{library}: {name}": builder for name, builder in builders.items()}


def _each(build: Any, names: Iterable[str], *more: Any) -> dict[str, Builder]:
    return {name: partial(build, name, *more) for name in names}


# LIBRARY: NAME -> how it is built.
ARCHITECTURES: dict[str, Builder] = {
    **_named("transformers", {name: partial(_transformers, *row) for name, row in TRANSFORMERS.items()}),
    **_named("segmentation-models-pytorch", _each(_segmentation, SEGMENTATION)),
    **_named("ultralytics", _each(_ultralytics, ULTRALYTICS.split())),
    **_named("torchvision", _each(_torchvision, TORCHVISION.split())),
    **_named("torchvision", _each(_torchvision, VIDEOS.split(), (1, 3, VIDEO, 64, 64))),
    **_named("timm", _each(_timm, TIMM.split())),
}
