"""Every reason not to fold: a graph that has it, and a twin that differs in that alone and folds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
from mypy import api as mypy_api

from normfold.analysis.refusal import Code
from tests.paths import DOCS, PACKAGE
from tests.support.graphs import FOLDED, as_float32, build, draw, fold, outcomes, same_function
from tests.support.refusals import CASES, graph

PAGE = DOCS / "refusals.md"


def site_of(model: onnx.ModelProto) -> tuple[str, str | None]:
    _, plan = fold(model)
    return next(
        outcome
        for outcome, site in zip(outcomes(plan), plan.sites, strict=True)
        if site.kind not in ("LayerNorm", "RMSNorm")
    )


@pytest.mark.parametrize("code", CASES)
def test_refused_and_its_twin_folded(code: str) -> None:
    case = CASES[code]
    refused, twin = case.refused(), case.folding()
    assert site_of(refused) == (case.status, code)
    assert site_of(twin) == FOLDED
    for model in (refused, twin) if case.run else ():
        same_function(model, fold(model)[0])


# Norm modules of the checkpoint for which the graph holds no fixed map: tests/analysis/recognition/test_naming.py.
OF_MODULES = {"not-affine", "not-in-graph"}
# What was asked for: tests/pipeline/test_run.py, tests/rewrite/test_centre.py.
OF_OPTIONS = {"not-asked", "not-centred"}


def test_every_refusal_has_a_code_a_test_and_a_line_in_the_documentation() -> None:
    codes = list(get_args(Code))
    assert len(codes) > 20 and all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)
    assert set(codes) == set(CASES) | OF_MODULES | OF_OPTIONS
    documented = re.findall(r"^\| `([a-z-]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert codes == documented == sorted(codes)


def test_a_typo_in_a_code_does_not_pass_mypy(tmp_path: Path) -> None:
    module = (PACKAGE / "analysis" / "refusal.py").read_text()
    for code, right in (("wall", True), ("wal", False)):
        file = tmp_path / "refusal.py"
        file.write_text(f'{module}\n\nRefuse("{code}", "here")\n')
        found, errors, status = mypy_api.run([str(file), f"--cache-dir={tmp_path / 'cache'}", "--config-file="])
        assert (status == 0, errors) == (right, ""), found


def test_scales_are_bounded_by_the_type_that_holds_them() -> None:
    """2^6 in float16, 2^60 in float32: what bfloat16 and float32 do not feel, float16 does."""
    text = graph("h = Tanh(x)\nn = Mul(h, a)\ny = MatMul(n, w)", "float16[B,4] x", "float16[B,3] y")
    for size, outcome in (
        (32.0, FOLDED),
        (1 / 32, FOLDED),
        (200.0, ("kept", "scale-range")),
        (1 / 200, ("kept", "scale-range")),
    ):
        a = np.array([1.0, -1.0, 2.0, size])
        half = build(text, a=a.astype(np.float16), w=draw("w", 4, 3).astype(np.float16))
        assert site_of(half) == outcome
        single = as_float32(build(text.replace("float16", "double"), a=a, w=(4, 3)))
        assert site_of(single) == FOLDED
    for size, outcome in ((1e15, FOLDED), (1e20, ("kept", "scale-range")), (1e-20, ("kept", "scale-range"))):
        a = np.array([1.0, -1.0, 2.0, size])
        assert site_of(as_float32(build(text.replace("float16", "double"), a=a, w=(4, 3)))) == outcome
