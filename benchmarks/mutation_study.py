"""What the judge catches and what it lets pass: fills in the study in docs/verification.md.

    python -m benchmarks.mutation_study [--mutations 560] [--folds 210] [--of-opset 100] [--seed 0]
                                        [-o docs/verification.md]

Mutations: each fixture is exported and folded, and so are small ONNX files of every opset in tests/opset_graphs.py,
`--of-opset` mutants of each (with 0 mutants a part is left as it is); then one thing in the folded graph is made wrong,
as folding tools have been wrong, and the judge compares the mutant with the original. How much a mutation really
changes is measured apart: mutant and folded graph in float64 by normfold's evaluator, on inputs of other seeds than the
judge's, as the largest change of an output in units of its bound, the larger of those that the original's own error
sets on these inputs and on the judge's. Beyond 1 it is no rounding any more and has to be caught.

Right folds: random subsets of the norms of every fixture, each judged on inputs of another seed, and random networks;
twice as many ONNX files of all opsets together as mutants of one.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from benchmarks.fill_in import fill_in
from normfold.analysis.analyse import analyse
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.source import Source
from normfold.export.to_onnx import export
from normfold.graph.float64 import Outputs, evaluator_of, read_again, run_evaluator
from normfold.graph.prepare import prepare
from normfold.graph.types import Model
from normfold.graph.write import save
from normfold.inputs.cases import Case, draw_cases
from normfold.inputs.spec import InputSpec, parse_specs
from normfold.rewrite.graph import rewrite
from normfold.verify.metrics import difference
from normfold.verify.truth import establish
from normfold.verify.yardstick import Yardstick
from tests.random.random_graphs import network
from tests.support.graphs import as_float32
from tests.verify import opset_graphs

FIXTURES = Path(__file__).parent.parent / "fixtures"
# Those with a LayerNorm or RMSNorm fold its weight and bias (--norm-affine); they have epsilons to get wrong.
NAMES = ("vit_un", "vit_prepbn", "vit_bn", "vit_ln", "postnorm_un", "postnorm_bn", "convnet_bn", "char_lm_prepbn")
SAMPLES = 32
# Inputs on which the true size of a mutation is measured: seeds that the judge does not draw.
PROBES, PROBE_SEED = 8, 10_000
RELATIVE = 1e-3
ALPHA = 0.05

STUDY, OF_OPSETS = "study", "study of opsets"  # where the page has them

Mutation = Callable[[ModelProto, np.random.Generator], bool]


@dataclass(frozen=True)
class Subject:
    """A folded fixture, ready to be judged. probes, allowed: its float64 outputs on the probing inputs, and bounds."""

    name: str
    folder: Path
    source: Source
    original: Model
    model: ModelProto
    yardstick: Yardstick
    probes: tuple[Outputs, ...]
    allowed: list[float]


@dataclass(frozen=True)
class Result:
    """One mutant. change: in units of the bound, in float64."""

    kind: str
    subject: str
    change: float
    caught: bool


def subject(name: str, folder: Path) -> Subject:
    """Export and fold a fixture, and lay the yardstick."""
    return _subject(name, load_checkpoint(FIXTURES / f"{name}.pt"), folder, norm_affine=name.endswith("_ln"))


def opset_subject(opset: int, kind: str, seed: int, folder: Path) -> Subject:
    """Fold an ONNX file of this opset, and lay the yardstick."""
    return _subject(f"opset {opset}", load_checkpoint(_file(opset, kind, seed, folder)), folder)


def _file(opset: int, kind: str, seed: int, folder: Path) -> Path:
    path = folder / f"{opset}-{kind}-{seed}.source.onnx"
    onnx.save(opset_graphs.network(opset, kind, seed), path)
    return path


def _subject(name: str, source: Source, folder: Path, *, norm_affine: bool = False) -> Subject:
    original = prepare(export(source))
    plan = analyse(original, norms=source.norms, norm_affine=norm_affine)
    stem = Path(source.path).stem
    unfolded, folded = folder / f"{stem}.onnx", folder / f"{stem}.folded.onnx"
    save(original, unfolded)
    save(rewrite(original, plan), folded)
    truth = establish(source.module, unfolded, source.inputs, cases=draw_cases(source.inputs, count=SAMPLES))
    cases = draw_cases(source.inputs, seed=PROBE_SEED, count=PROBES)
    probing = Yardstick.lay(establish(source.module, unfolded, source.inputs, cases=cases), unfolded)
    probes, yardstick = tuple(run_graph(folded, cases)), Yardstick.lay(truth, unfolded)
    # Of the outputs: which parts of them are judged apart depends on the inputs.
    allowed = [max(pair) for pair in zip(_allowed(probing), _allowed(yardstick), strict=False)]
    return Subject(name, folder, source, original, onnx.load(folded), yardstick, probes, allowed)


def run_graph(path: Path, cases: Sequence[Case]) -> list[Outputs]:
    """What a graph computes in float64."""
    evaluator = evaluator_of(read_again(path), path)
    return [run_evaluator(evaluator, case, path) for case in cases]


def _allowed(yardstick: Yardstick) -> list[float]:
    return [bound * scale for bound, scale in zip(yardstick.bounds(yardstick.own()), yardstick.scales, strict=True)]


def judge_mutant(of: Subject, kind: str, rng: np.random.Generator) -> Result | None:
    """Make one mutant and judge it; None where the graph has nothing of that kind."""
    mutant = ModelProto()
    mutant.CopyFrom(of.model)
    if not MUTATIONS[kind](mutant, rng):
        return None
    path = of.folder / "mutant.onnx"
    onnx.save(mutant, path)
    cases = draw_cases(of.source.inputs, seed=PROBE_SEED, count=PROBES)
    change = max(
        difference(now, before) / of.allowed[output]
        for values, expected in zip(run_graph(path, cases), of.probes, strict=True)
        for output, (now, before) in enumerate(zip(values, expected, strict=True))
    )
    return Result(kind, of.name, change, not of.yardstick.fold_edge(of.yardstick.measure(path)).passed)


def _tensors(model: ModelProto, rank: int) -> list[TensorProto]:
    """Float constants of this rank (0: any of at least 2) that operators read as weights or biases."""
    sizes = {name for node in model.graph.node if node.op_type in ("Resize", "Upsample") for name in node.input[1:]}
    stored = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and t.name not in sizes]
    floats = [t for t in stored if min(t.dims, default=0) > 1]
    return [t for t in floats if (len(t.dims) == rank if rank else len(t.dims) >= 2)]


def _edit(tensor: TensorProto, values: np.ndarray) -> bool:
    changed = not np.array_equal(numpy_helper.to_array(tensor), values)
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values.astype(np.float32)), tensor.name))
    return changed


def _pick(found: list[TensorProto], rng: np.random.Generator) -> tuple[TensorProto, np.ndarray] | None:
    if not found:
        return None
    tensor = found[int(rng.integers(len(found)))]
    return tensor, numpy_helper.to_array(tensor).copy()


def weight_entry(model: ModelProto, rng: np.random.Generator) -> bool:
    """One entry of a weight, off by a factor of 1.001."""
    if (picked := _pick(_tensors(model, 0), rng)) is None:
        return False
    tensor, values = picked
    values.flat[int(rng.integers(values.size))] *= 1 + RELATIVE
    return _edit(tensor, values)


def bias_entry(model: ModelProto, rng: np.random.Generator) -> bool:
    """One entry of a bias, dropped."""
    if (picked := _pick(_tensors(model, 1), rng)) is None:
        return False
    tensor, values = picked
    values[int(rng.integers(values.size))] = 0.0
    return _edit(tensor, values)


def swapped_channels(model: ModelProto, rng: np.random.Generator) -> bool:
    """Two channels of a weight, swapped, on either side."""
    if (picked := _pick(_tensors(model, 0), rng)) is None:
        return False
    tensor, values = picked
    axis = int(rng.integers(2))
    one, other = rng.choice(values.shape[axis], 2, replace=False)
    order = np.arange(values.shape[axis])
    order[[one, other]] = other, one
    return _edit(tensor, np.take(values, order, axis))


def transposed(model: ModelProto, rng: np.random.Generator) -> bool:
    """A square weight, transposed."""
    square = [t for t in _tensors(model, 2) if t.dims[0] == t.dims[1]]
    if (picked := _pick(square, rng)) is None:
        return False
    return _edit(picked[0], picked[1].T)


def wrong_epsilon(model: ModelProto, rng: np.random.Generator) -> bool:
    """The epsilon of a norm that stays, ten times or a tenth of what it should be."""
    found = [a for node in model.graph.node for a in node.attribute if a.name == "epsilon"]
    if not found:
        return False
    found[int(rng.integers(len(found)))].f *= float(rng.choice([10.0, 0.1]))
    return True


def forgotten_alpha(model: ModelProto, rng: np.random.Generator) -> bool:
    """A folded bias from which alpha times what it was is missing (as in a published merge), alpha 0.05."""
    folded = [t for t in _tensors(model, 1) if ".folded" in t.name or "bias" in t.name]
    if (picked := _pick(folded, rng)) is None:
        return False
    return _edit(picked[0], picked[1] * (1 - ALPHA))


def border_shift(model: ModelProto, rng: np.random.Generator) -> bool:
    """A shift moved through a zero-padded Conv as if the padding held it too: right inside, wrong at the border."""
    found = [node for node in model.graph.node if node.op_type == "Conv" and _padded(node) and len(node.input) == 3]
    if not found:
        return False
    node = found[int(rng.integers(len(found)))]
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weight, bias = (numpy_helper.to_array(tensors[name]) for name in node.input[1:3])
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    shift = rng.normal(0.0, 0.1, weight.shape[1] * group)
    per_output = np.repeat(shift.reshape(group, -1), weight.shape[0] // group, axis=0)
    moved = bias + np.einsum("oi,oi...->o", per_output, weight.reshape(*weight.shape[:2], -1).sum(-1))
    name = f"{node.name}.mutant"
    constants = {f"{name}.shift": shift.reshape(1, -1, *(1,) * (weight.ndim - 2)), f"{name}.bias": moved}
    for key, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), key))
    place = list(model.graph.node).index(node)
    before = helper.make_node("Sub", [node.input[0], f"{name}.shift"], [f"{name}.moved"], name)
    node.input[0], node.input[2] = f"{name}.moved", f"{name}.bias"
    model.graph.node.insert(place, before)
    return True


def _padded(node: NodeProto) -> bool:
    return any(attribute.name == "pads" and any(attribute.ints) for attribute in node.attribute)


def wrong_group(model: ModelProto, rng: np.random.Generator) -> bool:
    """A grouped convolution whose weights belong to the group beside theirs."""
    grouped = [
        node.input[1]
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose") and any(a.name == "group" and a.i > 1 for a in node.attribute)
    ]
    if (picked := _pick([t for t in model.graph.initializer if t.name in grouped], rng)) is None:
        return False
    return _edit(picked[0], np.roll(picked[1], int(rng.integers(1, picked[1].shape[0])), axis=0))


MUTATIONS: dict[str, Mutation] = {
    "weight entry × 1.001": weight_entry,
    "bias entry dropped": bias_entry,
    "channels swapped": swapped_channels,
    "square weight transposed": transposed,
    "wrong epsilon": wrong_epsilon,
    "alpha × bias forgotten": forgotten_alpha,
    "shift moved through zero padding": border_shift,
    "wrong group": wrong_group,
}


def mutants(subjects: list[Subject], count: int, seed: int) -> Iterator[Result]:
    """`count` mutants, every kind in turn over every fixture that has something of the kind."""
    rng, made = np.random.default_rng(seed), 0
    while made < count:
        for kind in MUTATIONS:
            for of in subjects:
                result = judge_mutant(of, kind, rng)
                if result is not None and made < count:
                    made += 1
                    yield result


def opset_mutants(count: int, seed: int) -> Iterator[Result]:
    """`count` mutants of every opset, of two networks of every kind."""
    for opset in opset_graphs.OPSETS:
        with tempfile.TemporaryDirectory() as folder:
            pairs = itertools.product(opset_graphs.KINDS, (seed, seed + 1))
            yield from mutants([opset_subject(opset, *pair, Path(folder)) for pair in pairs], count, seed)


def right_folds(subjects: list[Subject], count: int, seed: int) -> Iterator[tuple[str, bool]]:
    """(what, passed) of right folds: subsets of the norms of the fixtures in turn with random networks."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        if number % 2:
            drawn = network(100_000 + seed + number)
            original = prepare(ir.from_proto(as_float32(drawn.model)))
            length, channels = drawn.feeds["x"].shape[1:]
            yield (
                "random network",
                _passes(original, None, parse_specs([f"x:float32[B,{length},{channels}]"]), None, seed),
            )
            continue
        of = subjects[number // 2 % len(subjects)]
        names = [norm.name for norm in of.source.norms]
        only = {name for name in names if rng.random() < 0.6}
        yield of.name, _passes(of.original, of.source, of.source.inputs, only, seed + 100 * number)


def right_opset_folds(count: int, seed: int) -> Iterator[tuple[str, bool]]:
    """The same of ONNX files, all opsets and kinds in turn: all of their norms, or some."""
    rng = np.random.default_rng(seed)
    turns = itertools.cycle(itertools.product(opset_graphs.OPSETS, opset_graphs.KINDS))
    for number, (opset, kind) in zip(range(count), turns):  # noqa: B905 the turns have no end
        with tempfile.TemporaryDirectory() as folder:
            source = load_checkpoint(_file(opset, kind, 1000 + seed + number, Path(folder)))
        original = prepare(export(source))
        names = [site.name for site in analyse(original).sites]
        only = {name for name in names if rng.random() < 0.6} if number % 2 else None
        yield f"opset {opset}, {kind}", _passes(original, None, source.inputs, only, seed + 100 * number)


def _passes(
    original: Model, source: Source | None, specs: tuple[InputSpec, ...], only: set[str] | None, seed: int
) -> bool:
    norms = () if source is None else source.norms
    with tempfile.TemporaryDirectory() as folder:
        unfolded, folded = Path(folder) / "a.onnx", Path(folder) / "b.onnx"
        save(original, unfolded)
        save(rewrite(original, analyse(original, norms=norms, norm_affine=True, only=only)), folded)
        cases = draw_cases(specs, seed=seed, count=SAMPLES)
        truth = establish(None if source is None else source.module, unfolded, specs, cases=cases)
        return all(edge.passed for edge in Yardstick.lay(truth, unfolded).compare(folded))


def table(results: list[Result], by: str = "mutation") -> list[str]:
    """One row per kind of mutation, or per subject."""
    lines = [
        f"| {by} | mutants | beyond its bound | of these caught | within its bound | of these caught |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    kinds = MUTATIONS if by == "mutation" else dict.fromkeys(result.subject for result in results)
    for kind in (*kinds, "all"):
        rows = [result for result in results if kind in ("all", result.kind if by == "mutation" else result.subject)]
        beyond, within = [r for r in rows if r.change > 1], [r for r in rows if r.change <= 1]
        caught = [sum(row.caught for row in part) for part in (beyond, within)]
        lines.append(f"| {kind} | {len(rows)} | {len(beyond)} | {caught[0]} | {len(within)} | {caught[1]} |")
    return lines


def _told(results: list[Result], of: str) -> str:
    missed = [
        f"{r.change:.2f} times the bound: {r.kind}, {r.subject}" for r in results if r.change > 1 and not r.caught
    ]
    smallest = min((result.change for result in results if result.caught), default=0.0)
    return (
        f"{len(results)} mutants of {of}: {len(missed)} beyond the bound were missed"
        f"{f' (by {chr(44).join(missed)})' if missed else ''}. "
        f"The smallest change that was caught is {smallest:.2g} times the bound."
    )


def _alarms(folds: list[tuple[str, bool]]) -> str:
    alarms = [what for what, passed in folds if not passed]
    return f"{len(folds)} right folds, {len(alarms)} false alarms{f' ({alarms})' if alarms else ''}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=560)
    parser.add_argument("--folds", type=int, default=210)
    parser.add_argument("--of-opset", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="the page to fill in; by default the study is printed")
    options = parser.parse_args()
    used = f"Python {platform.python_version()}, numpy {np.__version__}, onnxruntime {onnxruntime.__version__}"
    made = f"{used}, {SAMPLES} samples for each verdict."
    if options.mutations:
        with tempfile.TemporaryDirectory() as folder:
            subjects = [subject(name, Path(folder)) for name in NAMES]
            results = list(mutants(subjects, options.mutations, options.seed))
            folds = list(right_folds(subjects, options.folds, options.seed))
        of = f"{len(NAMES)} folded fixtures, seed {options.seed}"
        fill_in(options.output, STUDY, [*table(results), "", _told(results, of), "", _alarms(folds), "", made])
    if options.of_opset:
        results = list(opset_mutants(options.of_opset, options.seed))
        folds = list(right_opset_folds(2 * options.of_opset, options.seed))
        of = f"folded ONNX files ({', '.join(opset_graphs.KINDS)}), seed {options.seed}"
        lines = [*table(results, "ONNX files"), "", _told(results, of), "", _alarms(folds), "", made]
        fill_in(options.output, OF_OPSETS, lines)


if __name__ == "__main__":
    main()
