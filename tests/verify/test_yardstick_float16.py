"""A model that was stored in powers of two for float16: `verify` says what `fold` said, and believes no manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from normfold.pipeline import run as pipeline
from normfold.verify.judge import FOLD_EDGE, HALF_EDGE, POWERS_EDGE, RUNTIME_EDGE
from normfold.verify.manifest import KEY
from tests.support.graphs import parse
from tests.verify.command import change, said, verify

RNG = np.random.default_rng(8)
# A constant of the stream is beyond 65504: the source itself cannot be converted.
MODEL = """<ir_version: 10, opset_import: ["" : 23]>
g (float[B,8] x) => (float[B,4] y) {
i = MatMul(x, v)
b = BatchNormalization<epsilon = 0.001>(i, gamma, shift, shift, gamma)
f = MatMul(b, w)
h = Add(f, large)
n = LayerNormalization<epsilon = 0.01>(h, gamma)
y = MatMul(n, o)
}"""


def source_at(place: Path) -> Path:
    constants = {
        "v": RNG.normal(size=(8, 8)),
        "w": 1e4 * RNG.normal(size=(8, 8)),
        "large": 1e5 * RNG.choice([-1.0, 1.0], 8) * RNG.uniform(1.0, 2.0, 8),
        "gamma": RNG.uniform(0.5, 2.0, 8),
        "shift": RNG.normal(size=8),
        "o": RNG.normal(size=(8, 4)),
    }
    onnx.save(parse(MODEL, **{name: array.astype(np.float32) for name, array in constants.items()}), place)
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folded model, out.onnx, beside its source."""
    folder = tmp_path_factory.mktemp("powers")
    report = pipeline.fold(source_at(folder / "source.onnx"), folder / "out.onnx", dtype="float16")
    assert [edge.name for edge in report.edges] == [POWERS_EDGE, HALF_EDGE, FOLD_EDGE, RUNTIME_EDGE]
    assert report.edges[0].max_abs == 0.0 and not report.failed
    assert [site.status for site in report.sites] == ["folded", "kept"]
    return folder


def beside_its_source(folder: Path, place: Path) -> Path:
    for name in ("source.onnx", "out.onnx"):
        (place / name).write_bytes((folder / name).read_bytes())
    return place / "out.onnx"


def test_verify_says_what_fold_said(folder: Path, tmp_path: Path) -> None:
    found = verify(folder / "out.onnx", "--json", tmp_path / "v.json")
    assert found.exit_code == 0, found.output
    edges = {edge["name"]: edge["passed"] for edge in json.loads((tmp_path / "v.json").read_text())["edges"]}
    assert list(edges)[:3] == [POWERS_EDGE, HALF_EDGE, FOLD_EDGE] and all(edges.values())


@pytest.mark.slow
def test_a_wrong_weight_fails(folder: Path, tmp_path: Path) -> None:
    def spoil(model: onnx.ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name.startswith("w."))
        array = numpy_helper.to_array(tensor).copy()
        array[[0, 1]] = array[[1, 0]]
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    found = verify(change(beside_its_source(folder, tmp_path), spoil))
    assert found.exit_code == 1 and FOLD_EDGE in found.output


Powers = dict[str, list[list[Any]]]


def with_powers(path: Path, edit: Callable[[Powers], object]) -> Path:
    def rewritten(model: onnx.ModelProto) -> None:
        prop = next(prop for prop in model.metadata_props if prop.key == KEY)
        manifest = json.loads(prop.value)
        edit(manifest["powers"])
        prop.value = json.dumps(manifest)

    return change(path, rewritten)


def another_power(powers: Powers) -> None:
    powers["constants"][0][2] += 1


def another_epsilon(powers: Powers) -> None:
    powers["attributes"][0][2] *= 1e9


@pytest.mark.parametrize("edit", [another_power, another_epsilon])
def test_powers_that_change_what_the_source_computes_are_told(
    folder: Path, tmp_path: Path, edit: Callable[[Powers], object]
) -> None:
    """They would make a yardstick of something else."""
    found = verify(with_powers(beside_its_source(folder, tmp_path), edit))
    assert found.exit_code == 1 and POWERS_EDGE in found.output and HALF_EDGE not in found.output


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda powers: powers["constants"][0].__setitem__(0, "elsewhere"), "an operator that writes elsewhere"),
        (lambda powers: powers["constants"][0].__setitem__(1, 0), "a constant at input 0"),
        (lambda powers: powers["products"].append(["elsewhere", "more", 1]), "tensor elsewhere"),
        (lambda powers: powers["products"].append(["f", "h", 1]), "room for a tensor h"),
        (lambda powers: powers["products"].append(["f", "f2", 1, ["elsewhere"]]), "an operator that writes elsewhere"),
        (lambda powers: powers["products"].append(["f", "f2", 1, "h"]), "its manifest"),
        (lambda powers: powers["constants"][0].__setitem__(2, 500), "its manifest"),
        (lambda powers: powers["constants"][0].__setitem__(2, 0.5), "its manifest"),
        (lambda powers: powers["attributes"].append(["n", "axis", 1.0]), "its manifest"),
        (lambda powers: powers.pop("products"), "its manifest"),
    ],
)
def test_powers_that_fit_no_source_give_no_verdict(
    folder: Path, tmp_path: Path, edit: Callable[[Powers], object], says: str
) -> None:
    found = verify(with_powers(beside_its_source(folder, tmp_path), edit))
    assert found.exit_code == 2 and says in said(found)


def test_powers_that_do_not_run_fail(folder: Path, tmp_path: Path) -> None:
    found = verify(with_powers(beside_its_source(folder, tmp_path), lambda p: p["attributes"][0].__setitem__(2, -1e30)))
    assert found.exit_code == 1 and POWERS_EDGE in found.output
