"""What docs/stability.md calls stable is what there is, and the other way round."""

from __future__ import annotations

import inspect
import re

import normfold
from normfold import nn
from normfold.bench import result
from normfold.report import report
from normfold.verify import manifest, verdict
from tests.paths import DOCS

PAGE = (DOCS / "stability.md").read_text(encoding="utf-8")


def test_the_public_names_are_those_of_the_page() -> None:
    listed = re.findall(r"^\| `normfold\.(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert sorted(listed) == sorted(normfold.__all__)
    for name in listed:
        assert getattr(normfold, name) is not None
    assert set(listed) <= set(dir(normfold))


def test_public_functions_are_documented_and_their_options_are_named() -> None:
    functions = [getattr(normfold, name) for name in normfold.__all__ if inspect.isfunction(getattr(normfold, name))]
    assert len(functions) >= 4
    for function in functions:
        assert (function.__doc__ and "Raises" in function.__doc__) or function is normfold.inspect
        kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
        assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 2, function


def test_public_classes_of_nn_say_what_they_take() -> None:
    for name in nn.__all__:
        assert getattr(nn, name).__doc__, name


def test_the_schema_numbers_are_those_of_the_page() -> None:
    numbers = re.findall(r"^\| .* \| .* \| (\d+), \[", PAGE, flags=re.MULTILINE)
    written = [module.SCHEMA for module in (report, manifest, verdict, result)]
    assert [int(number) for number in numbers] == written
