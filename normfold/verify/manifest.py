"""The manifest: what `fold` writes into a model of its making, and `verify` and `bench` read (docs/report.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfold.errors import GraphError, NormfoldError
from normfold.export.tasks import GRAPHS, Task
from normfold.graph.powers import Rescaling
from normfold.inputs.float16 import half_specs
from normfold.inputs.spec import InputSpec, parse_specs
from normfold.system.failures import one_line
from normfold.system.numbers import HALF
from normfold.system.plain import as_text, parse_json
from normfold.verify.fingerprint import Sketch

if TYPE_CHECKING:
    import onnx_ir as ir


KEY = "normfold"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class FoldedNorm:
    """One norm of the source. status: folded, partial or kept. into: the operators that hold it now."""

    name: str
    kind: str
    status: str
    into: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one graph says of its own making.

    version: of normfold. name, path: the source, and where it lies from the model's folder; None where it has no
    relative path, and never from the root: a model that is handed on says nothing of the disk it comes from. arch,
    arch_args, inputs, ema, allow_unfinished: how the source was loaded. task, graph: what was exported of it
    (export/tasks.py). dtype: what that was converted to, None where it kept its types. center: whether its LayerNorms
    were to become RMSNorms. powers: of two, in which the source was stored before it was folded, None where it was
    folded as it is. norms: all norms of the source. sketch: the recorded outputs, None where the fold was not
    verified.
    """

    version: str
    name: str
    path: str | None
    sha256: str
    arch: str | None
    arch_args: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    ema: bool = False
    allow_unfinished: bool = False
    task: Task = "forward"
    graph: str = ""
    dtype: str | None = None
    center: bool = False
    powers: Rescaling | None = None
    norms: tuple[FoldedNorm, ...] = ()
    sketch: Sketch | None = None

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        """What the model takes; `inputs` is what its source takes."""
        specs = parse_specs(self.inputs)
        return half_specs(specs) if self.dtype == HALF else specs

    @property
    def folded(self) -> tuple[str, ...]:
        """The names of the norms that were folded, in part or whole."""
        return tuple(norm.name for norm in self.norms if norm.status != "kept")

    def dumps(self) -> str:
        """As JSON on one line, keys sorted."""
        place = {} if self.path is None else {"path": self.path}
        content = {
            "schema": SCHEMA,
            "version": self.version,
            "source": {"name": self.name, "sha256": self.sha256, **place},
            "arch": self.arch,
            "arch_args": dict(self.arch_args),
            "task": self.task,
            "graph": self.graph or None,
            "inputs": list(self.inputs),
            "sites": [
                {"name": norm.name, "kind": norm.kind, "status": norm.status, "into": list(norm.into)}
                for norm in self.norms
            ],
            "dtype": self.dtype,
            "center": self.center,
            "powers": None if self.powers is None else self.powers.to_json(),
            "load": {"ema": self.ema, "allow_unfinished": self.allow_unfinished},
            "outputs": None if self.sketch is None else self.sketch.to_json(),
        }
        return json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False, default=str)


def read_manifest(model: ir.Model, path: Path) -> Manifest | None:
    """The manifest of the model at `path`, None if it has none. Raises GraphError for one that cannot be read."""
    text = model.metadata_props.get(KEY)
    if text is None:
        return None
    try:
        content = parse_json(text)
        source, load = content["source"], content.get("load", {})
        task, graph = content.get("task", "forward"), content.get("graph") or ""
        if graph not in GRAPHS[task]:
            raise ValueError(f"task {task} has no graph {graph!r}")
        return Manifest(
            version=as_text(content["version"]),
            name=as_text(source["name"]),
            path=None if source.get("path") is None else as_text(source["path"]),
            sha256=as_text(source["sha256"]),
            arch=None if content["arch"] is None else as_text(content["arch"]),
            arch_args=dict(content["arch_args"]),
            inputs=tuple(map(as_text, content["inputs"])),
            ema=bool(load.get("ema", False)),
            allow_unfinished=bool(load.get("allow_unfinished", False)),
            task=task,
            graph=graph,
            dtype=None if content.get("dtype") is None else as_text(content["dtype"]),
            center=bool(content.get("center", False)),
            powers=Rescaling.from_json(content["powers"]) if content.get("powers") else None,
            norms=tuple(
                FoldedNorm(
                    as_text(site["name"]),
                    as_text(site.get("kind", "")),
                    as_text(site["status"]),
                    tuple(map(as_text, site.get("into", ()))),
                )
                for site in content["sites"]
            ),
            sketch=Sketch.from_json(content["outputs"]) if content.get("outputs") else None,
        )
    # Whatever its parts are taken for and are not.
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, NormfoldError) as error:
        raise GraphError(
            f"{path}: its manifest (`{KEY}` in the metadata) is not one that normfold writes "
            f"({one_line(error)}); name the source with --against"
        ) from error
