"""DeepNorm: norm(alpha * x + f(x)) loses its multiplication, and no other scalar is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from normfold import save_checkpoint
from normfold.analysis.plan import Site
from normfold.checkpoint.load import load_checkpoint
from normfold.cli.app import app
from normfold.errors import NotExpressibleError
from normfold.export.to_onnx import export
from normfold.graph.evaluator.evaluator import Evaluator
from normfold.models import create
from normfold.pipeline import look
from normfold.pipeline import run as pipeline
from tests.support.graphs import EXACT, Outcome, build, draw, fold, kept, op_types, same_function
from tests.support.widened import widened

VOCAB = 40
SMALL = {"vocab": VOCAB, "dim": 16, "heads": 2, "hidden": 24, "positions": 20}
ENCODER = ("deepnet_encoder_ln", {**SMALL, "depth": 12}, [f"src:int64[B,S<=20]<{VOCAB}"])
TRANSLATOR = (
    "deepnet_nmt_ln",
    {**SMALL, "encoder_depth": 4, "decoder_depth": 3},
    [f"src:int64[B,S<=20]<{VOCAB}", f"ids:int64[B,L<=20]<{VOCAB}"],
)
UNIFIED = ("deepnet_encoder_un", {**SMALL, "depth": 3}, [f"src:int64[B,S<=20]<{VOCAB}"])
# How many residual streams are scaled: two in an encoder's layer, three in a decoder's.
SCALES = {"deepnet_encoder_ln": 24, "deepnet_nmt_ln": 4 * 2 + 3 * 3, "deepnet_encoder_un": 6}

Case = tuple[str, dict[str, Any], list[str]]


def saved(case: Case, folder: Path) -> Path:
    """A checkpoint whose norms and biases are drawn: fresh ones would make a wrong fold look right."""
    name, config, specs = case
    torch.manual_seed(0)
    model = create(name, **config).eval()
    for key, value in model.state_dict().items():
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "running_var":
            value.uniform_(0.5, 2.0)
        elif leaf == "bias":
            value.normal_(0.0, 0.3)
        elif leaf == "weight" and value.ndim == 1:
            value.uniform_(0.5, 1.5)
    example = {spec.split(":")[0]: torch.randint(4, VOCAB, (2, 7 - k)) for k, spec in enumerate(specs)}
    path = folder / "model.pt"
    save_checkpoint(path, model, arch=name, arch_args=config, example_input=example, inputs=specs)
    return path


def exact(model: onnx.ModelProto, feeds: dict[str, NDArray[np.int64]]) -> NDArray[np.float64]:
    return np.asarray(Evaluator(ir.from_proto(model)).run(feeds)[0])


@pytest.mark.parametrize(
    "case",
    [ENCODER, pytest.param(TRANSLATOR, marks=pytest.mark.slow), pytest.param(UNIFIED, marks=pytest.mark.slow)],
    ids=lambda case: str(case[0]),
)
def test_deepnet_loses_its_alphas_exactly(case: Case, tmp_path: Path) -> None:
    source = load_checkpoint(saved(case, tmp_path))
    model = widened(ir.to_proto(export(source)))
    after, plan = fold(model, norms=source.norms)
    scales = [site for site in plan.sites if site.kind == "DeepNorm"]
    assert len(scales) == SCALES[case[0]] and {site.status for site in scales} == {"folded"}
    before = op_types(model)
    # What is left multiplies positions, which are integers.
    floating = {"deepnet_encoder_ln": 24, "deepnet_nmt_ln": 17, "deepnet_encoder_un": 12}[case[0]]
    assert op_types(after).count("Mul") == before.count("Mul") - floating
    assert op_types(after).count("Add") <= before.count("Add")
    for batch, length in ((2, 5), (1, 9)):
        rng = np.random.default_rng(length)
        feeds = {value.name: rng.integers(4, VOCAB, (batch, length - k)) for k, value in enumerate(model.graph.input)}
        truth, found = exact(model, feeds), exact(after, feeds)
        assert np.abs(found - truth).max() <= EXACT * max(1.0, np.abs(truth).max())


@pytest.mark.parametrize("case", [ENCODER, pytest.param(TRANSLATOR, marks=pytest.mark.slow)])
def test_deepnet_folds_from_its_checkpoint_within_the_contract(case: Case, tmp_path: Path) -> None:
    """float32, verified against the module in float64, by the command that users type."""
    path, target, place = saved(case, tmp_path), tmp_path / "out.onnx", tmp_path / "report.json"
    result = CliRunner().invoke(app, ["fold", str(path), "-o", str(target), "--report", str(place)])
    assert result.exit_code == 0, result.output
    report = json.loads(place.read_text())
    sites = [site for site in report["sites"] if site["kind"] == "DeepNorm"]
    assert len(sites) == SCALES[case[0]] and all(site["status"] == "folded" and site["into"] for site in sites)
    assert len({site["name"] for site in sites}) == len(sites) and all(s["name"].endswith(".alpha") for s in sites)
    assert "Mul" not in [node.op_type for node in onnx.load(target).graph.node if "layers" in str(node.metadata_props)]


def test_only_the_alphas_that_were_asked_for(tmp_path: Path) -> None:
    source = load_checkpoint(saved(("deepnet_encoder_ln", {**SMALL, "depth": 2}, ENCODER[2]), tmp_path))
    _, plan = fold(ir.to_proto(export(source)), norms=source.norms, only=["layers.1.final_layer_norm.alpha"])
    found = {site.name: (site.status, site.code) for site in plan.sites if site.kind == "DeepNorm"}
    assert found.pop("layers.1.final_layer_norm.alpha") == ("folded", None)
    assert set(found.values()) == {kept("not-asked")} and len(found) == 3


def test_a_module_cannot_lose_an_alpha_of_its_code(tmp_path: Path) -> None:
    path, module = saved(UNIFIED, tmp_path), tmp_path / "folded.pt"
    with pytest.raises(NotExpressibleError, match="a number of the module's code"):
        pipeline.fold(path, tmp_path / "out.onnx", emit_torch=module)
    assert [left.name for left in tmp_path.iterdir()] == [path.name]


# Small graphs.

BLOCK = """<ir_version: 11, opset_import: ["" : 23]>
g (double[B,3,4] x) => (double y) {{
    h = Tanh(x)
    k = MatMul(h, w)
    f0 = {act}(k)
    f1 = MatMul(f0, v)
    f = Add(f1, c)
    {block}
    p = {norm}
    y = MatMul(p, u)
}}"""
LAYER = "LayerNormalization<epsilon = 0.0078125>(z, g, b)"
NORMS = {
    "LayerNorm": LAYER,
    "RMSNorm": "RMSNormalization<epsilon = 0.0078125>(z, g)",
    "InstanceNorm": "InstanceNormalization<epsilon = 0.0078125>(z, g3, b3)",
    "batch norm": "BatchNormalization(z, g3, b3, m3, v3)",
}
CONSTANTS: dict[str, Any] = dict.fromkeys(("w", "v", "u"), (4, 4)) | dict.fromkeys(("c", "g", "b"), (4,))
CONSTANTS |= {"g3": (3,), "b3": (3,), "m3": (3,), "v3": draw("v3", 3, positive=True)}
CONSTANTS |= {"alpha": np.array(4.0), "minus": np.array(-2.0), "scale": np.array([0.5]), "none": np.array(0.0)}
PLAIN = "r = Mul(h, alpha)\nz = Add(r, f)"


def deep_norms(block: str, norm: str = LAYER, act: str = "Relu") -> tuple[list[Site], onnx.ModelProto]:
    model = build(BLOCK.format(block=block, norm=norm, act=act), **CONSTANTS)
    after, plan = fold(model)
    same_function(model, after)
    return [site for site in plan.sites if site.kind == "DeepNorm"], after


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "block",
    [
        PLAIN,
        "r = Mul(alpha, h)\nz = Add(f, r)",
        "r = Div(h, scale)\nz = Add(r, f)",
        "r0 = Mul(h, alpha)\nr = Mul(r0, scale)\nz = Add(r, f)",
        "r = Mul(h, alpha)\nz = Sub(r, f)",
        "r = Mul(h, alpha)\nz = Sum(r, f)",
        "r = Mul(h, alpha)\ns = Add(r, f)\nz = Identity(s)",
        "r = Mul(h, alpha)\nq = MatMul(h, w)\ns = Add(r, f)\nz = Add(s, q)",
    ],
)
def test_alpha_vanishes_whatever_the_spelling(norm: str, block: str) -> None:
    sites, after = deep_norms(block, NORMS[norm])
    assert [(site.status, site.code) for site in sites] == [("folded", None)]
    assert "Mul" not in op_types(after) and "Div" not in op_types(after)


@pytest.mark.parametrize(
    ("block", "act", "outcome"),
    [
        ("r = Mul(h, minus)\nz = Add(r, f)", "Relu", kept("negative-scale")),
        ("r = Mul(h, none)\nz = Add(r, f)", "Relu", kept("zero-scale")),
        ("r = Mul(h, alpha)\ne = Gelu(f)\nz = Add(r, e)", "Relu", kept("wall")),
        ("r = Mul(h, alpha)\ne = Relu(f)\nz = Add(r, e)", "Gelu", ("folded", None)),
    ],
)
def test_an_alpha_that_stays_says_why(block: str, act: str, outcome: Outcome) -> None:
    sites, _ = deep_norms(block, act=act)
    assert [(site.status, site.code) for site in sites] == [outcome]


@pytest.mark.parametrize(
    "block",
    [
        "z0 = Mul(f, alpha)\nz = Add(z0, h)",  # the branch is scaled, not the stream
        "r = Mul(h, alpha)\nq = Sigmoid(x)\nz = Add(r, q)",  # two tensors that do not depend on each other
        "z = Mul(h, alpha)",  # no sum
        "r = Mul(h, alpha)\ns = Add(r, f)\nz = Tanh(s)",  # the sum is not normed
        "r = Mul(h, alpha)\ns = Add(r, f)\nt = Relu(s)\nz = Add(s, t)",  # a stream that goes on beside the norm
        "z0 = Mul(f, alpha)\nz1 = Softmax(z0)\nz = Add(z1, h)",  # attention's
        "z0 = Mul(h, alpha)\nz1 = Add(z0, c)\nz = Add(z1, f)",  # with a bias it is a map of its own
    ],
)
def test_other_scalars_are_no_deep_norms(block: str) -> None:
    """They stay where they are: a report would be full of attention's 1 / sqrt(d)."""
    sites, after = deep_norms(block)
    assert not sites and "Mul" in op_types(after)


def test_half_precision_holds_a_large_alpha_back() -> None:
    text = BLOCK.format(block=PLAIN, norm=LAYER, act="Relu").replace("double", "float16")
    for alpha, outcome in ((81.0, kept("scale-range")), (5.0, ("folded", None))):
        drawn = {name: draw(name, *given) if isinstance(given, tuple) else given for name, given in CONSTANTS.items()}
        half = {name: array.astype(np.float16) for name, array in {**drawn, "alpha": np.array(alpha)}.items()}
        _, plan = fold(build(text, **half))
        assert [(site.status, site.code) for site in plan.sites if site.kind == "DeepNorm"] == [outcome]


def test_the_pipeline_counts_them_apart(tmp_path: Path) -> None:
    report = look.inspect(saved(("deepnet_encoder_ln", {**SMALL, "depth": 2}, ENCODER[2]), tmp_path))
    kinds = [site.kind for site in report.sites]
    assert kinds.count("DeepNorm") == kinds.count("LayerNorm") == 4
