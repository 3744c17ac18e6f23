"""The pages of docs/: the tutorial runs, and the site builds without a broken link."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.fill_in import filled_in
from tests.docs import refusal_pictures
from tests.paths import DOCS, ROOT
from tests.support.page import run_page


@pytest.mark.slow
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    assert run_page("tutorial", tmp_path) == 6


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="pip install 'normfold[docs]' builds the site")
def test_the_site_builds(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tutorial" / "index.html").exists()


def test_every_link_between_pages_leads_somewhere() -> None:
    checked = 0
    for page in [*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", text):
            own = "https://github.com/normfold/normfold/blob/main/"
            if target.startswith(own):
                place = ROOT / target.removeprefix(own)
            elif re.match(r"[a-z]+:", target):
                continue
            else:
                place = page.parent / target
            checked += 1
            assert place.exists(), f"{page}: {target}"
            # The site has these pages and nothing else of the repository.
            leaves = page.is_relative_to(DOCS) and not place.resolve().is_relative_to(DOCS.resolve())
            assert not leaves or target.startswith(own), f"{page}: {target} leaves docs/: write {own}..."
    assert checked > 100


def test_the_links_of_the_readme_work_on_an_index_page() -> None:
    """There no file of the repository lies beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r"(?:src|href)=\"([^\"]+)\"", text)]
    assert len(targets) > 20
    assert all(target.startswith("https://") for target in targets), targets


def test_every_page_stands_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in [*DOCS.glob("*.md"), *(DOCS / "guides").glob("*.md")]:
        assert page.relative_to(DOCS).as_posix() in navigation, f"{page.name}: add it to mkdocs.yml"


def test_the_pictures_of_the_refusals_are_of_what_is_refused_now() -> None:
    """`python -m tests.docs.refusal_pictures` draws them."""
    drawn = refusal_pictures.drawings()
    assert len(drawn) > 30
    for code, drawing in drawn.items():
        assert ElementTree.fromstring(drawing).tag.endswith("svg")
        assert (refusal_pictures.FOLDER / f"{code}.svg").read_text(encoding="utf-8") == drawing, code
    assert {path.stem for path in refusal_pictures.FOLDER.glob("*.svg")} == set(drawn)
    said = filled_in(refusal_pictures.PAGE, refusal_pictures.PART)
    assert said.splitlines()[1:] == list(refusal_pictures.section())


def test_every_decision_is_listed() -> None:
    listed = set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", (DOCS / "decisions" / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in (DOCS / "decisions").glob("0*.md")}
