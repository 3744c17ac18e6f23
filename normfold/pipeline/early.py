"""What can be refused at once, before torch is imported; what takes longer than errors is imported where it is used."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path

from normfold.errors import ArchitectureError, OutputError, UsageError
from normfold.system.files import check_place
from normfold.system.numbers import HALF
from normfold.system.plain import check_source

# Bytes that are looked through for a name.
_MOST_NAMES = 64 << 20
# Ways to give a module names that its source does not show.
_ANY_NAME = {"globals", "locals", "vars", "exec", "eval", "setattr", "modules", "__dict__"}
# What --dtype takes. onnxruntime's CPU provider has no bfloat16 kernels, so nothing could be verified in it.
DTYPES = ("float32", HALF)


def check_sources(*paths: Path | None) -> None:
    """Raise CheckpointError for what cannot be read as a file or a folder."""
    for path in paths:
        if path is not None:
            check_source(path)


def check_factory(spec: object) -> None:
    """Raise ArchitectureError for a `pkg.module:factory` that cannot be one. Nothing of the user's is imported."""
    if not isinstance(spec, str):
        return
    module, colon, name = spec.partition(":")
    if not colon or not module or not name:
        raise ArchitectureError(f"--model {spec!r}: expected pkg.module:factory, such as my_project.models:build_vit.")
    # As `build` will: the current directory comes first.
    here, sys.path[:] = list(sys.path), [os.getcwd(), *sys.path]
    try:
        _check_found(spec, module, name)
    finally:
        sys.path[:] = here


def _check_found(spec: str, module: str, path: str) -> None:
    package = module.split(".")[0]
    try:
        found = importlib.util.find_spec(package)
    except ValueError:
        # Imported already, by a way of its own.
        return
    except ImportError:
        found = None
    if found is None:
        raise ArchitectureError(f"--model {spec}: there is no module {package} here or among the installed packages.")
    for number in range(1, module.count(".") + 1):
        if (found := _inside(found, ".".join(module.split(".")[: number + 1]))) is None:
            return
    name = path.split(".")[0]
    names = _bound(found)
    if names is None or name in names or _inside(found, f"{module}.{name}") is not None:
        return
    close = difflib.get_close_matches(name, names, n=1)
    raise ArchitectureError(
        f"--model {spec}: {module} has no {name!r}{f'; did you mean {close[0]}?' if close else '.'}"
    )


def _inside(package: ModuleSpec, name: str) -> ModuleSpec | None:
    """The module `name` of a package, which is not imported for it; None where its folders do not show one."""
    places = package.submodule_search_locations
    try:
        return None if places is None else PathFinder.find_spec(name, places)
    # A folder without __init__.py inside one that is not imported.
    except KeyError:
        return None


def _bound(module: ModuleSpec) -> set[str] | None:
    """The names at the top of a module, out of its source; None where the source does not show all of them."""
    if not isinstance(module.loader, SourceFileLoader):
        return None
    try:
        with warnings.catch_warnings():
            # Of an import they are heard, not of a look.
            warnings.simplefilter("ignore")
            tree = ast.parse(module.loader.get_data(module.loader.path))
    # Importing it says what is wrong.
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names, todo = set[str](), list[ast.AST](tree.body)
    for node in ast.walk(tree):
        if getattr(node, "id", getattr(node, "attr", None)) in _ANY_NAME:
            return None
        if isinstance(node, ast.Global):
            names.update(node.names)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            todo += node.decorator_list
        else:
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.MatchAs | ast.MatchStar | ast.MatchMapping):
                names.add((node.rest if isinstance(node, ast.MatchMapping) else node.name) or "_")
            todo += ast.iter_child_nodes(node)
    return None if names & {"*", "__getattr__"} else names


def check_formats(*paths: Path | None) -> None:
    """Raise CheckpointError for a suffix, or a folder, that no checkpoint format has, and for an empty file."""
    # Here, and after a look whether there is a file at all, which takes less.
    from normfold.checkpoint.formats import format_of

    for path in paths:
        if path is not None:
            format_of(path)


def check_output(path: Path) -> None:
    """Raise UsageError for the name of a graph that does not end in .onnx, OutputError where none can be written."""
    check_place(path)
    if path.suffix.lower() != ".onnx":
        raise UsageError(
            f"{path}: fold writes ONNX; end the name in .onnx, such as -o {path.with_suffix('').name or 'out'}.onnx "
            "(--emit-torch writes the folded torch module)"
        )


