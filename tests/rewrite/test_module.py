"""The fold in the torch module equals the folded graph; what the module cannot say is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

from normfold.analysis.analyse import analyse
from normfold.analysis.centre import Centring
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.source import Source
from normfold.errors import NotExpressibleError, OutputError
from normfold.export.to_onnx import export
from normfold.graph.prepare import prepare
from normfold.graph.types import Model
from normfold.graph.write import save
from normfold.inputs.spec import InputSpec, draw
from normfold.nn.batchnorm import TokenBatchNorm
from normfold.norms.detect import find_norms
from normfold.pipeline.fold_graph import FoldedGraph
from normfold.pipeline.run import fold
from normfold.rewrite.graph import rewrite
from normfold.rewrite.module import ChannelMap, folded_module
from normfold.system.files import scratch
from normfold.verify.emitted import check_module
from tests.paths import FIXTURES

FOLDING = [
    "convnet_bn",
    "vit_un",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("char_lm_prepbn", "postnorm_bn", "postnorm_un", "vit_bn", "vit_prepbn")
    ),
]
# Trained networks of a few layers, outputs of order 10: float32 rounding in another order.
ATOL = 2e-4


@cache
def loaded(name: str) -> Source:
    return load_checkpoint(FIXTURES / f"{name}.pt")


_exported: dict[int, tuple[Source, Model]] = {}


def graph_of(source: Source) -> Model:
    """The export of a source, made once."""
    if id(source) not in _exported:
        _exported[id(source)] = source, prepare(export(source))
    return _exported[id(source)][1]


def fold_module(source: Source, place: Path | None = None) -> nn.Module:
    """Folded and judged, as `Report.to_torch` hands it out."""
    graph = graph_of(source)
    plan = analyse(graph, norms=source.norms)
    folded = rewrite(graph, plan)
    if place is not None:
        save(folded, place)
    return FoldedGraph(source, graph, plan, folded, folded, Centring()).module()


def source_of(module: nn.Module, spec: str) -> Source:
    for name, tensor in module.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0)
        elif name.endswith("running_mean"):
            tensor.normal_()
    inputs = (InputSpec.parse(spec),)
    return Source(Path("model.pt"), "", "torch", module.eval(), None, inputs, norms=find_norms(module))


@pytest.mark.parametrize("name", FOLDING)
def test_the_module_computes_what_the_file_computes(name: str, tmp_path: Path) -> None:
    source = loaded(name)
    assert source.module is not None
    before = {key: tensor.clone() for key, tensor in source.module.state_dict().items()}
    folded = fold_module(source, tmp_path / "folded.onnx")
    sizes = {letter: 9 for spec in source.inputs for letter in spec.letters}
    feeds = draw(source.inputs, sizes, seed=5)
    with torch.no_grad():
        ours = folded(*map(torch.from_numpy, feeds.values()))
    theirs = ort.InferenceSession(tmp_path / "folded.onnx").run(None, feeds)[0]
    np.testing.assert_allclose((ours[0] if isinstance(ours, tuple) else ours).numpy(), theirs, atol=ATOL)
    assert sum(isinstance(part, nn.Identity | ChannelMap) for part in folded.modules()) >= len(source.norms)
    assert not [norm for norm in find_norms(folded) if norm.kind not in ("LayerNorm", "RMSNorm")]
    # The module that came in is as it was.
    after = source.module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before) and before.keys() == after.keys()


def test_a_linear_without_bias_gets_one() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3, bias=False))
    folded = fold_module(source_of(net, "x:float32[B,4]"))
    assert isinstance(folded[2], nn.Identity) and folded[3].bias is not None and net[3].bias is None


def test_a_partial_fold_leaves_its_shift_where_the_norm_stood() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
    left = fold_module(source_of(net, "x:float32[B,3,6,5]"))[2]
    assert isinstance(left, ChannelMap) and left.scale is None and left.shift is not None


class _Times(nn.Module):
    """A module that is one multiplication by a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 3.0 * x


