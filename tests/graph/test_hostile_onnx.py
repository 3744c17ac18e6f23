"""Malformed ONNX files end in one paragraph: no traceback, bounded memory and time, nothing outside the folder."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from normfold.errors import GraphError
from normfold.graph.constants import LARGEST_COMPUTED
from normfold.graph.read import read_graph
from tests.paths import ROOT
from tests.support.hostile import MEMORY_BYTES, SECONDS, seeds

pytestmark = pytest.mark.hostile

SAMPLE, ALL = 200, 2000

# What `import torch` reserves and 2 GB more.
ATTACK_BYTES = 8 << 30
ATTACK_SECONDS = 60


def fuzz(folder: Path, first: int, count: int) -> list[dict[str, Any]]:
    """The outcome of every mutant; one that brings the process down counts as a crash."""
    found: list[dict[str, Any]] = []
    while len(found) < count:
        start = first + len(found)
        command = [sys.executable, "-m", "tests.support.hostile", str(folder), str(start), str(first + count - start)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found += [line for line in lines if "ended" in line]
        if len(found) < count:
            found.append({"seed": first + len(found), "ended": "died", "said": done.stderr[-600:], "left": [], "s": 0})
    return found


def check_fuzz(found: list[dict[str, Any]]) -> None:
    counts = Counter(line["ended"] for line in found)
    print(dict(counts), f"slowest {max(line['s'] for line in found)} s")
    bad = [line for line in found if line["ended"] not in ("error", "folded") or line["left"]]
    assert not bad, json.dumps(bad[:3], indent=1)
    assert max(line["s"] for line in found) < SECONDS
    # Files that all ended at the door, or all passed it, would test half of the way.
    assert min(counts["error"], counts["folded"]) > len(found) // 20
    assert MEMORY_BYTES < 24 << 30


def test_mutated_files_are_an_error_or_fold(tmp_path: Path) -> None:
    check_fuzz(fuzz(tmp_path, ALL, SAMPLE))


@pytest.mark.slow
def test_two_thousand_mutated_files_are_an_error_or_fold(tmp_path: Path) -> None:
    check_fuzz(fuzz(tmp_path, 0, ALL))


def stream() -> onnx.ModelProto:
    return seeds()["stream"]


def node_of(model: onnx.ModelProto, op_type: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.op_type == op_type)


def attribute_of(node: onnx.NodeProto, name: str) -> AttributeProto:
    return next(attribute for attribute in node.attribute if attribute.name == name)


def missing_initializer(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0]


def cycle(model: onnx.ModelProto) -> None:
    node_of(model, "Transpose").input[0] = "n"


def duplicate_tensor(model: onnx.ModelProto) -> None:
    node_of(model, "Sigmoid").output[0] = "n"


def duplicate_initializer(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def stored_and_written(model: onnx.ModelProto) -> None:
    node_of(model, "Sigmoid").output[0] = "w4"


def rank_that_is_wrong(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("n", TensorProto.FLOAT, [4]))


def size_that_is_wrong(model: onnx.ModelProto) -> None:
    model.graph.value_info.append(helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["B", "L", 10**9]))


def stored_shape_claims_billions(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [10**9]


def product_of_dims_overflows(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**32, 2**32, 4]


def negative_size(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [-4]


def attribute_of_another_type(model: onnx.ModelProto) -> None:
    attribute_of(node_of(model, "Transpose"), "perm").CopyFrom(helper.make_attribute("perm", "012"))


def attribute_that_is_not_there(model: onnx.ModelProto) -> None:
    node_of(model, "MatMul").attribute.append(helper.make_attribute("novel", 1))


def unknown_type(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def unknown_input_type(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 99


def cast_to_an_unknown_type(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Cast", ["gamma4"], ["odd"], to=99))
    model.graph.node.append(helper.make_node("Mul", ["y", "odd"], ["z"]))
    model.graph.output[0].name = "z"


def no_such_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = -3


def opset_that_no_integer_holds(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 2**40


def gap_among_many_operands(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Sum", ["y", "", "y"], ["z"]))
    model.graph.output[0].name = "z"


def operand_left_out(model: onnx.ModelProto) -> None:
    node_of(model, "Add").input[1] = ""


def size_below_nothing(model: onnx.ModelProto) -> None:
    """More is cut off than there is, and a Slice of that aborts ONNX's own inference with the process around it."""
    numbers = {"cut": [0, -9, 0, 0, 0, 0], "from": [5], "to": [9], "axis": [1]}
    for name, content in numbers.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(content, np.int64), name))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    model.graph.node.append(helper.make_node("Pad", ["y", "cut"], ["short"]))
    model.graph.node.append(helper.make_node("Slice", ["short", "from", "to", "axis"], ["z"]))
    model.graph.output[0].name = "z"


