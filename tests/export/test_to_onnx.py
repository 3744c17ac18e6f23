from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from normfold import models
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.source import Source
from normfold.errors import ExportError, InputSpecError
from normfold.export import to_onnx as export_module
from normfold.export.opset import fastest_opset, newest_opset
from normfold.export.targets import LOWEST_OPSET
from normfold.export.to_onnx import export
from normfold.inputs.spec import axis_sizes, call_arguments, draw, parse_specs
from normfold.nn.un import UN1d
from normfold.norms.detect import find_norms
from tests.paths import ROOT

# float32 against float32 over at most a dozen layers: a few units in the last place of outputs around 1.
CLOSE = 1e-5


def settled(model: nn.Module) -> nn.Module:
    for name, buffer in model.named_buffers():
        if "running_" in name:
            nn.init.uniform_(buffer, 0.5, 2.0)
        if name.endswith((".iter", ".warm")):
            buffer.zero_()
    return model.eval()


def source_of(model: nn.Module, *inputs: str) -> Source:
    return Source(
        Path("test.pt"), "0" * 64, "torch", settled(model), None, parse_specs(inputs), norms=find_norms(model)
    )


def run(model: ir.Model, feeds: dict[str, Any]) -> list[Any]:
    data = ir.to_proto(model).SerializeToString()
    outputs: list[Any] = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feeds)
    return outputs


def assert_same_function(source: Source, model: ir.Model) -> None:
    """At every size that the export is compared at."""
    assert source.module is not None
    sizes = axis_sizes(source.inputs)
    assert sizes
    for size in sizes:
        feeds = draw(source.inputs, size, seed=1)
        args, kwargs = call_arguments(source.module.forward, {k: torch.from_numpy(v) for k, v in feeds.items()})
        with torch.no_grad():
            wanted = torch.utils._pytree.tree_leaves(source.module(*args, **kwargs))
        found = run(model, feeds)
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert np.abs(one - other.numpy()).max() < CLOSE * max(1.0, float(other.abs().max()))


