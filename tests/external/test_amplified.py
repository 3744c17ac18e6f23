"""Models of `transformers` whose residual streams leave float16: one power of two a stream brings them back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import transformers
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import nn

import normfold
from normfold.checkpoint.in_memory import source_of
from normfold.checkpoint.options import LoadOptions
from normfold.errors import GraphError
from normfold.graph.float16 import to_half
from normfold.pipeline.fold_graph import fold_graph
from normfold.pipeline.options import FoldOptions
from normfold.system.clock import Clock
from normfold.system.numbers import HALF
from normfold.verify.judge import FOLD_EDGE, HALF_EDGE, POWERS_EDGE
from normfold.verify.run import judge
from tests.external.transformers_models import One
from tests.support.graphs import run_float32

pytestmark = pytest.mark.slow

TOKENS = torch.arange(24).reshape(2, 12)
# The yardstick of a converted source: a quarter of the output's size (verify/yardstick_float16.py). Met a hundredfold.
OF_THE_LARGEST = 0.01


def amplified(model: nn.Module, gain: float, *names: str) -> nn.Module:
    """The weights of these names, which write the stream, times `gain`."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names):
                parameter.mul_(gain)
    return One(model.eval(), "last_hidden_state")


def t5() -> nn.Module:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    model = transformers.T5EncoderModel(transformers.T5Config(vocab_size=50, feed_forward_proj="gated-gelu", **sizes))
    return amplified(model, 1e3, "shared", ".o.", ".wo.")


def gemma() -> nn.Module:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.GemmaConfig(vocab_size=50, num_key_value_heads=2, head_dim=8, pad_token_id=None, **sizes)
    config.use_cache = False
    return amplified(transformers.GemmaModel(config), 1e4, "embed_tokens", "o_proj", "down_proj")


def gpt2() -> nn.Module:
    sizes = {"n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1}
    config = transformers.GPT2Config(vocab_size=50, use_cache=False, bos_token_id=0, eos_token_id=1, **sizes)
    return amplified(transformers.GPT2Model(config), 2.5e5, "attn.c_proj", "mlp.c_proj")


def whisper_config() -> transformers.WhisperConfig:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    lengths = {"num_mel_bins": 8, "max_source_positions": 32, "max_target_positions": 32, "use_cache": False}
    return transformers.WhisperConfig(vocab_size=50, init_std=0.1, **heads, **sizes, **tokens, **lengths)


class Hearing(nn.Module):
    """A decoder that always hears the same."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("heard", torch.randn(1, 7, 32))

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """Token numbers (B, L) to its last hidden state."""
        heard = self.get_buffer("heard").expand(input_ids.shape[0], -1, -1)
        found = self.decoder(input_ids=input_ids, encoder_hidden_states=heard)
        return {"last_hidden_state": found.last_hidden_state}


def whisper() -> nn.Module:
    return amplified(Hearing(transformers.WhisperModel(whisper_config()).decoder), 1e5, "out_proj", "fc2")


class LayerNormalization(OpRun):  # type: ignore[misc]
    """As runtimes have it: its statistics in float32, whatever it reads."""

    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **given: Any) -> tuple[NDArray[Any]]:
        wide = x.astype(np.float32)
        centred = wide - wide.mean(axis=-1, keepdims=True)
        found = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + given["epsilon"]) * w
        return ((found if b is None else found + b).astype(x.dtype),)


def in_float16(model: onnx.ModelProto) -> NDArray[np.float64]:
    """Every tensor in float16, which onnxruntime on a CPU keeps in float32 between operators that it has no half of."""
    with np.errstate(all="ignore"):
        found = ReferenceEvaluator(model, new_ops=[LayerNormalization]).run(None, {"x": TOKENS.numpy()})
    return np.asarray(found[0], np.float64)


@pytest.mark.parametrize("make", [t5, gemma, gpt2, whisper])
def test_the_stream_fits_and_float32_is_the_same(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    module = make()
    normfold.fold(module, tmp_path / "wide.onnx", inputs="x:int64[B,L=12<=16]<50", verify=False)
    wide = ir.load(tmp_path / "wide.onnx")
    source = source_of(wide, LoadOptions(inputs=("x:int64[B,L=12<=16]<50",)))
    done = fold_graph(wide, source, FoldOptions(dtype=HALF), Clock(lambda _: None))
    assert done.rescaled is not None and any(tensor.power > 0 for tensor in done.room)
    truth, same = (run_float32(ir.to_proto(one), {"x": TOKENS.numpy()})[0] for one in (wide, done.rescaled))
    assert np.array_equal(truth, same)
    largest = np.abs(truth).max()
    plain = in_float16(ir.to_proto(to_half(wide)))
    assert not np.isfinite(plain).all() or np.abs(plain - truth).max() > 0.25 * largest
    assert np.abs(in_float16(ir.to_proto(done.model)) - truth).max() <= OF_THE_LARGEST * largest


def test_a_stream_that_begins_in_a_gelu_is_multiplied_there(tmp_path: Path) -> None:
    """The position embedding and what the layers write carry the power; what the GELU writes needs a product.

    `verify` exports the program anew and finds the powers in the manifest.
    """
    module = amplified(transformers.WhisperModel(whisper_config()).encoder, 1e6, "out_proj", "fc2")
    batch = torch.export.Dim("B", min=1, max=64)
    program = torch.export.export(module, (torch.randn(2, 8, 64),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "encoder.pt2")
    report = normfold.fold(tmp_path / "encoder.pt2", tmp_path / "out.onnx", dtype=HALF, trust=True)
    edges = {edge.name: edge for edge in report.edges}
    assert not report.failed and edges[POWERS_EDGE].max_abs == 0.0
    assert [w for w in report.warnings if "One Mul by 2^-" in w and "Gelu" in w]
    found = judge(tmp_path / "out.onnx", samples=4, load=LoadOptions(trust=True))
    assert found.passed and {edge.name for edge in found.edges} >= {POWERS_EDGE, HALF_EDGE, FOLD_EDGE}


def test_a_gelu_that_reads_the_stream_is_refused_by_name(tmp_path: Path) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = amplified(transformers.WhisperModel(whisper_config()).encoder, 1e6, "out_proj", "fc2").model
            self.encoder.layer_norm = nn.GELU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Features (B, 8, L) to the mean of the last hidden state."""
            return self.encoder(x).last_hidden_state.mean(-1) * 1e-6

    with pytest.raises(GraphError, match="float16 ends at 65504; no power of two helps") as refused:
        normfold.fold(Reads().eval(), tmp_path / "out.onnx", inputs="x:float32[B,8,64]", dtype=HALF)
    assert "--calibrate" in str(refused.value) and not (tmp_path / "out.onnx").exists()
