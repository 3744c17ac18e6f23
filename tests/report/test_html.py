"""Pages to look at: well formed, self-contained, and safe whatever a file calls its parts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import asdict, fields, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from normfold.bench.harness import Recording
from normfold.bench.html import bench_html
from normfold.bench.job import Failure
from normfold.bench.result import Bench, Row
from normfold.graph.compare import Difference, Weight
from normfold.report.html import fold_html
from normfold.report.html_diff import diff_html
from normfold.report.html_verdict import verdict_html
from normfold.report.render_diff import diff_json
from normfold.verify.judge import Edge, Judged
from normfold.verify.metrics import FAILED, Figures
from normfold.verify.verdict import Fault, Verdict
from tests.report.test_report import FULL

VOID = {"meta", "br", "rect", "line", "circle", "path", "img", "link", "input"}
SAMPLES = (Figures(1e-7, 1e-8, 0.0), Figures(3e-6, 1e-7, 0.0))
JUDGED = Judged("logits", SAMPLES, 1.0, 1.2e-7, 2e-6)
VERDICT = Verdict(
    normfold="1",
    onnxruntime="2",
    model="models/a.onnx",
    sha256="ab" * 32,
    source="a.pt",
    method="torch in float64",
    cases=("B=1", "B=2"),
    edges=(Edge("original -> folded", 3e-6, 3e-6, 2e-6, False, "beyond", outputs=(JUDGED,)),),
    fault=Fault(1.0, "block.3", "block.2", 3e-6, 2e-6),
    unexercised=("the else branch of if_3",),
)
TIMED = Recording([[[0.01, 0.02]], [[0.01]]])
DIFFERENCE = Difference(
    opsets=(17, 18),
    values={"x": ("float[B,4]", None)},
    counts={"BatchNormalization": (2, 0)},
    removed=(("norm_1", "BatchNormalization"),),
    changed={"conv_1": "it has a bias"},
    weights=(Weight("w", 0.5, 0.25), Weight("v", why="float16 and float32")),
    equal=3,
    new={"b.folded": 4},
)
BENCH = Bench(
    model="a.onnx",
    runtime="onnxruntime",
    device="cpu",
    dtype="float32",
    rounds=2,
    launches=2,
    machine={"processor": "a <b>"},
    origins={"layernorm": "made", "folded": "this"},
    rows=[Row(1, "forward", {"B": 1}, {"folded": TIMED, "layernorm": Recording(failure=Failure("rejected", "no"))})],
)


class Checker(HTMLParser):
    """Fails on tags that do not close, and on whatever would load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert tag not in ("script", "link", "img", "iframe", "object", "form")
        for name, value in attributes:
            assert not name.startswith("on") and name not in ("src", "srcset", "action", "style"), (tag, name)
            assert name != "href" or (value or "").startswith("https://github.com/"), value
        if tag == "svg":
            assert dict(attributes).get("aria-label"), "pictures have names"
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(page: str) -> Checker:
    parser = Checker()
    parser.feed(page)
    parser.close()
    assert not parser.open
    assert page.startswith("<!DOCTYPE html>") and "Content-Security-Policy" in page
    assert not re.search(r"url\(|@import|javascript:", page)
    return parser


def test_a_fold_is_drawn() -> None:
    page = fold_html(FULL)
    assert checked(page).tags.count("svg") >= len(FULL.sites)
    for site in FULL.sites:
        assert site.name in page and (site.code or "") in page
    assert "2 norms" in page or "3 norms" in page


def test_a_verdict_shows_every_sample_and_the_bound() -> None:
    parser = checked(page := verdict_html(VERDICT))
    assert parser.tags.count("circle") == len(SAMPLES)
    assert 'class="over"' in page and "FAILED" in page and "block.3" in page and "else branch" in page
    endless = replace(VERDICT, edges=(replace(VERDICT.edges[0], outputs=(replace(JUDGED, samples=(FAILED, FAILED)),)),))
    checked(verdict_html(endless))


def test_a_benchmark_shows_what_was_measured_and_what_was_not() -> None:
    page = bench_html(BENCH)
    checked(page)
    assert "10 ms" in page and "rejected" in page and "a &lt;b&gt;" in page


def test_a_difference_as_json_is_all_of_it() -> None:
    content = json.loads(diff_json(DIFFERENCE, ("models/a.onnx", "models/b.onnx")))
    assert content["files"] == ["models/a.onnx", "models/b.onnx"] and content["same"] is False
    assert {*content} == {"schema", "normfold", "files", "same", *(each.name for each in fields(Difference))}
    assert content["weights"] == [asdict(weight) for weight in DIFFERENCE.weights]
    assert content["removed"] == dict(DIFFERENCE.removed) and content["new"] == dict(DIFFERENCE.new)
    assert json.loads(diff_json(Difference((18, 18)), ("a", "b")))["same"] is True


def test_a_difference_is_told_in_full() -> None:
    page = diff_html(DIFFERENCE, ("models/a.onnx", "models/b.onnx"))
    checked(page)
    assert "Operators: 1 removed, 0 added, 1 changed. Constants: 0 removed, 1 added, 2 with other contents." in page
    for told in (
        "a.onnx → b.onnx",
        "17 → 18",
        "norm_1",
        "conv_1",
        "2.5e-01",
        "float16 and float32",
        "b.folded, 4",
        "-2",
    ):
        assert told in page, told
    same = diff_html(Difference((18, 18), equal=5), ("a.onnx", "b.onnx"))
    checked(same)
    assert "The graphs are the same" in same and "<h2>" not in same


def test_names_from_files_are_text() -> None:
    evil = '"><script>alert(1)<script>\x1b[31m\u202e'
    report = replace(
        FULL, graphs=(replace(FULL.graphs[0], sites=(replace(FULL.sites[0], name=evil),)),), warnings=(evil,)
    )
    verdict = replace(VERDICT, model=evil, cases=(evil, evil), unexercised=(evil,))
    difference = replace(DIFFERENCE, removed=((evil, evil),), values={evil: (None, evil)}, changed={evil: evil})
    pages = fold_html(report), verdict_html(verdict), bench_html(replace(BENCH, model=evil))
    for page in (*pages, diff_html(difference, (evil, evil))):
        checked(page)
        assert "alert(1)" in page and "<script" not in page and "\x1b" not in page and "\u202e" not in page


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_draws_them_without_a_complaint(tmp_path: Path, theme: str) -> None:
    assert BROWSER is not None
    for name, page in {
        "fold": fold_html(FULL),
        "verify": verdict_html(VERDICT),
        "bench": bench_html(BENCH),
        "diff": diff_html(DIFFERENCE, ("a", "b")),
    }.items():
        place, picture = tmp_path / f"{name}.html", tmp_path / f"{name}.png"
        place.write_text(page, encoding="utf-8")
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1000,1400"]
        options += ["--blink-settings=preferredColorScheme=0"] if theme == "dark" else []
        done = subprocess.run(
            [BROWSER, *options, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", place.as_uri()],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        assert "CONSOLE" not in done.stderr, done.stderr
        assert picture.stat().st_size > 10_000
