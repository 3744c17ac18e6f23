"""What folds in models of all kinds, and what other tools fold of it: fills in docs/compatibility.md.

    python -m benchmarks.compatibility [--only NAME ...] [--rows FOLDER] [-o docs/compatibility.md]

From the repository's root, with the extras test and compare, and tests/models-requirements.txt. Every model is exported
once; normfold and the other tools get that same graph. How many norms are left in a result is counted by normfold's own
analysis, which sees batch norms and scales per channel however they are spelled. --rows: a folder that keeps one file a
model; what is there already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from benchmarks.compatibility_page import COLUMNS, Row, Tried, page, shortcomings
from benchmarks.fill_in import fill_in
from benchmarks.models import randomise
from benchmarks.optimizers import installed, onnxruntime_basic
from normfold import errors
from normfold.analysis.analyse import analyse
from normfold.analysis.recognition.affine_maps import collapse
from normfold.analysis.recognition.token_norms import statistic_norm
from normfold.checkpoint.load import load_checkpoint
from normfold.checkpoint.source import Source
from normfold.export.to_onnx import export
from normfold.graph.operators import op_counts, operators
from normfold.graph.prepare import prepare
from normfold.graph.types import Affine, Model, Op
from normfold.graph.view import Graph
from normfold.graph.write import save
from normfold.inputs.cases import draw_cases
from normfold.inputs.spec import draw, parse_specs, traced_sizes
from normfold.models import create
from normfold.norms.detect import find_norms
from normfold.rewrite.graph import rewrite
from normfold.verify.truth import establish
from normfold.verify.yardstick import Yardstick
from tests.external import transformers_models
from tests.external.trained import TRAINED

FIXTURES = Path(__file__).parent.parent / "fixtures"
PART = "compatibility"  # of the page
# Seconds that a tool may take for one model.
PATIENCE = 600

PICTURE = ("x:float32[B,3,224,224]",)
SOURCE, TARGET = "src:int64[B,S=24<=1024]<1000", "ids:int64[B,L=16<=1024]<1000"
FOUR_STAGES = {"depths": (2, 2, 2, 2)}
# Published widths, fewer layers, so that all of them can be measured in an hour; benchmarks/models.py has them whole.
PAPERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "deit_tiny_prepbn": ({"depth": 4}, PICTURE),
    "swin_tiny_prepbn": (FOUR_STAGES, PICTURE),
    "pvt_tiny_prepbn": (FOUR_STAGES, PICTURE),
    "cswin_tiny_prepbn": (FOUR_STAGES, PICTURE),
    "slab_deit_tiny": ({"depth": 4}, PICTURE),
    "slab_swin_tiny": (FOUR_STAGES, PICTURE),
    "slab_pvt_tiny": (FOUR_STAGES, PICTURE),
    "slab_cswin_tiny": (FOUR_STAGES, PICTURE),
    "t2t_vit_14_un": ({"depth": 4}, PICTURE),
    "llama_350m_prepbn": ({"depth": 2, "vocab": 1000}, ("ids:int64[B,L=32]<1000",)),
    "nmt_un": ({"depth": 3, "vocab": 1000}, (SOURCE, TARGET)),
    "deepnet_encoder_un": ({"depth": 4, "vocab": 1000}, (SOURCE,)),
}


# A tool, what it reads, what it writes -> what went wrong.
RunTool = Callable[[str, Path, Path], str]


@dataclass(frozen=True)
class Subject:
    """A model: where it comes from, and how it is loaded into a folder."""

    group: str
    load: Callable[[Path], Source]


def _trained(name: str, folder: Path) -> Source:
    model = TRAINED[name]
    return load_checkpoint(model.path, model=model.model, inputs=model.inputs)


def _transformers(name: str, folder: Path) -> Source:
    return load_checkpoint(
        transformers_models.checkpoint(name, folder),
        model=f"{transformers_models.__name__}:{name}",
        inputs=[transformers_models.INPUTS[name]],
    )


def _fixture(name: str, folder: Path) -> Source:
    return load_checkpoint(FIXTURES / f"{name}.pt")


def _paper(name: str, folder: Path) -> Source:
    options, texts = PAPERS[name]
    torch.manual_seed(0)
    specs = parse_specs(texts)
    module = randomise(create(name, **options), draw(specs, traced_sizes(specs), seed=0))
    return Source(
        path=Path(name),
        sha256="",
        format="torch",
        module=module,
        graph=None,
        inputs=specs,
        arch=name,
        arch_args=dict(options),
        norms=find_norms(module),
    )


SUBJECTS: dict[str, Subject] = {
    **{name: Subject("trained, from PyPI", partial(_trained, name)) for name in TRAINED},
    **{name: Subject("transformers", partial(_transformers, name)) for name in transformers_models.INPUTS},
    **{path.stem: Subject("fixtures", partial(_fixture, path.stem)) for path in sorted(FIXTURES.glob("*.pt"))},
    **{name: Subject("papers", partial(_paper, name)) for name in PAPERS},
}


def norms_in(model: Model, *, besides: Collection[str] = ()) -> int:
    """Batch norms and scales per channel, in whatever spelling; not the weights of LayerNorm and RMSNorm.

    besides: outputs of maps that were none to begin with. A factor such as DeepNorm's alpha that has taken up the scale
    of a channel has not become a norm.
    """
    prepared = prepare(model)
    graph, maps = _maps(prepared)
    inside = {node for affine in maps.values() for node in affine.nodes}
    norms = [
        op
        for op, affine in maps.items()
        if affine.is_norm and op.output.name not in besides and statistic_norm(graph, op) is None
    ]
    # What a tool has left without shapes is no map for the analysis, and a norm all the same.
    unseen = [node for node in prepared.graph if node.op_type == "BatchNormalization" and node not in inside]
    return len(norms) + len(unseen) + sum(_is_scaling_convolution(node) for node in prepared.graph)


def other_maps(model: Model) -> frozenset[str]:
    """Outputs of the fixed maps that are no norms: biases, factors for all channels."""
    return frozenset(op.output.name or "" for op, affine in _maps(model)[1].items() if not affine.is_norm)


def _maps(model: Model) -> tuple[Graph, dict[Op, Affine]]:
    graph = collapse(Graph(model, operators(model)))
    return graph, {op: op.affine for op in graph.ops if op.affine is not None}


def _is_scaling_convolution(node: ir.Node) -> bool:
    """Whether a Conv scales each channel and does nothing else: onnxruntime writes batch norms in this way."""
    weight = node.inputs[1] if len(node.inputs) > 1 else None
    if node.op_type != "Conv" or weight is None or weight.const_value is None or "group" not in node.attributes:
        return False
    channels, *rest = weight.const_value.shape.numpy()
    return channels > 1 and node.attributes["group"].value == channels and set(rest) == {1}


def _try(tool: str, source: Path, yardstick: Yardstick, others: Collection[str], run: RunTool) -> Tried:
    output = source.with_name(f"{tool.replace(' ', '_')}.onnx")
    said = run(tool, source, output)
    if said:
        return Tried(note=said)
    if not output.exists():
        return Tried(note="fails (no result, and no error)")
    try:
        model = ir.from_proto(onnx.load(output))
    except ir.serde.SerdeError:
        return Tried(note="fails (what it writes is no valid graph)")
    left, nodes = norms_in(model, besides=others), sum(op_counts(model).values())
    try:
        (edge,) = yardstick.compare(output, ())
    except errors.VerificationError:
        return Tried(left, nodes, float("inf"), False, "does not run")
    return Tried(left, nodes, edge.relative, edge.passed, running=running(output))


def running(path: Path) -> dict[str, int]:
    """The operators that are left to run: without those that onnxruntime computes when it loads the file.

    It merges a few as well (a product and a bias into a Gemm), in every file alike.
    """
    output = path.with_name(f"{path.stem}.running.onnx")
    onnxruntime_basic(path, output)
    return op_counts(ir.load(output))


def run_tool(tool: str, source: Path, output: Path) -> str:
    """Run a tool in a process of its own; returned is what went wrong, nothing where nothing did."""
    command = [sys.executable, str(Path(__file__).with_name("optimizers.py")), tool, str(source), str(output)]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return f"no result in {PATIENCE} s"
    lines = run.stderr.strip().splitlines()
    return f"fails ({lines[-1][:60] if lines else f'exit code {run.returncode}'})" if run.returncode else ""


def row(name: str, *, tools: Collection[str]) -> Row:
    """Fold one model, verify it, and see what the tools named make of the same graph."""
    subject = SUBJECTS[name]
    with tempfile.TemporaryDirectory() as place:
        source = subject.load(Path(place))
        found = beside(name, subject.group, source, export(source), Path(place), tools=tools)
    assert found.right, found
    return found


def beside(
    name: str,
    group: str,
    source: Source,
    exported: Model,
    folder: Path,
    *,
    tools: Collection[str],
    run: RunTool = run_tool,
) -> Row:
    """The row of a model, and what of `exported` becomes of its export.

    run: runs a tool, see run_tool. Raises a NormfoldError where there is no verdict.
    """
    graph = prepare(exported)
    plan = analyse(graph, norms=source.norms)
    others, result = other_maps(graph), rewrite(graph, plan)
    unfolded, folded = folder / "unfolded.onnx", folder / "folded.onnx"
    save(graph, unfolded)
    save(result, folded)
    # Doubled inputs make T2T's exponentials amplify rounding to a per cent, in the original as well.
    cases = [case for case in draw_cases(source.inputs) if case.scale <= 1.0]
    yardstick = Yardstick.lay(establish(source.module, unfolded, source.inputs, cases=cases), unfolded)
    (edge,) = yardstick.compare(folded, ())
    stored = [site for site in plan.sites if not site.per_token and site.kind != "DeepNorm"]
    reasons = {status: Counter(s.code or "" for s in stored if s.status == status) for status in ("partial", "kept")}
    return Row(
        name=name,
        group=group,
        norms=norms_in(graph),
        folded=sum(site.status == "folded" for site in stored),
        partial=dict(reasons["partial"]),
        kept=dict(reasons["kept"]),
        statistics=sum(site.per_token for site in plan.sites),
        left=norms_in(result, besides=others),
        nodes=(sum(op_counts(graph).values()), sum(op_counts(result).values())),
        error=edge.relative,
        bound=edge.bound,
        tools={tool: _try(tool, unfolded, yardstick, others, run) for tool in tools},
        right=edge.passed,
        running=running(folded),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(SUBJECTS), metavar="NAME")
    parser.add_argument("--rows", type=Path, help="a folder for what was measured")
    parser.add_argument("-o", "--output", type=Path, help="the page to fill in; by default the tables are printed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        kept = options.rows or Path(temporary)
        kept.mkdir(exist_ok=True)
        rows = []
        for name in options.only:
            path = kept / f"{name.replace(' ', '_')}.json"
            if not path.exists():
                print(name, file=sys.stderr, flush=True)
                path.write_text(
                    json.dumps(asdict(row(name, tools=[tool for tool in installed() if tool in COLUMNS]))),
                    encoding="utf-8",
                )
            rows.append(Row.of(json.loads(path.read_text(encoding="utf-8"))))
    for line in shortcomings(rows):
        print(line, file=sys.stderr)
    fill_in(options.output, PART, page(rows))


if __name__ == "__main__":
    main()
