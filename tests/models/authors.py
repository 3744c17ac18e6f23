"""Files as the papers' authors save them, made from the references: names, shapes, drawn values, and the container.

`python -m tests.models.authors [PATTERN]` loads each and prints what it is taken for and how far its output is from the
stored one.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.models.reference import fill

FOLDER = Path(__file__).resolve().parent / "reference"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
State = dict[str, torch.Tensor]

# SLAB's MODEL.TYPE, and MODEL.NAME where it says something.
_SLAB_TYPES = {
    "deit_base_prepbn": ("deits", "deit_base_patch16_224_repbn"),
    "deit_small_prepbn": ("deits", "deit_small_patch16_224_repbn"),
    "deit_tiny_prepbn": ("deits", "deit_tiny_patch16_224_repbn"),
    "deit_tiny_prepbn_distilled": ("deits", "deit_tiny_patch16_224_repbn"),
    "pvt_tiny_prepbn": ("slab_pvt_tiny", "pvt_tiny_prepbn"),
    "pvt_v2_b0_prepbn": ("slab_pvt_v2_b0", "run"),
    "slab_cswin_tiny": ("SLAB_CSWin_64_24181_tiny_224", "SLAB_CSWin_tiny"),
    "slab_deit_tiny": ("deits", "deit_tiny_patch16_224_linear_repbn"),
    "slab_pvt_tiny": ("slab_pvt_tiny", "slab_pvt_tiny"),
    "slab_pvt_v2_b0": ("slab_pvt_v2_b0", "run"),
    "slab_swin_tiny": ("SlabSwinTransformer", "slab_swin_tiny_patch4_224"),
    "swin_tiny_linearnorm": ("SwinTransformer", "swin_tiny_linearnorm"),
    "swin_tiny_prepbn": ("SwinTransformer", "swin_tiny_repbn"),
}
_DETECTION = """\
model = dict(
    type='MaskRCNN',
    pretrained=None,
    backbone=dict(
        type={kind!r},
        embed_dim=96,
        depths=[2, 2, 6, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        mlp_ratio=4.0,
        qkv_bias=True,
        qk_scale=None,
        drop_rate=0.0,
        attn_drop_rate=0.0,
        drop_path_rate=0.2,
        ape=False,
        patch_norm=True,
        out_indices=(0, 1, 2, 3),
        use_checkpoint=False),
    neck=dict(
        type='FPN', in_channels=[96, 192, 384, 768], out_channels=256, num_outs=5))
optimizer = dict(type='AdamW', lr=0.0001, betas=(0.9, 0.999), weight_decay=0.05)
total_epochs = 12
"""


def record(name: str) -> dict[str, Any]:
    """What reference/NAME.json holds."""
    read: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return read


def state_dict(reference: dict[str, Any], *, seed: int = 0) -> State:
    """The weights of a trained file: parameters and statistics as drawn, in float32; schedules at their end."""
    drawn = fill.state_dict(reference, seed)
    tied = [("encoder.embed_tokens.weight", *_TIED)] if reference["name"] == "nmt_un" else reference.get("tied", [])
    for first, *others in tied:
        drawn |= dict.fromkeys(others, drawn[first])
    state = {}
    for entry in reference["entries"]:
        name, shape = entry["name"], tuple(entry["shape"])
        state[name] = torch.from_numpy(drawn[name]).float() if name in drawn else _computed(name, shape)
    return state


_TIED = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")


def _computed(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Counters, and what the authors' code computes when it is built."""
    leaf = name.rpartition(".")[2]
    if leaf == "relative_position_index":
        side = int(shape[0] ** 0.5)
        at = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij")).reshape(2, -1)
        offset = at[:, :, None] - at[:, None] + side - 1
        return torch.from_numpy(offset[0] * (2 * side - 1) + offset[1])
    if leaf == "attn_mask":
        return torch.from_numpy(_mask(int(shape[0] ** 0.5), int(shape[1] ** 0.5)))
    return torch.full(shape, 300000 if leaf == "total_step" else 0)


def _mask(count: int, window: int) -> np.ndarray:
    """Swin's: -100 between tokens of a window that a shift by half of it brought together."""
    side, cut = count * window, window // 2
    number = np.zeros((side, side))
    parts = (slice(0, -window), slice(-window, -cut), slice(-cut, None))
    for i, rows in enumerate(parts):
        for j, columns in enumerate(parts):
            number[rows, columns] = 3 * i + j
    windows = number.reshape(count, window, count, window).swapaxes(1, 2).reshape(count**2, window**2)
    return np.where(windows[:, :, None] == windows[:, None], 0.0, -100.0).astype(np.float32)


class CfgNode(dict[str, Any]):
    """yacs', which is not installed: a dict with flags among its attributes."""

    __module__ = "yacs.config"

    def __init__(self, items: dict[str, Any]) -> None:
        super().__init__({key: CfgNode(value) if isinstance(value, dict) else value for key, value in items.items()})
        self.__dict__.update(__immutable__=True, __deprecated_keys__=set(), __renamed_keys__={}, __new_allowed__=False)


def slab_config(reference: dict[str, Any]) -> dict[str, Any]:
    """SLAB's config.py with what differs in this configuration. Its parts SWIN and LA are in every file."""
    build = reference["build"]
    stem = next(stem for stem in sorted(_SLAB_TYPES, key=len, reverse=True) if reference["name"].startswith(stem))
    kind, run = _SLAB_TYPES[stem]
    attention = re.search(r"attn_type='(\w+)'", build)
    window, kernel = re.search(r"window_size=(\d+)", build), re.search(r"kernel_size=(\d+)", build)
    reductions = re.search(r"la_sr_ratios='(\d+)'", build)
    swin = {"PATCH_SIZE": 4, "IN_CHANS": 3, "EMBED_DIM": 96, "DEPTHS": [2, 2, 6, 2], "NUM_HEADS": [3, 6, 12, 24]}
    swin |= {"WINDOW_SIZE": int(window[1]) if window else 7, "MLP_RATIO": 4.0, "QKV_BIAS": True, "QK_SCALE": None}
    swin |= {"KA": [7, 7, 7, 7], "RPB": True, "APE": False, "PATCH_NORM": True, "STAGE_CFG": None}
    linear = {"FOCUSING_FACTOR": 3, "KERNEL_SIZE": int(kernel[1]) if kernel else 5}
    linear |= {"ATTN_TYPE": attention[1] if attention else "LLLL", "CSWIN_LA_SPLIT_SIZE": "56-28-14-7"}
    linear |= {"PVT_LA_SR_RATIOS": int(reductions[1]) if reductions else 1111}
    model = {"TYPE": kind, "NAME": run, "RESUME": "", "NUM_CLASSES": 1000, "DROP_RATE": 0.0, "DROP_PATH_RATE": 0.1}
    model |= {"SWIN": swin, "SWIN_HR": {}, "SWIN_LRVIT": {}, "PVD": {}, "LA": linear}
    return {"BASE": [""], "DATA": {"BATCH_SIZE": 128, "IMG_SIZE": 224}, "MODEL": model, "TRAIN": {"EPOCHS": 300}}


def _slab(reference: dict[str, Any], state: State) -> dict[str, Any]:
    rest = {"optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}, "lr_scheduler": {}, "max_accuracy": 73.6}
    return {"model": state, **rest, "epoch": 299, "config": CfgNode(slab_config(reference))}


def _timm(reference: dict[str, Any], state: State) -> dict[str, Any]:
    arch = reference["build"].split("(")[0]
    args = argparse.Namespace(model=arch, img_size=224, num_classes=1000, drop=0.0, bn_eps=None, opt="adamw")
    return {
        "epoch": 309,
        "arch": arch,
        "state_dict": state,
        "optimizer": {},
        "version": 2,
        "args": args,
        "metric": 80.9,
    }


def _fairseq(reference: dict[str, Any], state: State) -> dict[str, Any]:
    args = reference.get("args") or {
        "arch": "transformer_iwslt_de_en", "norm_type": "UN1d", "un_win": 4, "un_warmup": 4000,
        "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_layers": 6, "decoder_layers": 6,
        "encoder_embed_dim": 512, "decoder_embed_dim": 512, "encoder_ffn_embed_dim": 1024,
        "decoder_ffn_embed_dim": 1024, "encoder_normalize_before": True, "decoder_normalize_before": True,
        "share_all_embeddings": True, "max_source_positions": 1024, "max_target_positions": 1024,
    }  # fmt: skip
    cfg = {"model": argparse.Namespace(_name=args["arch"], **args), "task": {"_name": "translation"}}
    rest = {"criterion": None, "optimizer_history": [{"num_updates": 4000}], "task_state": {}, "extra_state": {}}
    return {"args": None, "cfg": cfg, "model": state, **rest}


def _mmdet(reference: dict[str, Any], state: State) -> dict[str, Any]:
    text = _DETECTION.format(kind=reference["build"].split("(")[0])
    detector = {f"backbone.{name}": value for name, value in state.items()}
    detector["neck.lateral_convs.0.conv.weight"] = torch.zeros(256, 96, 1, 1)
    detector["rpn_head.rpn_cls.bias"] = torch.zeros(3)
    detector["roi_head.bbox_head.fc_cls.bias"] = torch.zeros(81)
    meta = {"env_info": "", "config": text, "seed": 0, "exp_name": "x.py", "mmdet_version": "2.11.0", "epoch": 12}
    return {"meta": meta, "state_dict": detector, "optimizer": {}}


def content(name: str, state: State) -> dict[str, Any]:
    """What the authors' code saves: the weights and what stands beside them. For transformers', config.json alone."""
    reference = record(name)
    source = reference["source"]
    if "llama" in source:
        return _config(reference)
    save = _timm if "t2t" in source else _fairseq if "fairseq" in source else _mmdet if "detection" in source else _slab
    return save(reference, state)


def write(name: str, folder: Path, *, seed: int = 0) -> Path:
    """The file of a reference, or for transformers' the folder, in `folder`."""
    state = state_dict(record(name), seed=seed)
    saved = content(name, state)
    if "architectures" in saved:
        (folder / "config.json").write_text(json.dumps(saved))
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    path = folder / ("checkpoint.pth.tar" if "version" in saved else "checkpoint.pth")
    with yacs():
        torch.save(saved, path)
    return path


@contextmanager
def yacs() -> Iterator[None]:
    """The package is there while a file is written, and not while it is read."""
    modules = {name: types.ModuleType(name) for name in ("yacs", "yacs.config")}
    modules["yacs.config"].CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def _config(reference: dict[str, Any]) -> dict[str, Any]:
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu"}
    config |= {key: json.loads(value) for key, value in re.findall(r"(\w+)=([\d.e-]+)", reference["build"])}
    return config | {
        "tie_word_embeddings": False,
        "auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
    }


def outputs(module: torch.nn.Module, reference: dict[str, Any], *, seed: int = 0) -> np.ndarray:
    """What a module computes of the reference's input in float64, cut as the stored answer is."""
    module = module.double().eval()
    note, source = reference["note"], reference["source"]
    with torch.no_grad():
        if "llama" in source:
            logits = module(torch.from_numpy(fill.tokens((2, 20), 160, seed))).numpy()
            return _cut(reference, [logits])
        if "fairseq" in source:
            found = [tuple(map(int, size.split(","))) for size in re.findall(r"tokens\(\((\d+, \d+)\)", note)]
            vocab = next(e["shape"][0] for e in reference["entries"] if e["name"] == "encoder.embed_tokens.weight")
            src, ids = fill.tokens(found[0], vocab, seed), fill.tokens(found[1], vocab, seed + 100)
            padded = src.copy()
            padded[1, -5:] = 1
            cases = [module(torch.from_numpy(case), torch.from_numpy(ids)).numpy() for case in (src, padded)]
            return _cut(reference, [np.stack(cases)])
        shape = re.search(r"image\(\((\d+, \d+, \d+, \d+)\)", note)
        size = tuple(map(int, shape[1].split(","))) if shape else (2, 3, 224, 224)
        found = module(torch.from_numpy(fill.image(size, seed)))
    return _cut(reference, [part.numpy() for part in (found if isinstance(found, tuple) else (found,))])


def _cut(reference: dict[str, Any], parts: list[np.ndarray]) -> np.ndarray:
    texts = reference["cases"][0].get("parts")
    if texts is None:
        return parts[0]
    cut = []
    for text, part in zip(texts, parts, strict=True):
        shape, index = re.findall(r"\[([^\]]*)\]", text)
        assert part.shape == tuple(map(int, shape.split(","))), (text, part.shape)
        steps = [axis.strip() for axis in index.split(",")]
        where = tuple(... if step == "..." else slice(None, None, int(step[2:] or 1)) for step in steps)
        cut.append(part[where])
    return cut[0] if len(cut) == 1 else np.concatenate([part.ravel() for part in cut])


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference over that of the answer."""
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def answer(name: str) -> np.ndarray | None:
    """The stored output; None for a reference of names alone."""
    path = FOLDER / f"{name}.npy"
    return np.load(path) if path.exists() else None


def _line(name: str) -> str:
    from normfold import load_checkpoint
    from normfold.errors import NormfoldError

    with tempfile.TemporaryDirectory() as folder:
        path = write(name, Path(folder))
        try:
            source = load_checkpoint(path)
        except NormfoldError as e:
            return f"REFUSED {str(e).replace(folder, '')[:1000]}"
    assert source.module is not None
    reference, expected = record(name), answer(name)
    own = {key: list(value.shape) for key, value in source.module.state_dict().items()}
    same = own == {entry["name"]: entry["shape"] for entry in reference["entries"]}
    far = "no answer" if expected is None else f"{distance(outputs(source.module, reference), expected):.1e}"
    return f"{source.arch} {source.arch_args} names {'same' if same else 'DIFFER'}, off by {far}\n    {source.warnings}"


if __name__ == "__main__":
    for name in NAMES:
        if any(fnmatch.fnmatch(name, pattern) for pattern in sys.argv[1:] or ["*"]):
            print(f"{name}: {_line(name)}", flush=True)