def function_that_calls_itself(model: onnx.ModelProto) -> None:
    call = helper.make_node("F", ["a"], ["b"], domain="local")
    function = helper.make_function("local", "F", ["a"], ["b"], [call], [helper.make_opsetid("local", 1)])
    with_functions(model, [function])


def functions_that_call_each_other(model: onnx.ModelProto) -> None:
    imports = [helper.make_opsetid("local", 1)]
    calls = [helper.make_node(name, ["a"], ["b"], domain="local") for name in ("G", "F")]
    functions = [
        helper.make_function("local", name, ["a"], ["b"], [call], imports)
        for name, call in zip(("F", "G"), calls, strict=True)
    ]
    with_functions(model, functions)


def functions_that_double(model: onnx.ModelProto) -> None:
    """Forty functions, each of which calls the next one twice: 2^40 operators."""
    functions = []
    for number in range(40):
        name = f"F{number + 1}" if number < 39 else "Identity"
        calls = [
            helper.make_node(name, [source], [target], domain="local" if number < 39 else "")
            for source, target in (("a", "h"), ("h", "b"))
        ]
        imports = [helper.make_opsetid("local", 1), helper.make_opsetid("", 20)]
        functions.append(helper.make_function("local", f"F{number}", ["a"], ["b"], calls, imports))
    with_functions(model, functions, first="F0")


def with_functions(model: onnx.ModelProto, functions: list[onnx.FunctionProto], first: str = "F") -> None:
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.graph.node.append(helper.make_node(first, ["y"], ["z"], domain="local"))
    model.graph.output[0].name = "z"


def permutation_of_another_rank(model: onnx.ModelProto) -> None:
    attribute_of(node_of(model, "Transpose"), "perm").ints[:] = [0, 1]


def constant_of_billions(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.array([10**9, 1, 4], np.int64), "many"))
    nodes = [
        helper.make_node("ConstantOfShape", ["many"], ["filled"]),
        helper.make_node("Mul", ["y", "filled"], ["z"]),
    ]
    model.graph.node.extend(nodes)
    model.graph.output[0].name = "z"


def constants_that_double(model: onnx.ModelProto) -> None:
    """Sixty Concats of a constant with itself: 2^62 elements, which ONNX's own inference would write out."""
    name = "gamma4"
    for number in range(60):
        model.graph.node.append(helper.make_node("Concat", [name, name], [f"twice{number}"], axis=0))
        name = f"twice{number}"
    model.graph.node.append(helper.make_node("Mul", ["y", name], ["z"]))
    model.graph.output[0].name = "z"


def weights_that_double(model: onnx.ModelProto) -> None:
    """The same, of a weight that fits its operator."""
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 1, 4), np.float32), "weight"))
    name = "weight"
    for number in range(60):
        model.graph.node.append(helper.make_node("Concat", [name, name], [f"twice{number}"], axis=1))
        name = f"twice{number}"
    model.graph.node.append(helper.make_node("Mul", ["y", name], ["z"]))
    model.graph.output[0].name = "z"


