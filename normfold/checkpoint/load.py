"""Checkpoint in, evaluation-mode source out: the file, its weights in their architecture, its inputs and its norms."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from normfold.checkpoint import archive
from normfold.checkpoint import build as architecture
from normfold.checkpoint.build import Built
from normfold.checkpoint.recognise import defaults
from normfold.errors import InputSpecError, NormStateError, OutputError, UsageError
from normfold.inputs.of_model import graph_inputs, matching, program_inputs, with_vocabulary
from normfold.inputs.spec import DTYPES, InputSpec, parse_specs
from normfold.models import catalogue
from normfold.norms.detect import NormModule, check_norms, find_norms

FORMAT = "normfold/1"


@dataclass(frozen=True, slots=True)
class Source:
    """A loaded checkpoint.

    sha256: of the file; of a folder as `hub.sha256_of` has it. format: torch, safetensors, pt2 or onnx. module: in eval
    mode on the CPU (None for onnx). program: pt2 only. graph: onnx only, its external data mapped but not read. arch:
    the built-in name or `pkg.module:factory` that the module was built from. trusted: the file was unpickled with the
    full unpickler.
    """

    path: Path
    sha256: str
    format: str
    module: nn.Module | None
    graph: ir.Model | None
    inputs: tuple[InputSpec, ...]
    arch: str | None = None
    arch_args: dict[str, Any] = field(default_factory=dict)
    norms: tuple[NormModule, ...] = ()
    warnings: tuple[str, ...] = ()
    trusted: bool = False
    program: torch.export.ExportedProgram | None = None


def load_checkpoint(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
    ema: bool = False,
    trust: bool = False,
    allow_unfinished: bool = False,
) -> Source:
    """Load a checkpoint without running anything in it.

    path: a file, or a folder of the Hugging Face hub. arch: name in the built-in registry (default: the checkpoint's
    own, or the one recognised from its names and shapes). model: "pkg.module:factory" of the user's own code.
    model_args: arguments of either. inputs: specifications such as "x:float32[B,3,32,32]" (default: those in the
    checkpoint or the graph, or of the built-in architecture).
    ema: take the averaged weights. trust: unpickle the file, which can run code in it. allow_unfinished: accept a
    PRepBN whose schedule has not ended.
    Raises CheckpointError, ArchitectureError, NormStateError, InputSpecError or GraphError; nothing is ever written.
    """
    path = Path(path)
    kind = archive.format_of(path)
    if kind in ("pt2", "onnx"):
        if ema or any(value is not None for value in (arch, model, model_args)):
            raise UsageError(f"{path} holds its own architecture and weights; --arch, --model and --ema do not apply.")
        source = _load_graph(path, inputs) if kind == "onnx" else _load_program(path, inputs, trust=trust)
    else:
        if arch is not None and model is not None:
            raise UsageError("--arch and --model both give an architecture; give one of them.")
        source = _load_state(path, kind, (arch, model, model_args), inputs, ema=ema, trust=trust)
    if source.module is None:
        return source
    notes = check_norms(source.module, source=str(path), allow_unfinished=allow_unfinished)
    return replace(source, norms=find_norms(source.module), warnings=(*source.warnings, *notes))


def _load_state(
    path: Path,
    kind: str,
    wanted: tuple[str | None, str | None, Mapping[str, Any] | None],
    inputs: Sequence[str],
    *,
    ema: bool,
    trust: bool,
) -> Source:
    """A torch or safetensors file, or a folder: a state dict for an architecture, or (trusted) a whole module."""
    if path.is_dir():
        contents = archive.read_folder(path, trust=trust, ema=ema)
    elif kind == "safetensors":
        contents = archive.read_safetensors(path, ema=ema)
    else:
        contents = archive.read_torch(path, trust=trust, ema=ema)
    arch, model, model_args = wanted
    if contents.module is not None and arch is None and model is None:
        built = Built(contents.module, f"pickled {type(contents.module).__name__}", {})
        warnings: tuple[str, ...] = ()
    else:
        state = (contents.state if contents.module is None else contents.module.state_dict()) or {}
        built = architecture.build(
            model=model, model_args=model_args, arch=arch, found=contents, state=state, source=str(path)
        )
        family = catalogue.family_of(built.name)
        computed = family.computed if family is not None else ()
        loaded = architecture.load_weights(built.module, built.state, source=str(path), computed=computed)
        warnings = (*built.warnings, *loaded)
    if contents.averaged is not None:
        key = contents.averaged
        warnings = (*warnings, f"The file holds averaged weights too, under {key!r}, which --ema takes instead.")
    module = built.module.cpu().eval()
    if any(parameter.dtype in (torch.float16, torch.bfloat16) for parameter in module.parameters()):
        module = module.float()
        warnings = (*warnings, "The module is in half precision and was converted to float32.")
    specs = _input_specs(path, inputs or contents.inputs or _own_inputs(built))
    return Source(
        path=path,
        sha256=archive.sha256_of(path),
        format=kind,
        module=module,
        graph=None,
        inputs=with_vocabulary(specs, module),
        arch=built.name,
        arch_args=built.args,
        warnings=warnings,
        trusted=trust and kind == "torch",
    )


def _own_inputs(built: Built) -> tuple[str, ...]:
    """The inputs of a built-in architecture in this size; none for the user's own."""
    if catalogue.family_of(built.name) is None:
        return ()
    return catalogue.inputs_of(built.name, {**defaults(built.name), **built.args})


