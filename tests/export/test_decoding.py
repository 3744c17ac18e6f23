"""Folded decoders say the same: 32 greedy tokens from the module, from its export and from the folded export."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn

from benchmarks.models import randomise
from normfold import errors, save_checkpoint
from normfold.export import to_onnx
from normfold.export.tasks import Task, places
from normfold.inputs.spec import InputSpec, draw, traced_sizes
from normfold.models import create
from normfold.models.seq2seq import PADDING
from normfold.pipeline import outputs
from normfold.pipeline import run as pipeline
from normfold.report.report import Report
from normfold.verify.judge import EXPORT_EDGE, FOLD_EDGE, RUNTIME_EDGE
from tests.support.graphs import session

Array = npt.NDArray[Any]
VOCAB, STEPS = 61, 32
SMALL: dict[str, Any] = {"vocab": VOCAB, "dim": 32, "depth": 2, "heads": 2, "hidden": 48}
DEEPNET: dict[str, Any] = {"vocab": VOCAB, "dim": 32, "heads": 2, "hidden": 48, "encoder_depth": 2, "decoder_depth": 2}


@dataclass(frozen=True)
class Decoding:
    """A model folded for a task, and its graphs as they were exported."""

    module: nn.Module
    report: Report
    folded: tuple[Path, ...]
    unfolded: tuple[Path, ...]


def trained(name: str, specs: Sequence[InputSpec], **config: Any) -> nn.Module:
    """The model with layers that say more than the token before, and the statistics of random inputs."""
    torch.manual_seed(0)
    model = create(name, **config)
    for key, value in model.state_dict().items():
        # A post-norm stream stays bounded; the pre-norm one of a LLaMA would grow threefold in every layer.
        if value.ndim == 2 and "embed" not in key and not key.startswith("model."):
            value.mul_(3.0)
    # Many tokens: statistics of a few would meet outliers in every other text.
    return randomise(model, draw(specs, dict.fromkeys(traced_sizes(specs), 24), seed=0))


def decoding(name: str, config: dict[str, Any], task: Task, specs: list[str], folder: Path, **options: Any) -> Decoding:
    module, path = trained(name, [InputSpec.parse(spec) for spec in specs], **config), folder / "model.pt"
    example = {spec.split(":")[0]: torch.zeros(3, 5, dtype=torch.int64) for spec in specs}
    save_checkpoint(path, module, arch=name, arch_args=config, example_input=example, inputs=specs)
    originals = []

    def export(*args: Any, **given: Any) -> Any:
        originals.append(real(*args, **given))
        return originals[-1]

    real = to_onnx.export
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "export", export)
        report = pipeline.fold(path, folder / "folded.onnx", task=task, strict=True, **options)
    unfolded = places(folder / "unfolded.onnx", task)
    for original, place in zip(originals, unfolded, strict=True):
        outputs.save(original, place)
    return Decoding(module, report, places(folder / "folded.onnx", task), unfolded)


def tokens(*shape: int, high: int = VOCAB) -> torch.Tensor:
    return torch.randint(4, high, shape, generator=torch.Generator().manual_seed(0))


def padded(batch: int, length: int, *, left: bool, high: int = VOCAB) -> torch.Tensor:
    """Sources of different lengths, padded on one side."""
    src = tokens(batch, length, high=high)
    for row in range(1, batch):
        src[row, slice(0, row) if left else slice(length - row, None)] = PADDING
    return src


def said_by_module(model: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor) -> Array:
    """Greedy continuation without a cache: everything is computed anew for every token."""
    length = ids.shape[1]
    with torch.no_grad():
        for _ in range(STEPS):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return ids[:, length:].numpy()


def said_by_graph(path: Path, ids: Array, fixed: dict[str, Array]) -> Array:
    """Greedy continuation with the graph's own cache, which is empty at first."""
    runner = session(path)
    shapes = {value.name: value.shape for value in runner.get_inputs()}
    layers, _, heads, _, head_dim = shapes["past_keys"]
    keys = values = np.zeros((layers, len(ids), heads, 0, head_dim), np.float32)
    found = []
    for _ in range(STEPS):
        feeds = {"ids": ids, "past_keys": keys, "past_values": values, **fixed}
        logits, keys, values = runner.run(["logits", "present_keys", "present_values"], feeds)
        ids = logits[:, -1:].argmax(-1)
        found.append(ids)
    return np.concatenate(found, axis=1)


