"""Models of the `transformers` package, exported here: every norm folded or kept with its reason, all verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from normfold.analysis.analyse import analyse
from normfold.checkpoint.load import load_checkpoint
from normfold.export.to_onnx import export
from normfold.graph.prepare import prepare
from normfold.pipeline import run as pipeline
from normfold.report.report import Report
from normfold.verify.judge import EXPORT_EDGE, FOLD_EDGE, RUNTIME_EDGE
from tests.external.transformers_models import INPUTS, checkpoint

MODULE = "tests.external.transformers_models"
BATCH, LAYER, RMS = ("BatchNorm", "folded", None), ("LayerNorm", "kept", "statistic"), ("RMSNorm", "kept", "statistic")
# PatchTSMixer mixes patches between the norm and its GELU: a scale passes the patches, and no GELU; in front stands the
# stream.
ACROSS = ("BatchNorm", "kept", "wall")

Expected = Mapping[tuple[str, str, str | None], int]


def fold(name: str, folder: Path, *, norm_affine: bool = False) -> Report:
    return pipeline.fold(
        checkpoint(name, folder),
        folder / "out.onnx",
        model=f"{MODULE}:{name}",
        inputs=[INPUTS[name]],
        norm_affine=norm_affine,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("patchtst", {BATCH: 4}),
        ("patchtst_pre_norm", {BATCH: 4}),
        ("levit", {BATCH: 27}),
        ("patchtsmixer", {BATCH: 2, ACROSS: 2}),
        pytest.param("mobilevit", {BATCH: 32, LAYER: 21}, marks=pytest.mark.slow),
        pytest.param("segformer", {BATCH: 1, LAYER: 19}, marks=pytest.mark.slow),
        pytest.param("wav2vec2_conformer", {BATCH: 2, LAYER: 12}, marks=pytest.mark.slow),
    ],
)
def test_every_norm_is_folded_or_kept_with_its_reason(name: str, expected: Expected, tmp_path: Path) -> None:
    report = fold(name, tmp_path)
    assert Counter((site.kind, site.status, site.code) for site in report.sites) == expected
    assert report.nodes_after.get("BatchNormalization", 0) == expected.get(ACROSS, 0)
    assert [edge.name for edge in report.edges] == [EXPORT_EDGE, FOLD_EDGE, RUNTIME_EDGE]
    assert all(edge.passed for edge in report.edges)


@pytest.mark.parametrize(("name", "expected"), [("bert", {LAYER: 5}), ("llama", {RMS: 5})])
def test_a_statistic_per_token_is_left_as_it_is(name: str, expected: Expected, tmp_path: Path) -> None:
    source = load_checkpoint(checkpoint(name, tmp_path), model=f"{MODULE}:{name}", inputs=[INPUTS[name]])
    plan = analyse(prepare(export(source)), norms=source.norms)
    assert plan.is_empty
    assert Counter((site.kind, site.status, site.code) for site in plan.sites) == expected


@pytest.mark.parametrize(
    ("name", "partial", "kept", "removed"),
    [
        # RMSNorm is written out: its weight is a Mul, which goes.
        ("llama", 5, 0, 5),
        # Post-norm: the weight of a LayerNorm would meet the statistic of the next one, but for the last.
        ("bert", 1, 4, 0),
    ],
)
def test_weight_and_bias_fold_on_request(name: str, partial: int, kept: int, removed: int, tmp_path: Path) -> None:
    report = fold(name, tmp_path, norm_affine=True)
    assert Counter(site.status for site in report.sites) == Counter({"partial": partial, "kept": kept})
    assert {site.code for site in report.sites} == {"statistic"}
    assert all(site.into for site in report.sites if site.status == "partial")
    assert report.nodes_before["Mul"] - report.nodes_after["Mul"] == removed
    assert [edge.name for edge in report.edges if edge.passed] == [EXPORT_EDGE, FOLD_EDGE, RUNTIME_EDGE]