def _input_specs(path: Path, texts: Sequence[str]) -> tuple[InputSpec, ...]:
    if not texts:
        raise InputSpecError(
            f"{path} does not say what its inputs are; give each with --input NAME:DTYPE[DIMENSIONS], for example "
            '--input "x:float32[B,3,224,224]" (letters are dynamic axes).'
        )
    return parse_specs(texts)


def _load_graph(path: Path, inputs: Sequence[str]) -> Source:
    graph = archive.read_graph(path)
    found = graph_inputs(graph, path)
    specs = matching(parse_specs(inputs), found, path) if inputs else found
    return Source(path, archive.sha256_of(path), "onnx", None, graph, specs)


def _load_program(path: Path, inputs: Sequence[str], *, trust: bool) -> Source:
    program = archive.read_program(path, trust=trust)
    _check_captured_in_eval(program, path)
    found = program_inputs(program)
    specs = matching(parse_specs(inputs), found, path) if inputs else found
    return Source(
        path=path,
        sha256=archive.sha256_of(path),
        format="pt2",
        module=program.module(),
        graph=None,
        inputs=specs,
        trusted=True,
        program=program,
    )


def _check_captured_in_eval(program: torch.export.ExportedProgram, path: Path) -> None:
    """A program keeps the mode it was captured in; in training mode its batch norms ignore their running statistics."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.batch_norm.default and node.args[5]:
            raise NormStateError(
                f"{path} was captured in training mode ({node.name} normalises each batch by itself); call "
                "model.eval() before torch.export.export."
            )


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    arch: str,
    arch_args: Mapping[str, Any] | None = None,
    example_input: torch.Tensor | Mapping[str, torch.Tensor],
    inputs: Sequence[str] = (),
) -> None:
    """Write a checkpoint that `load_checkpoint` reads without any flag.

    arch, arch_args: name in the built-in registry and its (JSON-like) arguments. example_input: one tensor, or one for
    each input by name; its first axis is taken for a dynamic batch. inputs: specifications, where that is not so.
    The file appears whole or not at all. Raises UsageError, InputSpecError and OutputError.
    """
    path = Path(path)
    suffixes = [suffix for suffix, kind in archive.SUFFIXES.items() if kind == "torch"]
    if not path.name.lower().endswith(tuple(suffixes)):
        raise UsageError(f"{path}: save_checkpoint writes torch files; end the name in {', '.join(suffixes)}.")
    args = dict(arch_args or {})
    try:
        json.dumps(args)
    except (TypeError, ValueError) as e:
        raise UsageError(f"arch_args must hold nothing but numbers, strings, lists and dicts ({e}).") from e
    examples = dict(example_input) if isinstance(example_input, Mapping) else {_first_input(model): example_input}
    batched = tuple(_batched(name, tensor) for name, tensor in examples.items())
    specs = parse_specs(inputs) if inputs else with_vocabulary(batched, model)
    _check_examples(specs, examples)
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    texts = [str(spec) for spec in specs]
    _write_whole(path, {"format": FORMAT, "state_dict": state, "arch": arch, "arch_args": args, "inputs": texts})


def _first_input(model: nn.Module) -> str:
    return next(iter(inspect.signature(model.forward).parameters), "x")


def _batched(name: str, tensor: torch.Tensor) -> InputSpec:
    dims: tuple[int | str, ...] = ("B", *tensor.shape[1:]) if tensor.ndim else ()
    return InputSpec(name, str(tensor.dtype).removeprefix("torch."), dims)


def _check_examples(specs: tuple[InputSpec, ...], examples: Mapping[str, torch.Tensor]) -> None:
    if len(specs) != len(examples):
        raise InputSpecError(f"{len(specs)} inputs are specified and {len(examples)} given as examples.")
    for spec, (name, tensor) in zip(specs, examples.items(), strict=True):
        own = _batched(name, tensor)
        fits = len(spec.dims) == tensor.ndim and all(
            isinstance(dim, str) or dim == size for dim, size in zip(spec.dims, tensor.shape, strict=True)
        )
        if spec.dtype != own.dtype or spec.dtype not in DTYPES or not fits:
            raise InputSpecError(f"input {spec} does not fit its example of {own.dtype}{list(tensor.shape)}.")


def _write_whole(path: Path, content: Mapping[str, Any]) -> None:
    """Write beside the target, then rename, so that an interrupted run never leaves half a checkpoint."""
    # Not longer than the name itself, which may be as long as a name can be.
    temporary = path.with_name(f".normfold-{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            torch.save(dict(content), file)
        temporary.replace(path)
    except OSError as e:
        raise OutputError(f"{path} cannot be written: {e.strerror or e}.") from e
    finally:
        temporary.unlink(missing_ok=True)
