"""The shipped checkpoints, folded: the same answers, no norm left, and not one operator more than without norms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest
import torch

from normfold.analysis.analyse import analyse
from normfold.analysis.plan import Plan
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.source import Source
from normfold.export.to_onnx import export
from normfold.graph.operators import op_counts
from normfold.graph.prepare import prepare
from normfold.graph.types import Model
from normfold.models import create
from normfold.rewrite.graph import rewrite
from tests.paths import FIXTURES
from tests.support.graphs import run_float32

HELD_OUT = {"vit": "digits", "postnorm": "mnist", "convnet": "mnist", "char_lm": "topics"}
STORED = ["vit_un", "vit_prepbn", "vit_bn", "postnorm_un", "postnorm_bn", "convnet_bn", "char_lm_prepbn"]
PER_TOKEN = {"vit_ln": "LayerNormalization", "char_lm_rms": "RMSNormalization"}


@dataclass(frozen=True)
class Folded:
    source: Source
    before: Model
    after: Model
    plan: Plan


@cache
def exported(name: str) -> tuple[Source, Model]:
    source = load_checkpoint(FIXTURES / f"{name}.pt")
    return source, prepare(export(source))


@cache
def folded(name: str, norm_affine: bool = False) -> Folded:
    source, before = exported(name)
    plan = analyse(before, norms=source.norms, norm_affine=norm_affine)
    return Folded(source, before, rewrite(before, plan), plan)


@cache
def without_norms(name: str) -> Counter[str]:
    """The operators of the same architecture with nn.Identity for its norms."""
    source = load_checkpoint(FIXTURES / f"{name}.pt")
    assert source.arch is not None
    torch.manual_seed(0)
    module = create(source.arch, **{**source.arch_args, "norm": "identity"}).eval()
    return Counter(op_counts(prepare(export(replace(source, module=module)))))


def held_out(name: str) -> tuple[np.ndarray, np.ndarray]:
    stem = next(data for prefix, data in HELD_OUT.items() if name.startswith(prefix))
    with np.load(FIXTURES / f"{stem}_heldout.npz") as arrays:
        return arrays["x"], arrays["y"]


def right(logits: np.ndarray, labels: np.ndarray) -> int:
    return int((logits.argmax(-1) == labels).sum())


@pytest.mark.parametrize("name", STORED)
def test_every_norm_folds(name: str) -> None:
    result = folded(name)
    assert [site.name for site in result.plan.sites] == [norm.name for norm in result.source.norms]
    assert [site.kind for site in result.plan.sites] == [norm.kind for norm in result.source.norms]
    for site, norm in zip(result.plan.sites, result.source.norms, strict=True):
        assert (site.status, site.channels) == ("folded", norm.channels)
        # Between a ReLU and zero padding a shift can go nowhere but behind the convolution, position by position.
        assert (site.shift == "map") == ((name, site.name) == ("convnet_bn", "padded_norm"))
        assert site.into


@pytest.mark.parametrize("name", STORED)
def test_no_operator_more_than_without_norms(name: str) -> None:
    counts, bare = Counter(op_counts(folded(name).after)), without_norms(name)
    extra = counts - bare
    # The biases that shifts need where the architecture has none: the convolution that pads behind a ReLU, the
    # bias-less decoder.
    allowed = {"convnet_bn": 1, "char_lm_prepbn": 6}.get(name, 0)
    assert set(extra) <= {"Add"} and extra["Add"] <= allowed


def test_the_biasless_decoder_has_no_more_nodes_than_its_rmsnorm_twin() -> None:
    twin = op_counts(exported("char_lm_rms")[1])
    assert twin["RMSNormalization"] == 7
    assert sum(op_counts(folded("char_lm_prepbn").after).values()) <= sum(twin.values())


@pytest.mark.parametrize("name", [*STORED, *PER_TOKEN])
def test_the_folded_graph_gets_the_same_answers_right(name: str) -> None:
    x, y = held_out(name)
    result = folded(name)
    assert result.source.module is not None
    with torch.no_grad():
        expected = right(result.source.module(torch.from_numpy(x)).numpy(), y)
    feeds = {result.source.inputs[0].name: x}
    assert right(run_float32(ir.to_proto(result.after), feeds)[0], y) == expected > y.size / 2


@pytest.mark.parametrize(("name", "operator"), PER_TOKEN.items())
def test_the_per_token_twin_is_left_as_it_is(name: str, operator: str) -> None:
    result = folded(name)
    assert result.plan.is_empty
    assert {(site.status, site.code) for site in result.plan.sites} == {("kept", "statistic")}
    assert ir.to_proto(result.after).SerializeToString() == ir.to_proto(result.before).SerializeToString()
    assert op_counts(result.after)[operator] == 7


@pytest.mark.parametrize(("name", "operator"), PER_TOKEN.items())
def test_norm_affine_moves_weight_and_bias_exactly(name: str, operator: str) -> None:
    result = folded(name, norm_affine=True)
    assert {(site.status, site.code) for site in result.plan.sites} == {("partial", "statistic")}
    nodes = [node for node in result.after.graph if node.op_type == operator]
    assert len(nodes) == 7
    for node in nodes:
        weight, *bias = node.inputs[1:]
        assert weight is not None and weight.const_value is not None and np.all(weight.const_value.numpy() == 1.0)
        assert all(b is None or (b.const_value is not None and not b.const_value.numpy().any()) for b in bias)
    x, _ = held_out(name)
    feeds = {result.source.inputs[0].name: x[:32]}
    before, after = (run_float32(ir.to_proto(model), feeds)[0] for model in (result.before, result.after))
    # float32 rounding of a three-block network, relative to its largest logit.
    assert np.abs(after - before).max() <= 2e-5 * np.abs(before).max()


def test_folding_twice_changes_nothing() -> None:
    once = folded("vit_un").after
    again = prepare(once)
    plan = analyse(again)
    assert plan.is_empty and not plan.sites
    assert op_counts(rewrite(again, plan)) == op_counts(once)