def check_kept(graph: Path, opset: int | None, target: str | None) -> None:
    """Raise UsageError where a source that is a graph is asked for in another opset."""
    if opset is not None or target is not None:
        asked = "--target" if opset is None else "--opset"
        raise UsageError(f"{graph} is an ONNX file and keeps its opset; {asked} is for checkpoints that are exported")


def check_opset(source: Path, opset: int | None, target: str | None) -> None:
    """Raise UsageError for an opset that cannot be written, whatever is installed to run it, and as `check_kept`."""
    from normfold.checkpoint.formats import format_of

    if format_of(source).is_graph:
        check_kept(source, opset, target)
    if opset is None:
        return
    import onnx.defs

    from normfold.export.targets import LOWEST_OPSET

    newest = onnx.defs.onnx_opset_version()
    if not LOWEST_OPSET <= opset <= newest:
        raise UsageError(f"--opset {opset}: the exporter writes opsets {LOWEST_OPSET} to {newest}")


def check_names(arch: str | None, inputs: Sequence[str]) -> None:
    """Raise ArchitectureError for an --arch that is not built in, InputSpecError for an --input that says nothing."""
    # Here, for neither is needed where nothing of the kind is given.
    if inputs:
        from normfold.inputs.spec import parse_specs

        parse_specs(inputs)
    if arch is not None:
        from normfold.models import catalogue

        catalogue.check_name(arch)


def check_only(source: Path, names: Sequence[str]) -> None:
    """Raise UsageError for a name of `--only` that no norm of this file can have, for nothing in it is called so.

    What else is mistyped is found once the norms are known. No name counts where the file does not show its own.
    """
    content = _names_in(source) if names else None
    if content is None:
        return
    for name in names:
        words = re.findall(r"[^\W\d_]{2,}", name)
        if source.suffix != ".onnx":
            # A norm has weights, and its weights have its name; but for DeepNorm's alpha, which is a number.
            words = [part for part in name.split(".") if not part.isdigit() and part != "alpha"][-1:]
        if words and not any(word.encode() in content for word in words):
            raise UsageError(f"--only: {source} has no norm {name}; `normfold inspect` lists those it has")


def _names_in(path: Path) -> bytes | None:
    """What of a file holds the names of its tensors as they are; None where the file does not show that by itself.

    Not asked of the records of formats, which import numpy: a mistyped name is refused before anything is imported.
    """
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                size = int.from_bytes(file.read(8), "little")
                return file.read(size) if size <= _MOST_NAMES else None
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found = [one for one in archive.infolist() if one.filename.rpartition("/")[2] == "data.pkl"]
                plain = len(found) == 1 and found[0].compress_type == zipfile.ZIP_STORED
                return archive.read(found[0]) if plain and found[0].file_size <= _MOST_NAMES else None
        if not path.is_file() or path.stat().st_size > _MOST_NAMES:
            return None
        content = path.read_bytes()
        # Graphs and pickles hold names as they are; other formats may be compressed.
        return content if path.suffix == ".onnx" or content.startswith(b"\x80") else None
    # Damaged or encrypted: loading it says what is wrong.
    except (OSError, ValueError, RuntimeError, zipfile.BadZipFile):
        return None


def check_places(source: Path | None, outputs: Sequence[Path], reports: Sequence[Path], *, force: bool) -> None:
    """Raise OutputError now for what would otherwise fail after minutes of work."""
    for place in (*outputs, *reports):
        check_place(place)
        # A source that cannot even be looked for is an error of its own.
        if source is not None and place.exists() and os.path.exists(source) and place.samefile(source):
            raise OutputError(f"{place} is the source itself; write to another file")
        if place.exists() and not force:
            raise OutputError(f"{place} exists already; choose another name, or replace it with --force")
    taken = [place.absolute() for place in outputs]
    for report in reports:
        if report.absolute() in taken:
            raise OutputError(f"{report} cannot be both an output and the report")
        taken.append(report.absolute())


def check_dtype(dtype: str | None) -> str | None:
    """The type to convert to, None for none. Raises UsageError for a type that no graph can be converted to."""
    if dtype == "bfloat16":
        raise UsageError(
            "--dtype bfloat16: onnxruntime has no bfloat16 operators on a CPU (MatMul, Add, Conv, Softmax ...), so the "
            "result could be neither run nor verified; use --dtype float16"
        )
    if dtype not in (None, *DTYPES):
        raise UsageError(f"--dtype {dtype}: choose from {', '.join(DTYPES)}")
    return HALF if dtype == HALF else None
