"""The opset that is chosen, on the installed onnxruntime and on ones that have other kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from normfold.errors import UsageError
from normfold.export import opset
from normfold.export.opset import fastest_opset, newest_opset, opset_for
from normfold.export.targets import LOWEST_OPSET, TARGETS

SINCE = {"Attention": 23, "Gelu": 20, "GroupNormalization": 21, "LayerNormalization": 17, "RMSNormalization": 23}


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, set[int]]], None]]:
    """Pretends that the runtime executes these operators of these opsets, and takes all others apart."""

    def pretend(missing: dict[str, set[int]]) -> None:
        monkeypatch.setattr(opset, "newest_opset", lambda: 25)
        monkeypatch.setattr(
            opset, "_is_executed", lambda name, version: None if version < SINCE[name] else version not in missing[name]
        )
        fastest_opset.cache_clear()

    yield pretend
    fastest_opset.cache_clear()


ALL = {25, 24, 23, 22, 21, 20, 19, 18, 17}


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ({}, 25),
        ({"Attention": {25}}, 24),
        ({"Attention": {24, 25}}, 23),
        ({"Attention": {25}, "RMSNormalization": {24}}, 23),
        ({"Attention": ALL}, 25),  # expanded wherever it exists: nothing is gained elsewhere
        ({"GroupNormalization": ALL, "Gelu": {25}}, 24),
        ({"LayerNormalization": ALL - {18}}, 18),
    ],
)
def test_the_newest_that_is_executed_as_it_is_written(
    kernels: Callable[[dict[str, set[int]]], None], missing: dict[str, set[int]], expected: int
) -> None:
    kernels({name: missing.get(name, set()) for name in SINCE})
    found, why = fastest_opset()
    assert found == expected
    for version in range(expected + 1, 26):
        assert f"{version}: it has no" in why


def test_what_is_installed_expands_nothing_of_the_opset_that_is_chosen() -> None:
    fastest_opset.cache_clear()
    found, why = fastest_opset()
    assert LOWEST_OPSET <= found <= newest_opset()
    assert "onnxruntime" in why
    seen = {name: opset._is_executed(name, found) for name in SINCE if opset._is_known(name)}
    assert seen and all(executed is not False for executed in seen.values())


def test_targets_and_what_is_asked_for() -> None:
    assert opset_for(None, None) == opset_for("onnxruntime", None) == fastest_opset()
    assert opset_for("mobile", None)[0] == 18
    for name in TARGETS:
        version, why = opset_for(name, None)
        assert LOWEST_OPSET <= version <= newest_opset() and why
    assert opset_for("mobile", 21) == (21, "as asked for")
    with pytest.raises(UsageError, match="--target npu: choose from onnxruntime, tensorrt, openvino, mobile"):
        opset_for("npu", None)
