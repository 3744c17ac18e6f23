"""Training as people train: compiled, checkpointed, accumulated, in half precision, resumed, on damaged batches."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from normfold.nn.mabn import MABN2d
from normfold.nn.repbn import LinearNorm, RepBN
from normfold.nn.un import UN1d
from tests.nn.norms import CHANNELS, COMPILED, NORMS, STEPS, assert_same, batch, fit, network
from tests.nn.trace import difference, load, train

# Another order of the same float32 operations.
ROUNDING = 1e-5


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("name", NORMS)
def test_every_parameter_takes_part_in_every_step(name: str) -> None:
    model = network(name)

    def run(x: Tensor) -> Tensor:
        assert all(parameter.grad is None for parameter in model.parameters())
        return model(x)

    for step in range(STEPS):
        fit(model, steps=range(step, step + 1), run=run)
        assert all(parameter.grad is not None for parameter in model.parameters())
        model.zero_grad()


@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.slow), "aot_eager"])
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_training_is_the_same(name: str, backend: str) -> None:
    plain, model = network(name), network(name)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(fit(model, run=compiled), fit(plain), rtol=ROUNDING, atol=ROUNDING)
    assert_same(model, plain, ROUNDING)
    x = batch(STEPS)
    model.eval(), plain.eval()
    torch.testing.assert_close(compiled(x), plain(x), rtol=ROUNDING, atol=ROUNDING)


def test_one_compiled_program_serves_every_block() -> None:
    """Nothing of a norm that differs between layers is a constant of the program."""
    torch.manual_seed(0)
    blocks = nn.ModuleList([nn.Sequential(UN1d(4), LinearNorm(4, nn.LayerNorm, RepBN)) for _ in range(3)])
    programs: list[object] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        programs.append(graph)
        return graph.forward

    run = torch.compile(lambda block, x: block(x), fullgraph=True, backend=count)
    x = torch.randn(3, 5, 4, requires_grad=True)
    for block in blocks:
        x = run(block, x)
    assert len(programs) == 1


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.inner, x, use_reentrant=self.reentrant)
        return y


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_a_checkpointed_step_counts_once(name: str, reentrant: bool) -> None:
    plain, model = network(name), network(name)
    model[1] = Checkpointed(model[1], reentrant)
    assert fit(model) == fit(plain)
    assert_same(model, plain)


@pytest.mark.parametrize("name", COMPILED)
def test_checkpointed_around_a_compiled_block(name: str) -> None:
    plain, model = network(name), network(name)
    model[1] = Checkpointed(torch.compile(model[1], fullgraph=True, backend="aot_eager"), False)
    torch.testing.assert_close(fit(model), fit(plain), rtol=ROUNDING, atol=ROUNDING)
    assert_same(model, plain, ROUNDING)


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
def test_checkpointed_inside_a_compiled_model(name: str) -> None:
    plain, model = network(name), network(name)
    model[1] = Checkpointed(model[1], False)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fit(model, run=compiled), fit(plain), rtol=ROUNDING, atol=ROUNDING)
    assert_same(model, plain, ROUNDING)


@pytest.mark.parametrize("name", NORMS)
def test_a_shared_norm_is_checkpointed_call_by_call(name: str) -> None:
    """Recomputed in the reverse order of the calls, each as it was the first time."""

    class Twice(nn.Module):
        def __init__(self, inner: nn.Module, wrapped: bool) -> None:
            super().__init__()
            self.inner, self.wrapped = inner, wrapped

        def forward(self, x: Tensor) -> Tensor:
            for scale in (1.0, 2.0, 0.5):
                x = checkpoint(self.inner, scale * x, use_reentrant=False) if self.wrapped else self.inner(scale * x)
            return x

    plain, model = network(name), network(name)
    plain[1], model[1] = Twice(plain[1], False), Twice(model[1], True)
    assert fit(model) == fit(plain)
    assert_same(model, plain)


@pytest.mark.parametrize("name", NORMS)
def test_forward_passes_may_wait_for_their_backward_passes(name: str) -> None:
    """Two micro-batches at once, as a pipeline has them, checkpointed or not."""
    plain, model = network(name), network(name)
    model[1] = Checkpointed(model[1], False)
    for step in range(0, STEPS, 2):
        for net in (plain, model):
            losses = [net(batch(step + part)).square().mean() for part in (0, 1)]
            for loss in losses:
                loss.backward()
    assert_same(model, plain)
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


# nn.RMSNorm says that it could be faster.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NORMS)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    """Statistics in float32: near those of full precision, whatever the activations are."""
    plain, model = network(name), network(name)

    def run(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            y = model(x)
        assert y.dtype == dtype
        return y.float()

    fit(model, run=run), fit(plain)
    coarse = 0.05 if dtype == torch.bfloat16 else 0.02
    if name != "un-filtered":  # what is an outlier may differ
        assert_same(model, plain, coarse)
    for value in model.state_dict().values():
        assert value.dtype in (torch.float32, torch.int64)


@pytest.mark.parametrize("name", NORMS)
def test_a_scaled_loss_that_overflows_leaves_statistics_alone(name: str) -> None:
    model = network(name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    scales = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(batch(step)).square().sum() * 1e3
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales[0] < 2.0**127, "the first step overflows"
    for name_of, value in model.state_dict().items():
        assert bool(torch.isfinite(value).all()), name_of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NORMS)
def test_a_model_in_half_precision(name: str, dtype: torch.dtype) -> None:
    model = network(name, dtype=dtype)
    losses = fit(model)
    assert all(loss.dtype == dtype and bool(torch.isfinite(loss)) for loss in losses)
    assert all(value.dtype in (dtype, torch.int64) for value in model.state_dict().values())


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_parameters_in_half_precision_and_statistics_in_float32(name: str, sync: bool) -> None:
    """FSDP's mixed precision casts the parameters alone."""
    model, plain = network(name, sync=sync), network(name)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    for step in range(STEPS):
        x = batch(step)
        y, expected = model(x.bfloat16()), plain(x)
        assert y.dtype == torch.bfloat16
        y.square().mean().backward(), expected.square().mean().backward()
    assert {buffer.dtype for buffer in model.buffers()} <= {torch.float32, torch.int64}
    model.eval(), plain.eval()
    y = model(batch(0).bfloat16())
    assert y.dtype == torch.bfloat16
    if name != "un-filtered":  # what is an outlier may differ
        torch.testing.assert_close(y.float(), plain(batch(0)), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("stop", [1, 3, 4, 6])
@pytest.mark.parametrize("name", NORMS)
def test_a_state_dict_resumes_anywhere(name: str, stop: int) -> None:
    whole, first, second = network(name), network(name), network(name)
    fit(whole)
    fit(first, steps=range(stop))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    fit(second, steps=range(stop, STEPS))
    assert_same(second, whole)


@pytest.mark.parametrize("trace_name", ["un_two_windows", "powernorm_groups4", "mabn", "prepbn_llama_sgd", "prepbn_r0"])
def test_the_authors_state_resumes(trace_name: str) -> None:
    """Their buffers after 17 steps, loaded into a new module, and the rest of the trace."""
    trace, stop = load(trace_name), 17
    fresh = trace.build()
    state = fresh.state_dict()
    for key, values in trace.arrays.items():
        if key[:2] in ("b_", "p_"):
            state[key[2:]] = torch.as_tensor(values[stop - 1])
    fresh.load_state_dict(state)
    for step in range(stop, trace.steps):
        for key, found in train(trace, fresh, step).items():
            assert difference(found, trace.arrays[key][step]) <= 1e-6, f"step {step}: {key}"


def test_the_state_of_the_published_detection_class_loads() -> None:
    """It has a schedule and no warm-up."""
    trained, resumed = network("prepbn"), network("prepbn")
    fit(trained, steps=range(4))
    state = trained.state_dict()
    assert int(state.pop("1.0.warm")) == 0
    resumed.load_state_dict(state)
    assert_same(resumed, trained)
    with pytest.raises(RuntimeError, match="warm"):
        resumed.load_state_dict({key: value for key, value in state.items() if not key.endswith(".iter")})


@pytest.mark.parametrize("name", NORMS)
def test_shapes_and_strides_do_not_matter(name: str) -> None:
    """The same tokens as (N, C), (N, L, C), (N, H, W, C) and transposed give the same step."""
    x = batch(0)
    reference = NORMS[name](False).double()
    upstream = torch.randn(20, CHANNELS, dtype=torch.float64)
    flat = x.reshape(20, CHANNELS).double().requires_grad_()
    expected = reference(flat)
    expected.backward(upstream)
    turned = x.double().reshape(4, 5, CHANNELS).permute(2, 1, 0).contiguous().permute(2, 1, 0)
    for shaped in (x.double(), x.double().reshape(2, 2, 5, CHANNELS), turned):
        norm = NORMS[name](False).double()
        shaped = shaped.detach().requires_grad_()
        y = norm(shaped)
        assert y.shape == shaped.shape
        y.backward(upstream.reshape(shaped.shape))
        torch.testing.assert_close(y.reshape(20, CHANNELS), expected)
        torch.testing.assert_close(shaped.grad.reshape(20, CHANNELS), flat.grad)
        assert_same(norm, reference, 1e-12)


def test_mabn_keeps_the_memory_format() -> None:
    x = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    norm, twin = MABN2d(3), MABN2d(3)
    y = norm(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, twin(x.contiguous()))
    assert_same(norm, twin, 1e-6)


@pytest.mark.parametrize("name", NORMS)
def test_a_model_that_is_built_without_memory_trains(name: str) -> None:
    """On the meta device, as large models are, and loaded then."""
    plain = network(name)
    with torch.device("meta"):
        model = network(name)
    model = model.to_empty(device="cpu")
    model.load_state_dict(network(name).state_dict())
    assert fit(model, steps=range(3)) == fit(plain, steps=range(3))
    assert_same(model, plain)


def test_a_copy_is_a_norm_of_its_own() -> None:
    """A copied module (a teacher, an average of weights) shares no memory of calls with its original."""
    norm = UN1d(CHANNELS)
    assert int(copy.deepcopy(norm)._key) != int(norm._key)
    file = io.BytesIO()
    torch.save(norm, file)
    file.seek(0)
    assert int(torch.load(file, weights_only=False)._key) != int(norm._key)
