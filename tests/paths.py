"""Where the tests find the project's other folders."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
PACKAGE = ROOT / "normfold"
FIXTURES = ROOT / "fixtures"
DOCS = ROOT / "docs"
