from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from normfold.bench import decode
from normfold.bench.runners import ort as ort_runner
from normfold.bench.runners import torch as torch_runner
from normfold.checkpoint.source import Source
from normfold.export.parts import split
from normfold.export.to_onnx import export
from normfold.graph.write import save
from normfold.inputs.spec import InputSpec, draw
from normfold.models import create


def test_a_prompt_is_long_and_its_cache_empty() -> None:
    specs = [
        InputSpec.parse("ids:int64[B,L]<10"),
        InputSpec.parse("past_keys:float32[2,B,4,past>=0,8]"),
        InputSpec.parse("past_values:float32[2,B,4,past>=0,8]"),
    ]
    assert decode.is_decoder(spec.name for spec in specs)
    assert not decode.is_decoder(["ids"])
    assert decode.sizes(specs, 3) == {"B": 3, "L": decode.PROMPT, "past": 0}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Path, dict[str, np.ndarray]]:
    torch.manual_seed(0)
    module = create("char_lm", vocab=50, dim=32, depth=1, heads=2, hidden=48).eval()
    whole = Source(Path("lm.pt"), "", "torch", module, None, (InputSpec.parse("ids:int64[B,L]<50"),))
    source = split(whole, "decoder-with-cache")[""]
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    save(export(source), path)
    assert source.module is not None
    return source.module, path, draw(source.inputs, decode.sizes(source.inputs, 1), seed=0)


def recorded(step: decode.Step, feeds: dict[str, np.ndarray]) -> list[int]:
    """The tokens of one generation."""
    tokens: list[int] = []

    def recording(ids: decode.Ids, keys: object, values: object) -> tuple[decode.Ids, object, object]:
        found = step(ids, keys, values)
        tokens.append(int(found[0][0, 0]))
        return found

    decode.generate(recording, feeds)()
    return tokens


def test_both_runtimes_generate_the_tokens_of_a_model_without_cache(
    decoder: tuple[torch.nn.Module, Path, dict[str, np.ndarray]],
) -> None:
    module, path, feeds = decoder
    ids, expected = torch.from_numpy(feeds["ids"]), []
    with torch.no_grad():
        for _ in range(decode.GENERATED + 1):
            expected.append(int(module(ids)[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[expected[-1]]])], dim=1)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert recorded(ort_runner.step(session, "cpu"), feeds) == expected
    assert recorded(torch_runner.step(module, "cpu"), feeds) == expected