class _Tied(nn.Module):
    """One table under three names, places that are not saved, a number of the code, and norms that all of them take."""

    places: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed = self.other = nn.Embedding(11, 4)
        self.times = _Times()
        self.register_buffer("places", torch.randn(5, 4), persistent=False)
        self.first, self.last = TokenBatchNorm(4), TokenBatchNorm(4)
        self.middle = nn.Linear(4, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.first(self.times(self.embed(ids)) + self.places)
        x = x + self.middle(x) + self.other(ids)
        y: torch.Tensor = self.head(self.last(x))
        return y


def test_what_is_tied_is_untied_where_the_fold_needs_it() -> None:
    torch.manual_seed(0)
    net = _Tied()
    source = source_of(net, "ids:int64[B,5]<11")
    folded = fold_module(source)
    assert find_norms(folded) == ()
    assert net.head.weight is net.embed.weight and net.embed is net.other, "the module that came in is as it was"
    assert folded.head.weight is not folded.other.weight
    ids = torch.randint(0, 11, (3, 5))
    with torch.no_grad():
        torch.testing.assert_close(folded(ids), net(ids), rtol=1e-4, atol=1e-4)


def test_a_map_of_biases_stands_behind_its_convolution() -> None:
    folded = fold_module(loaded("convnet_bn"))
    assert isinstance(folded.get_submodule("padded_norm"), nn.Identity)
    convolution, behind = folded.get_submodule("padded").children()
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(behind, ChannelMap) and behind.shift is not None and behind.shift.shape == (1, 64, 7, 7)


class Stem(nn.Module):
    """One convolution behind two norms, whose shifts meet its padding."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.shared = nn.Conv2d(4, 4, 3, stride=2, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = torch.tanh(self.shared(self.first(torch.relu(x))))
        return first + torch.tanh(self.shared(self.second(torch.sigmoid(x))))


def test_a_convolution_called_twice_has_one_bias() -> None:
    with pytest.raises(NotExpressibleError, match="two places"):
        fold_module(source_of(Stem(), "x:float32[B,4,6,5]"))


class Tied(nn.Module):
    """The output projection is the embedding table; only the projection takes the norm up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.act = nn.GELU()
        self.norm = nn.BatchNorm1d(8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.act(self.table(ids))))