def translated_by_graphs(paths: tuple[Path, ...], src: torch.Tensor, ids: torch.Tensor) -> Array:
    names = ["source_keys", "source_values"]
    source = dict(zip(names, session(paths[0]).run(names, {"src": src.numpy()}), strict=True))
    return said_by_graph(paths[1], ids.numpy(), {**source, "keep": (src != PADDING).numpy()})


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Decoding:
    ids = [f"ids:int64[B,L]<{VOCAB}"]
    return decoding("llama_350m_prepbn", SMALL, "decoder-with-cache", ids, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Decoding:
    specs = [f"src:int64[B,S<=1024]<{VOCAB}", f"ids:int64[B,L<=1024]<{VOCAB}"]
    return decoding("nmt_un", SMALL, "encoder-decoder", specs, tmp_path_factory.mktemp("nmt"))


def check_decoder(found: Decoding, ids: torch.Tensor) -> None:
    expected = said_by_module(found.module, ids)
    assert expected.shape == (len(ids), STEPS)
    assert len(np.unique(expected)) > 3, "a model that repeats itself would prove little"
    for path in (*found.unfolded, *found.folded):
        np.testing.assert_array_equal(said_by_graph(path, ids.numpy(), {}), expected)


def check_translator(found: Decoding, src: torch.Tensor) -> None:
    start = tokens(len(src), 1)
    expected = said_by_module(lambda ids: found.module(src, ids), start)
    assert len(np.unique(expected)) > 3, "a model that repeats itself would prove little"
    for paths in (found.unfolded, found.folded):
        np.testing.assert_array_equal(translated_by_graphs(paths, src, start), expected)


@pytest.mark.parametrize("prompt", [1, 6])
def test_a_folded_decoder_says_what_the_module_says(llama: Decoding, prompt: int) -> None:
    check_decoder(llama, tokens(3, prompt))


@pytest.mark.parametrize("left", [True, False])
def test_a_folded_translator_says_what_the_module_says(translator: Decoding, left: bool) -> None:
    check_translator(translator, padded(6, 7, left=left))


def test_padding_is_out_of_sight(translator: Decoding) -> None:
    src, padding, start = tokens(2, 5), torch.full((2, 3), PADDING), tokens(2, 1)
    plain = translated_by_graphs(translator.folded, src, start)
    for sides in ([padding, src], [src, padding]):
        np.testing.assert_array_equal(translated_by_graphs(translator.folded, torch.cat(sides, dim=1), start), plain)
    other = translated_by_graphs(translator.folded, torch.cat([src, tokens(2, 3)], dim=1), start)
    assert not np.array_equal(other, plain)


def test_a_decoder_is_verified_with_a_cache_of_every_length(llama: Decoding) -> None:
    report = llama.report
    assert report.task == "decoder-with-cache"
    assert [edge.name for edge in report.edges] == [EXPORT_EDGE, FOLD_EDGE, RUNTIME_EDGE]
    assert report.output is not None
    assert report.output.path == str(llama.folded[0])
    (graph,) = report.graphs
    assert graph.inputs[1] == "past_keys:float32[2,B,2,past>=0,16]"
    inputs = {value.name: value.type.tensor_type.shape.dim for value in onnx.load(llama.folded[0]).graph.input}
    assert [dim.dim_param for dim in inputs["ids"]] == ["B", "L"]
    assert [dim.dim_param or dim.dim_value for dim in inputs["past_keys"]] == [2, "B", 2, "past", 16]


def test_two_graphs_are_written_and_reported(translator: Decoding) -> None:
    report = translator.report
    assert [graph.name for graph in report.graphs] == ["encoder", "decoder"]
    assert [graph.output and graph.output.path for graph in report.graphs] == [str(path) for path in translator.folded]
    assert [len(graph.edges) for graph in report.graphs] == [3, 3]
    assert all(edge.passed for edge in report.edges)
    assert len(report.sites) == 12
    assert {site.status for site in report.sites} == {"folded"}
    folder = translator.folded[0].parent
    assert sorted(path.name for path in folder.glob("folded*")) == ["folded.decoder.onnx", "folded.encoder.onnx"]
    for path, graph in zip(translator.folded, report.graphs, strict=True):
        (text,) = (entry.value for entry in onnx.load(path).metadata_props if entry.key == "normfold")
        told = json.loads(text)
        assert (told["task"], told["graph"], tuple(told["inputs"])) == ("encoder-decoder", graph.name, graph.inputs)
        assert len(told["sites"]) == len(graph.sites)


def test_either_file_in_the_way_stops_the_run(translator: Decoding, tmp_path: Path) -> None:
    source = translator.folded[0].with_name("model.pt")
    for name in ("out.encoder.onnx", "out.decoder.onnx"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(errors.OutputError, match=f"{name} exists already"):
            pipeline.fold(source, tmp_path / "out.onnx", task="encoder-decoder")
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
    place = tmp_path / "out.decoder.onnx"
    with pytest.raises(errors.OutputError, match="both an output and the report"):
        pipeline.fold(source, tmp_path / "out.onnx", task="encoder-decoder", report=place)


@pytest.mark.slow
@pytest.mark.parametrize("left", [True, False])
def test_a_folded_deepnet_says_what_the_module_says(tmp_path: Path, left: bool) -> None:
    specs = [f"src:int64[B,S<=1024]<{VOCAB}", f"ids:int64[B,L<=1024]<{VOCAB}"]
    found = decoding("deepnet_nmt_un", DEEPNET, "encoder-decoder", specs, tmp_path)
    check_translator(found, padded(6, 7, left=left))


@pytest.mark.slow
def test_the_published_sizes_say_what_the_module_says(tmp_path: Path) -> None:
    for folder in ("nmt", "llama"):
        (tmp_path / folder).mkdir()
    specs = ["src:int64[B,S<=1024]<10000", "ids:int64[B,L<=1024]<10000"]
    found = decoding("nmt_un", {}, "encoder-decoder", specs, tmp_path / "nmt")
    for left in (True, False):
        check_translator(found, padded(6, 20, left=left, high=10000))
    ids = ["ids:int64[B,L]<32000"]
    found = decoding("llama_350m_prepbn", {}, "decoder-with-cache", ids, tmp_path / "llama", verify=False)
    check_decoder(found, tokens(1, 8, high=32000))