class Baked(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(3, -1) + 1


class Positions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table[: x.shape[1]]


class Sum(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


class Fours(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0] // 4, 4, 3)


@pytest.fixture(scope="module")
def vit() -> tuple[Source, ir.Model]:
    torch.manual_seed(0)
    model = models.create("vit", dim=12, depth=1, heads=2, norm="prepbn")
    source = source_of(model, "x:float32[B,1,8,8]")
    return source, export(source)


def test_the_graph_computes_what_the_module_does(vit: tuple[Source, ir.Model]) -> None:
    assert_same_function(*vit)


def test_names_survive(vit: tuple[Source, ir.Model]) -> None:
    source, model = vit
    assert [str(value.name) for value in model.graph.inputs] == ["x"]
    assert [str(value.name) for value in model.graph.outputs] == ["output"]
    assert str(model.graph.inputs[0].shape) == "[B,1,8,8]"
    assert str(model.graph.outputs[0].shape) == "[B,10]"
    names = set(model.graph.initializers)
    assert {"patch_embed.proj.weight", "blocks.0.norm1.norm2.bn.running_var", "blocks.0.mlp.fc1.bias"} <= names
    assert {"blocks.0.attn.qkv.weight.T", "blocks.0.mlp.fc2.weight.T"} <= names
    assert source.module is not None
    state = source.module.state_dict()
    renamed = [name for name in names if name.endswith(".T")]
    for name in renamed:
        value = model.graph.initializers[name].const_value
        assert value is not None
        assert np.array_equal(value.numpy(), state[name.removesuffix(".T")].numpy().T)
    assert len(renamed) == 4


def test_every_norm_can_be_found_by_its_scope(vit: tuple[Source, ir.Model]) -> None:
    source, model = vit
    scopes = set()
    for node in model.graph:
        scopes |= set(ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]")))
    assert len(source.norms) == 3
    assert {norm.name for norm in source.norms} <= scopes
    classes = [node.metadata_props["pkg.torch.onnx.class_hierarchy"] for node in model.graph if "Batch" in node.op_type]
    assert len(classes) == 3
    assert all("normfold.nn.repbn.LinearNorm" in text for text in classes)


def test_no_source_path_is_left(vit: tuple[Source, ir.Model]) -> None:
    data = ir.to_proto(vit[1]).SerializeToString()
    assert str(ROOT).encode() not in data
    assert b".py" not in data
    assert b"stack_trace" not in data
    assert b"ExportedProgram" not in data


def test_exporting_twice_gives_the_same_bytes(vit: tuple[Source, ir.Model]) -> None:
    source, model = vit
    assert ir.to_proto(export(source)).SerializeToString() == ir.to_proto(model).SerializeToString()


class ConvNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)

    def forward(self, image: Tensor) -> Tensor:
        y: Tensor = self.norm(self.conv(image))
        return y


@pytest.fixture
def small() -> Source:
    return source_of(ConvNorm(), "x:float32[B,2,5,5]")


def test_the_exporter_leaves_batch_norms_to_us(small: Source) -> None:
    model = export(small)
    assert [(node.domain, node.op_type) for node in model.graph] == [("", "Conv"), ("", "BatchNormalization")]
    assert {"conv.weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"} <= set(
        model.graph.initializers
    )
    assert set(model.opset_imports) == {""}
    assert_same_function(small, model)


def test_an_input_may_have_another_name_than_the_parameter(small: Source) -> None:
    assert [value.name for value in export(small).graph.inputs] == ["x"]


def test_nothing_is_printed(small: Source, capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export(small)
    assert capfd.readouterr() == ("", "")
    assert caught == []


def test_the_module_is_left_as_it_was(small: Source) -> None:
    assert small.module is not None
    before = {name: tensor.clone() for name, tensor in small.module.state_dict().items()}
    small.module.train()
    small.module.get_submodule("conv").eval()
    model = export(small)
    assert [part.training for part in small.module.modules()] == [True, False, True]
    after = small.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    small.module.eval()
    assert_same_function(small, model)


# --- opsets --------------------------------------------------------------------------------------------------------


def test_the_default_opset_is_the_fastest(small: Source) -> None:
    assert newest_opset() >= export(small).opset_imports[""] == fastest_opset()[0] > LOWEST_OPSET


class Attention(nn.Module):
    """Operators that the newer opsets have and the older spell out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = UN1d(8)
        self.last = nn.RMSNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)[:, None]
        y: Tensor = self.last(nn.functional.gelu(nn.functional.scaled_dot_product_attention(x, x, x)))
        return y


@pytest.mark.parametrize("opset", [18, 22])
def test_the_opset_asked_for(opset: int) -> None:
    source = source_of(Attention(), "x:float32[B,L,8]")
    model = export(source, opset=opset)
    assert model.opset_imports[""] == opset
    assert_same_function(source, model)


@pytest.mark.parametrize("opset", [17, 99])
def test_an_opset_out_of_reach(small: Source, opset: int) -> None:
    with pytest.raises(ExportError, match=rf"opset {opset} is out of reach.* from 18 to {newest_opset()}"):
        export(small, opset=opset)


def test_a_conversion_that_fails_quietly_is_noticed(small: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.onnx leaves a model it cannot convert at opset 18, half done, and logs it."""
    original = torch.onnx.export

    def stuck(*args: Any, opset_version: int, **options: Any) -> Any:
        result = original(*args, opset_version=min(opset_version, 20), **options)
        if opset_version > 20 and result is not None:
            result.model.graph.opset_imports[""] = 18
        return result

    monkeypatch.setattr(torch.onnx, "export", stuck)
    monkeypatch.setattr(export_module, "newest_opset", lambda: 21)
    monkeypatch.setattr(export_module, "fastest_opset", lambda: (21, ""))
    assert export(small).opset_imports[""] == 20
    with pytest.raises(ExportError, match="cannot be converted to opset 21; try --opset"):
        export(small, opset=21)


# --- inputs and outputs --------------------------------------------------------------------------------------------


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)

    def forward(self, ids: Tensor, mask: Tensor | None = None, *, scale: Tensor | None = None) -> dict[str, Any]:
        x = self.table(ids)
        if mask is not None:
            x = x * mask[..., None]
        return {"logits": x * scale, "parts": (x.sum(1), x + 1)}


def test_several_inputs_and_nested_outputs() -> None:
    source = source_of(Many(), "scale:float32[B,L,1]", "ids:int64[B,L]<9")
    model = export(source)
    assert {str(value.name): str(value.shape) for value in model.graph.inputs} == {
        "ids": "[B,L]",
        "scale": "[B,L,1]",
    }
    assert [value.name for value in model.graph.outputs] == ["logits", "parts_0", "parts_1"]
    assert_same_function(source, model)


class Rest(nn.Module):
    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return inputs[0] + 1, inputs[0] * inputs[1]


def test_a_forward_without_names() -> None:
    source = source_of(Rest(), "a:float32[B,3]", "b:float32[B,3]")
    model = export(source)
    assert [value.name for value in model.graph.outputs] == ["output_0", "output_1"]
    assert_same_function(source, model)


def test_inputs_that_forward_does_not_take(small: Source) -> None:
    with pytest.raises(InputSpecError, match=r"do not fit the model's forward.*too many positional"):
        export(replace(small, inputs=parse_specs(["a:float32[B]", "b:float32[B]"])))


def test_inputs_of_a_wrong_shape(small: Source) -> None:
    with pytest.raises(
        InputSpecError, match=r"the model does not run on x:float32\[B,7,5,5\] \(traced at B=3\)"
    ) as caught:
        export(replace(small, inputs=parse_specs(["x:float32[B,7,5,5]"])))
    assert "\n" not in str(caught.value)


# --- what cannot be exported ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "inputs"),
    [
        (Baked(), ["x:float32[3,8]"]),
        (Positions(), ["x:float32[B,L<=16,4]"]),
        (Sum(), ["x:float32[B,8]", "y:float32[B,8]"]),
        (Fours(), ["x:float32[8,3]"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_the_remedy_that_was_named_works(module: nn.Module, inputs: Sequence[str]) -> None:
    source = source_of(module, *inputs)
    assert_same_function(source, export(source))


# --- sources that are graphs already -------------------------------------------------------------------------------


def test_a_program_is_exported_as_it_is(tmp_path: Path, small: Source) -> None:
    assert small.module is not None
    batch = torch.export.Dim("B")
    program = torch.export.export(small.module, (torch.zeros(3, 2, 5, 5),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "m.pt2")
    source = load_checkpoint(tmp_path / "m.pt2", trust=True)
    model = export(source)
    assert [node.op_type for node in model.graph] == ["Conv", "BatchNormalization"]
    assert not isinstance(model.graph.inputs[0].shape[0], int)  # type: ignore[index]
    assert {"conv.weight", "norm.running_var"} <= set(model.graph.initializers)
    assert_same_function(source, model)


def test_a_graph_is_returned_as_it_is(tmp_path: Path, small: Source) -> None:
    ir.save(export(small), tmp_path / "m.onnx")
    source = load_checkpoint(tmp_path / "m.onnx")
    assert [str(spec) for spec in source.inputs] == ["x:float32[B,2,5,5]"]
    assert export(source) is source.graph