class Called(nn.Module):
    """The layer is called behind the norm and behind something else: it cannot be two things."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(torch.tanh(self.layer(self.norm(torch.tanh(x)))))


class Merging(nn.Module):
    """Swin's: neighbouring tokens become one, between transposes that the norm does not own; its shift stays behind."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(8)
        self.reduction = nn.Linear(8, 16, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        merged = torch.cat([x[:, 0::2], x[:, 1::2]], -1)
        return torch.tanh(self.reduction(self.norm(merged.transpose(1, 2)).transpose(1, 2)))


class Flattened(nn.Module):
    """One scale for all, and a shift that differs from token to token, as no bias does."""

    def __init__(self, *, own_bias: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=not own_bias)
        self.bias = nn.Parameter(torch.randn(4)) if own_bias else 0.0
        self.norm = nn.BatchNorm1d(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm((self.layer(x) + self.bias).flatten(1)))


class Functional(nn.Module):
    """A weight of no Linear has no bias to put the shift into."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.norm(torch.tanh(x)) @ self.weight)


def test_a_tied_weight_is_untied() -> None:
    torch.manual_seed(0)
    folded = fold_module(source_of(Tied(), "ids:int64[B]<11"))
    assert isinstance(folded.norm, nn.Identity)
    assert not torch.equal(folded.out.weight, folded.table.weight)


@pytest.mark.parametrize(
    ("module", "reason"), [(Called(), "layer.weight"), (Functional(), "no place for the new bias")]
)
def test_what_the_parameters_cannot_say_is_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(NotExpressibleError, match=reason):
        fold_module(source_of(module, "x:float32[B,8]"))


class Used(nn.Module):
    """Its forward uses a parameter in a way that no operator of the graph tells: only how many entries are large."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.layer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = (self.layer.weight.abs() > 1.0).sum().item()
        return self.layer(self.norm(torch.tanh(x))) * (1.0 + large)


class Reading(Used):
    """It asks its norm for what an Identity does not have."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(self.norm(torch.tanh(x))) * self.norm.num_features


@pytest.mark.parametrize(
    ("module", "reason"), [(Used(), "differs from the folded graph"), (Reading(), "does not run: .*num_features")]
)
def test_a_module_that_comes_out_different_is_never_handed_out(module: nn.Module, reason: str) -> None:
    module.get_parameter("layer.weight").data.uniform_(0.3, 0.9)
    source = source_of(module, "x:float32[B,8]")
    source.module.get_buffer("norm.running_var").fill_(0.1)  # type: ignore[union-attr]
    with pytest.raises(NotExpressibleError, match=reason):
        fold_module(source)


def test_a_wrong_weight_is_seen() -> None:
    source = loaded("vit_un")
    folded = fold_module(source)
    with torch.no_grad():
        folded.get_parameter("blocks.1.mlp.fc1.weight")[3, 5] += 1e-2
    assert source.module is not None
    with scratch() as folder, pytest.raises(NotExpressibleError, match="differs from the folded graph"):
        check_module(source.module, folded, save(graph_of(source), folder / "unfolded.onnx")[0], source.inputs)


def test_a_graph_is_no_module() -> None:
    source = loaded("vit_un")
    graph = graph_of(source)
    with pytest.raises(NotExpressibleError, match="no torch module"):
        folded_module(replace(source, module=None, format="onnx"), graph, analyse(graph))


def test_a_fold_hands_out_its_module_and_writes_it(tmp_path: Path) -> None:
    source = source_of(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)), "x:float32[B,4]")
    assert source.module is not None
    torch.save(source.module, tmp_path / "net.pt")
    options = {"inputs": ["x:float32[B,4]"], "trust": True, "verify": False}
    report = fold(tmp_path / "net.pt", tmp_path / "net.onnx", emit_torch=tmp_path / "folded.pt", **options)
    written = torch.load(tmp_path / "folded.pt", weights_only=False)
    x = torch.randn(5, 4)
    expected = ort.InferenceSession(tmp_path / "net.onnx").run(None, {"x": x.numpy()})[0]
    for module in (report.to_torch(), written):
        np.testing.assert_allclose(module(x).detach().numpy(), expected, atol=1e-5)
    with pytest.raises(OutputError, match="exists already"):
        fold(tmp_path / "net.pt", tmp_path / "again.onnx", emit_torch=tmp_path / "folded.pt", **options)


def test_a_module_that_cannot_be_written_leaves_no_graph_either(tmp_path: Path) -> None:
    torch.save(source_of(Called(), "x:float32[B,8]").module, tmp_path / "net.pt")
    options = {"inputs": ["x:float32[B,8]"], "trust": True}
    with pytest.raises(NotExpressibleError):
        fold(tmp_path / "net.pt", tmp_path / "net.onnx", emit_torch=tmp_path / "folded.pt", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_a_shift_that_stays_is_put_where_the_norm_stood() -> None:
    folded = fold_module(source_of(Merging(), "x:float32[B,6,4]"))
    assert isinstance(folded.norm, ChannelMap)
    assert folded.norm.scale is None and folded.norm.shift is not None
    assert folded.norm.shift.shape == (1, 8, 1)


def flattened(*, own_bias: bool) -> nn.Module:
    source = source_of(Flattened(own_bias=own_bias), "x:float32[B,6,4]")
    assert source.module is not None
    source.module.get_buffer("norm.running_var").fill_(0.7)
    return fold_module(source)


def test_a_bias_that_differs_between_positions_stands_behind_its_linear() -> None:
    folded = flattened(own_bias=False)
    assert isinstance(folded.norm, nn.Identity)
    layer, behind = folded.get_submodule("layer").children()
    assert isinstance(layer, nn.Linear) and layer.bias is not None
    assert isinstance(behind, ChannelMap) and behind.shift is not None and behind.shift.shape == (1, 6, 4)


def test_a_parameter_that_would_differ_between_positions_is_refused() -> None:
    with pytest.raises(NotExpressibleError, match="every position a value of its own"):
        flattened(own_bias=True)
