"""A loaded checkpoint as the parts that a task exports (tasks.py), each with its module, its inputs and its norms.

A decoder has a cache when its forward takes `past_keys` and `past_values`, (layers, N, heads, P, head_dim) each, and an
attribute `cache_shape` says (layers, heads, head_dim). An encoder-decoder has a method `parts` that returns both as
modules: the encoder maps the source to `source_keys` and `source_values`, in the layout of the cache, and the decoder
takes them with `keep` (N, S), True where the source has a token. `models/` is written so, and a user's model can be.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from normfold.checkpoint.source import Source
from normfold.errors import InputSpecError, UsageError
from normfold.export.tasks import GRAPHS, Task
from normfold.inputs.spec import InputSpec

if TYPE_CHECKING:
    from torch import nn

_PAST = ("past_keys", "past_values")
_SOURCE = ("source_keys", "source_values")
# The letter of the positions that a cache holds, which may be none.
_CACHED = "past"


def split(source: Source, task: Task) -> dict[str, Source]:
    """The source of every graph that `task` writes, by the name of the graph.

    The source's own inputs go to the parts that take them by name; what a part takes beyond them follows from its
    `cache_shape`. Raises UsageError for a model that the task is not for, InputSpecError for inputs that do not fit it.
    """
    if task == "forward":
        return {"": source}
    if source.module is None or source.program is not None:
        raise UsageError(f"{source.path} is a graph already, with the inputs it has; --task is for weights of a module")
    modules = [source.module] if task == "decoder-with-cache" else _parts(source.module)
    if not set(_PAST) <= set(_parameters(modules[-1])):
        raise UsageError(
            f"--task {task} is for decoders whose forward takes past_keys and past_values, and that of "
            f"{type(modules[-1]).__name__} takes {', '.join(_parameters(modules[-1]))}{_other(source.module)}"
        )
    taken = {name for module in modules for name in _parameters(module)}
    stray = [spec.name for spec in source.inputs if spec.name not in taken]
    if stray:
        raise InputSpecError(f"no forward takes an input {', '.join(stray)}; they take {', '.join(sorted(taken))}")
    return {name: _part(source, module) for name, module in zip(GRAPHS[task], modules, strict=True)}


def _parts(module: nn.Module) -> list[nn.Module]:
    parts = getattr(module, "parts", None)
    if parts is None:
        raise UsageError(
            "--task encoder-decoder is for models with a method parts() that returns an encoder and a decoder, and "
            f"{type(module).__name__} has none{_other(module)}"
        )
    return [part.eval() for part in parts()]


def _other(module: nn.Module) -> str:
    """The task that the model is for, as the end of a sentence."""
    if hasattr(module, "parts"):
        return "; an encoder and a decoder are --task encoder-decoder"
    if set(_PAST) <= set(_parameters(module)):
        return "; its forward takes past keys and values: --task decoder-with-cache"
    return ""


def _parameters(module: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(module.forward).parameters)


def _part(source: Source, module: nn.Module) -> Source:
    from normfold.norms.detect import find_norms

    specs = {spec.name: spec for spec in source.inputs}
    wanted = _parameters(module)
    if any(name in wanted and name not in specs for name in (*_PAST, *_SOURCE)):
        specs |= {spec.name: spec for spec in _derived(source, module) if spec.name not in specs}
    inputs = tuple(specs[name] for name in wanted if name in specs)
    return replace(source, module=module, inputs=inputs, norms=find_norms(module))


def _derived(source: Source, module: nn.Module) -> Iterator[InputSpec]:
    """The inputs that decoding adds: caches, and the source as the encoder leaves it."""
    shape = getattr(module, "cache_shape", None)
    if shape is None:
        raise UsageError(
            f"{type(module).__name__} does not say what its cache is like: give it an attribute cache_shape = (layers, "
            'heads, head_dim), or say it with --input "past_keys:float32[2,B,8,P>=0,64]" and the like'
        )
    layers, heads, head_dim = shape
    dtype = str(next(module.parameters()).dtype).removeprefix("torch.")
    # Batch and length of the first input: the source, where there is one.
    batch, length = source.inputs[0].dims[:2]
    for name in _PAST:
        yield InputSpec(name, dtype, (layers, batch, heads, _CACHED, head_dim), lows={_CACHED: 0})
    for name in _SOURCE:
        yield InputSpec(name, dtype, (layers, batch, heads, length, head_dim))
    yield InputSpec("keep", "bool", (batch, length))