def input_of_billions(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 10**9


ATTACKS: dict[Callable[[onnx.ModelProto], None], str] = {
    missing_initializer: "nothing writes it",
    cycle: "has a cycle",
    duplicate_tensor: "a name that is taken",
    duplicate_initializer: "two initializers named",
    stored_and_written: "a name that is taken",
    rank_that_is_wrong: "shapes contradict each other",
    size_that_is_wrong: "shapes contradict each other",
    stored_shape_claims_billions: "asks for",
    product_of_dims_overflows: "asks for",
    negative_size: "negative size",
    permutation_of_another_rank: "contradict each other",
    attribute_of_another_type: "is of type STRING",
    attribute_that_is_not_there: "which this opset does not have",
    unknown_type: "which ONNX does not have",
    unknown_input_type: "cannot be read as an ONNX graph",
    cast_to_an_unknown_type: "does not specify a valid type",
    no_such_opset: "does not exist",
    size_below_nothing: "shapes contradict each other",
    opset_that_no_integer_holds: "does not exist",
    gap_among_many_operands: "lacks its operand",
    operand_left_out: "lacks its operand",
    function_that_calls_itself: "calls itself",
    functions_that_call_each_other: "calls itself",
    functions_that_double: "that is more than can be read",
    constant_of_billions: str(LARGEST_COMPUTED),
    constants_that_double: "contradict each other",
    weights_that_double: str(LARGEST_COMPUTED),
    input_of_billions: "more than can be drawn",
}


def run_command(folder: Path, name: str = "bad.onnx") -> tuple[int, str, float]:
    """`normfold fold` in a process of limited memory: exit code, stderr, seconds."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (ATTACK_BYTES, ATTACK_BYTES))

    start = time.monotonic()
    command = [sys.executable, "-m", "normfold", "fold", name, "-o", "out.onnx"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=ATTACK_SECONDS, preexec_fn=limit,
        check=False,
    )  # fmt: skip
    return done.returncode, done.stderr, time.monotonic() - start


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_attacks_are_one_paragraph(tmp_path: Path, attack: Callable[[onnx.ModelProto], None]) -> None:
    """In this process, behind the command line; the ones that aim at memory again in one of their own, below."""
    from typer.testing import CliRunner

    from normfold.cli.app import app

    model = stream()
    attack(model)
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    result = CliRunner().invoke(app, ["fold", str(tmp_path / "bad.onnx"), "-o", str(tmp_path / "out.onnx")])
    assert result.exit_code == 2, result.output
    said = result.output.strip().split("normfold: ")[-1]
    assert ATTACKS[attack] in said
    assert "\n" not in said and "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["bad.onnx"]


@pytest.mark.parametrize(
    "attack",
    [
        functions_that_double,
        constant_of_billions,
        pytest.param(constants_that_double, marks=pytest.mark.slow),
        weights_that_double,
        pytest.param(input_of_billions, marks=pytest.mark.slow),
    ],
    ids=lambda attack: attack.__name__,
)
def test_bombs_stay_within_memory_and_time(tmp_path: Path, attack: Callable[[onnx.ModelProto], None]) -> None:
    model = stream()
    attack(model)
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    code, said, _ = run_command(tmp_path)
    assert (code, "Traceback" in said) == (2, False), said
    assert ATTACKS[attack] in said


def test_the_same_file_without_the_attack_folds(tmp_path: Path) -> None:
    (tmp_path / "good.onnx").write_bytes(stream().SerializeToString())
    code, said, _ = run_command(tmp_path, "good.onnx")
    assert code == 0, said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.onnx", "out.onnx"]


def test_a_size_of_minus_one_is_one_that_is_not_known(tmp_path: Path) -> None:
    model = stream()
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[1].dim_value = -1
    onnx.save(model, tmp_path / "good.onnx")
    graph = read_graph(tmp_path / "good.onnx")
    assert [str(value.shape) for value in graph.graph.inputs] == ["[B,None,4]"]
    code, said, _ = run_command(tmp_path, "good.onnx")
    assert code == 0, said


def test_subgraphs_within_subgraphs(tmp_path: Path) -> None:
    """A thousand conditions inside each other, which no protobuf library would write."""

    def message(number: int, content: bytes) -> bytes:
        length = len(content)
        size = b""
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    node = helper.make_node("Identity", ["y"], ["z"]).SerializeToString()
    for _ in range(1000):
        inner = message(6, message(1, node)) + AttributeProto(name="then_branch", type=5).SerializeToString()
        node = helper.make_node("If", ["on"], ["z"]).SerializeToString() + message(5, inner)
    (tmp_path / "bad.onnx").write_bytes(stream().SerializeToString() + message(7, message(1, node)))
    code, said, _ = run_command(tmp_path)
    assert (code, "Traceback" in said) == (2, False), said
    assert "cannot be read as an ONNX model" in said


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    content = stream().SerializeToString()
    (tmp_path / "bad.onnx").write_bytes(content[: max(1, int(share * len(content)))])
    with pytest.raises(GraphError, match=r"bad\.onnx"):
        read_graph(tmp_path / "bad.onnx")
