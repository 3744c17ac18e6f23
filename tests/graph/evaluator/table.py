"""Which operators there are, which onnxruntime runs on the CPU, and what the cases found: the rows of docs/truth.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache

import onnx
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from normfold.graph.evaluator.operators import TABLE
from tests.graph.evaluator.agreement import Operator, Outcome
from tests.graph.evaluator.variants import NEWEST, OLDEST, RUNTIME_ONLY

_OPEN = 2**31 - 1

# What onnxruntime runs and the evaluator does not: by domain and operator, with the reason.
_REASONS: Mapping[str, Mapping[str, str]] = {
    "": {
        "draws at random: there is no truth": (
            "Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike"
        ),
        "an experiment that the standard dropped before opset 7": (
            "Affine Crop DynamicSlice ImageScaler ParametricSoftplus Scale ScaledTanh"
        ),
        "moves tensors between devices inside the runtime, in no file": "MemcpyFromHost MemcpyToHost",
    },
    "ai.onnx.ml": {
        "no part of a neural network, and not asked for yet": (
            "CastMap DictVectorizer SVMClassifier SVMRegressor TreeEnsemble"
        ),
    },
    "com.microsoft": {
        "a search over tokens with a whole model inside": "BeamSearch GreedySearch Sampling WhisperBeamSearch",
        "a step of token generation with a cache of its own": (
            "DecoderMaskedMultiHeadAttention GatherPacked NGramRepeatBlock SparseAttention"
        ),
        "a layer of single language models, which their builder alone writes": (
            "BranchwiseRMSNorm CausalConvWithState EngramGate GatedAdd GatedDeltaNet GatedRMSNorm LinearAttention "
            "HyperConnectionPostMix HyperConnectionPreMix LinearAttentionGate MRotaryEmbedding MoE MoEGroupRouter "
            "NGramHashMapping QMoE ScaledSiLU VarlenCausalConvWithState VarlenNGramHashMapping"
        ),
        "reads weights in packed blocks of a format of its own": "GatherBlockQuantized MatMulBnb4 MatMulFpQ4",
        "an experiment, or of one old model": (
            "AttnLSTM BifurcationDetector CDist ConvTransposeWithDynamicPads CropAndResize DynamicTimeWarping "
            "MatMulInteger16 MaxpoolWithMask MurmurHash3 SampleOp SparseToDenseMatMul Tokenizer UnfoldTensor Unique "
            "WordConvEmbedding"
        ),
        "integers of onnxruntime's own quantiser, and not asked for yet": (
            "QAttention QEmbedLayerNormalization QLinearConv"
        ),
    },
}
LEFT_OUT: Mapping[tuple[str, str], str] = {
    (domain, name): why
    for domain, reasons in _REASONS.items()
    for why, names in reasons.items()
    for name in names.split()
}


@cache
def run_by_onnxruntime() -> frozenset[Operator]:
    """What the CPU provider has a kernel for, at opset 7 and later: onnxruntime says so itself."""
    found = set()
    for kernel in runtime.get_all_opkernel_def():
        if kernel.provider != "CPUExecutionProvider" or kernel.domain == "com.microsoft.nchwc":
            continue  # the last is a layout of the memory, made when a model is loaded
        start, end = kernel.version_range
        versions = schemas().get((kernel.domain, kernel.op_name), frozenset({start}))
        # A kernel without an end is for the schema that it names, and none that a later opset brings.
        fit = {v for v in versions if v == start or (start < v <= end and end != _OPEN)}
        found |= {(kernel.domain, kernel.op_name, version) for version in fit}
    return frozenset(found)


@cache
def schemas() -> Mapping[tuple[str, str], frozenset[int]]:
    """The schemas of ai.onnx that are in force at opset 7 or later, all of ai.onnx.ml, and what onnxruntime adds to the
    standard's domain, by domain and operator.
    """
    found: dict[tuple[str, str], set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in NEWEST:
            found.setdefault((schema.domain, schema.name), set()).add(schema.since_version)
    for (domain, name), versions in found.items():
        if domain == "":
            oldest = max((version for version in versions if version <= OLDEST), default=0)
            found[domain, name] = {version for version in versions if version >= oldest}
    for name in RUNTIME_ONLY:
        if any(kernel.op_name == name for kernel in runtime.get_all_opkernel_def()):
            found.setdefault(("", name), set()).add(1)
    return {key: frozenset(versions) for key, versions in found.items()}


@cache
def functions() -> frozenset[tuple[str, str]]:
    """The operators that onnxruntime may run as the function that their schema has, without a kernel."""
    all_ = onnx.defs.get_all_schemas_with_history()
    return frozenset((s.domain, s.name) for s in all_ if s.has_function or s.has_context_dependent_function)


def counted(outcomes: Iterable[Outcome]) -> dict[Operator, Counter[str]]:
    """How many cases of each operator came to each verdict; one that is not covered counts for what is missing."""
    found: dict[Operator, Counter[str]] = {}
    for outcome in outcomes:
        for operator in outcome.missing if outcome.missing else outcome.operators:
            found.setdefault(operator, Counter())[outcome.verdict] += 1
    return found


COLUMNS = ("agrees", "recorded outputs", "onnxruntime does not run it", "not covered")


def rows(counts: Mapping[Operator, Counter[str]]) -> list[tuple[str, str, dict[str, list[str]]]]:
    """Domain, operator, and for each column the opsets of its schemas, with the number of cases."""
    operators: dict[tuple[str, str], set[int]] = {}
    for domain, name, version in {*TABLE, *run_by_onnxruntime(), *counts}:
        operators.setdefault((domain, name), set()).add(version)
    for (domain, name), versions in schemas().items():
        operators.setdefault((domain, name), set()).update(versions)
    found = []
    for (domain, name), versions in sorted(operators.items(), key=lambda item: (item[0][0], item[0][1].lower())):
        cells: dict[str, list[str]] = {column: [] for column in COLUMNS}
        for version in sorted(versions):
            column, text = _cell((domain, name, version), counts.get((domain, name, version), Counter()))
            cells[column].append(text)
        found.append((domain, name, cells))
    return found


def _cell(operator: Operator, count: Counter[str]) -> tuple[str, str]:
    version = str(operator[2])
    if count["agrees"]:
        return "agrees", f"{version}: {count['agrees']:,}"
    if count["recorded"]:
        return "recorded outputs", f"{version}: {count['recorded']:,}"
    if operator in TABLE or operator not in run_by_onnxruntime():
        return "onnxruntime does not run it", version if operator in TABLE else f"({version})"
    return "not covered", version
