"""Strings, and ai.onnx.ml without its trees, against onnxruntime."""

from __future__ import annotations

import re
import time
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from normfold.errors import CannotJudgeError
from normfold.graph.evaluator import limits
from normfold.graph.evaluator.call import EvaluationError, NotCoveredError
from normfold.graph.evaluator.evaluator import Evaluator
from tests.graph.evaluator.single import Case, check, model_of, name_of, run

ML = "ai.onnx.ml"
NAN = float("nan")


def words(*items: str) -> Any:
    return np.array(items, object)


NORMALIZED = product(
    (words("Mon", "tue", "ÄÖß", "é", "MON"), words("Mon", "mon").reshape(1, 2)),
    ("C", "C.UTF-8"),
    (0, 1),
    ("NONE", "LOWER", "UPPER"),
    ({}, {"stopwords": ["mon", "É"]}),
)
SPLIT = product(
    (words(" a b  c ", "", "x"), words("a,b,,c", ",").reshape(2, 1), words("", ""), words("a\tb c\u00a0d"), words()),
    ({}, {"delimiter": ","}, {"delimiter": ", "}),
    ({}, {"maxsplit": 0}, {"maxsplit": 1}, {"maxsplit": 2}),
)
COUNTED = product(
    (np.array([2, 3, 5, 2, 3, 3, 5, 2]), np.array([[2, 3, 5, 2], [7, 2, 2, 3]], np.int32)),
    ("TF", "IDF", "TFIDF"),
    ((1, 1), (1, 2), (2, 2)),
    (0, 1, 5),
)
POOL = {
    "ngram_counts": [0, 3],
    "ngram_indexes": [0, 1, 2, 4, 3],
    "pool_int64s": [2, 3, 5, 2, 3, 5, 2],
    "weights": [1.0, 0.5, 2.0, 3.0, 0.25],
}
WORD_POOL = {"ngram_counts": [0, 1], "ngram_indexes": [1, 0], "pool_strings": ["a", "b", "a"]}
STRINGS: list[tuple[Case, int]] = [
    *((("StringNormalizer", 10, [x], {
        "locale": locale, "is_case_sensitive": exact, "case_change_action": case, **stop}), 1)
      for x, locale, exact, case, stop in NORMALIZED),
    *((("StringSplit", 20, [x], {**delimiter, **most}), 2) for x, delimiter, most in SPLIT),
    *((("RegexFullMatch", 20, [words("a1", "ä", "a1\n", "", "a.b@c.d")], {"pattern": pattern}), 1)
      for pattern in (r"\w\d?", "a?.", r"[a-z.]+@[a-z.]+", "")),
    (("StringConcat", 20, [words("a", "b").reshape(2, 1), words("c", "d", "")], {}), 1),
    *((("TfIdfVectorizer", 9, [x], {
        "mode": mode, "min_gram_length": low, "max_gram_length": high, "max_skip_count": skips, **POOL}), 1)
      for x, mode, (low, high), skips in COUNTED),
    (("TfIdfVectorizer", 9, [words("a", "b", "a")], {
        "mode": "TF", "min_gram_length": 1, "max_gram_length": 2, "max_skip_count": 0, **WORD_POOL}), 1),
]  # fmt: skip


@pytest.mark.parametrize(("case", "outputs"), STRINGS, ids=str)
def test_strings_as_onnxruntime(case: Case, outputs: int) -> None:
    check(case, outputs=outputs)


X = np.array([[0.3, -0.2, 0.5], [0, 0, 0], [0.1, 0.4, -0.2]], np.float32)
HOLES = np.array([[1, NAN, 3], [0, 2, NAN]], np.float32)
FEATURES: list[Case] = [
    *(("Normalizer", 1, [x], {"norm": norm}) for norm in ("MAX", "L1", "L2")
      for x in (X, X[0], -abs(X) - 1, (10 * X).astype(np.int64))),
    *(("Scaler", 1, [x], {"scale": scale, "offset": offset}) for x in (X, (10 * X).astype(np.int32))
      for scale, offset in (([2.0], [0.5]), ([2.0, 1.0, 0.3], [1.0, 0.1, 0.0]))),
    ("Imputer", 1, [HOLES], {"imputed_value_floats": [9.0], "replaced_value_float": NAN}),
    ("Imputer", 1, [HOLES], {"imputed_value_floats": [7.0, 8.0, 9.0], "replaced_value_float": 3.0}),
    ("Imputer", 1, [HOLES], {"imputed_value_floats": [7.0]}),
    ("Imputer", 1, [np.array([[1, 2], [0, 1]])], {"imputed_value_int64s": [5], "replaced_value_int64": 1}),
    *(("Binarizer", 1, [X], attributes) for attributes in ({}, {"threshold": 0.2})),
    *(("ArrayFeatureExtractor", 1, [x, np.array([1, 0])], {}) for x in (X, X[0], np.stack([X, X]), words("a", "b"))),
    ("FeatureVectorizer", 1, [X, X[:, :1]], {"inputdimensions": [3, 1]}),
    ("FeatureVectorizer", 1, [X, X[:, :1]], {"inputdimensions": [2, 3]}),
    ("FeatureVectorizer", 1, [X[0], X[1]], {"inputdimensions": [3, 2]}),
    ("OneHotEncoder", 1, [np.array([[1, 5], [2, 1]])], {"cats_int64s": [1, 2, 7, 2]}),
    ("OneHotEncoder", 1, [np.array([1.7, 2], np.float32)], {"cats_int64s": [1, 2, 7]}),
    ("OneHotEncoder", 1, [words("a", "z")], {"cats_strings": ["q", "a"]}),
]  # fmt: skip

LABELS: list[Case] = [
    ("LabelEncoder", 1, [words("a", "x")], {"classes_strings": ["x", "y"]}),
    ("LabelEncoder", 1, [np.array([1, 5])], {"classes_strings": ["x", "y"], "default_string": "?"}),
    *(("LabelEncoder", opset, [x], attributes) for opset in (2, 4) for x, attributes in (
        (words("a", "x"), {"keys_strings": ["a", "b", "a"], "values_int64s": [1, 2, 3]}),
        (np.array([1, NAN, 2], np.float32), {"keys_floats": [1.0, NAN], "values_strings": ["p", "q"]}),
        (np.array([[1], [5]]), {"keys_int64s": [1], "values_floats": [0.1], "default_float": 2.0}),
        (np.array([[1], [5]]), {"keys_int64s": [1], "values_floats": [0.1]}),
        (np.array([1, 5]), {"keys_int64s": [1], "values_int64s": [2], "default_int64": 9}),
        (words("a", "x"), {"keys_strings": ["a"], "values_strings": ["b"], "default_string": "none"}))),
    ("LabelEncoder", 4, [words("a", "x")], {
        "keys_tensor": helper.make_tensor("k", TensorProto.STRING, [1], [b"a"]),
        "values_tensor": helper.make_tensor("v", TensorProto.INT16, [1], [7]),
        "default_tensor": helper.make_tensor("d", TensorProto.INT16, [1], [-5])}),
    ("CategoryMapper", 1, [words("a", "z")], {"cats_strings": ["q", "a"], "cats_int64s": [1, 2]}),
    ("CategoryMapper", 1, [np.array([1, 9])], {"cats_strings": ["q", "a"], "cats_int64s": [1, 2],
     "default_string": "?"}),
    ("ZipMap", 1, [X], {"classlabels_strings": ["a", "b", "c"]}),
    ("ZipMap", 1, [X[0]], {"classlabels_int64s": [4, 5, 6]}),
]  # fmt: skip

ONE = {"coefficients": [1.0, 0.5, 0.2], "intercepts": [0.1]}
TWO = {"coefficients": [1.0, 0.5, 0.2, 0.0, 0.1, -0.3], "intercepts": [0.1, 0.0]}
THREE = {"coefficients": [1.0, 0.5, 0.2, 0.0, 0.1, -0.3, 0.7, -0.7, 0.1], "intercepts": [0.3, 0.1, 0.2]}
TRANSFORMS = ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT")
LINEAR: list[tuple[Case, int]] = [
    *((("LinearClassifier", 1, [x], {**weights, "post_transform": transform, **labels}), 2)
      for x, transform, (weights, labels) in product((X + 0.2, X[0], (5 * X).astype(np.int64)), TRANSFORMS[:4], (
        (ONE, {"classlabels_ints": [0, 1]}), (ONE, {"classlabels_strings": ["n", "p"]}),
        (TWO, {"classlabels_ints": [5, 9]}), (THREE, {"classlabels_strings": ["a", "b", "c"]})))),
    *((("LinearRegressor", 1, [X + 0.2], {**weights, "post_transform": transform, "targets": count}), 1)
      for transform, (count, weights) in product(
        TRANSFORMS, ((1, ONE), (2, TWO), (1, {"coefficients": [1.0, 2.0, 3.0]})))),
]  # fmt: skip


@pytest.mark.parametrize("case", [*FEATURES, *LABELS], ids=name_of)
def test_features_and_labels_as_onnxruntime(case: Case) -> None:
    check(case, domain=ML)


@pytest.mark.parametrize(("case", "outputs"), LINEAR, ids=str)
def test_linear_models_as_onnxruntime(case: Case, outputs: int) -> None:
    check(case, outputs=outputs, domain=ML)


def test_a_pattern_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="pattern"):
        run(model_of("RegexFullMatch", 20, [words("a")], {"pattern": "("}), [words("a")])


def test_a_pattern_that_never_ends_is_refused_and_its_twin_is_matched() -> None:
    long = "a" * 40 + "!"
    for pattern in (
        "(a+)+",
        "(a|a)*",
        "(a|aa)+",
        "(a*)*b",
        "((a?)+)*",
        "(?:a+){9}",
        "a*a*a*a*a*a*a*b",
        r"(a)\1",
        "(?=a)a",
    ):
        with pytest.raises(NotCoveredError, match="too many ways"):
            run(model_of("RegexFullMatch", 20, [words(long)], {"pattern": pattern}), [words(long)])
    twins = (
        "a+!",
        "(ab)*",
        "(a|b)c",
        "a{40}!",
        "(?:a{20}){2}!",
        r"[a-z(+]*\(?!",
        "a*a*!",
        r"(\W|^)[\w.]{0,45}(!|$)",
        "[]a]*!",
    )
    start = time.perf_counter()
    for pattern in twins:
        (found,) = run(model_of("RegexFullMatch", 20, [words(long)], {"pattern": pattern}), [words(long)])
        assert found.tolist() == [re.fullmatch(pattern, long) is not None], pattern
    assert time.perf_counter() - start < 5


def test_probit_of_a_single_score_has_no_verdict() -> None:
    model = model_of("LinearClassifier", 1, [X], {**ONE, "post_transform": "PROBIT", "classlabels_ints": [0, 1]},
                     outputs=2, domain=ML)  # fmt: skip
    with pytest.raises(NotCoveredError, match="PROBIT"):
        run(model, [X])


@pytest.mark.parametrize(
    ("operator", "x", "attributes"),
    [
        ("Binarizer", HOLES, {}),
        ("OneHotEncoder", words("z"), {"cats_strings": ["a"], "zeros": 0}),
        ("LinearClassifier", X, {**ONE, "classlabels_ints": [1]}),
    ],
)
def test_what_does_not_fit_is_an_error(operator: str, x: Any, attributes: dict[str, Any]) -> None:
    with pytest.raises(EvaluationError, match=operator):
        run(model_of(operator, 1, [x], attributes, domain=ML), [x])


def test_strings_that_double_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "available_memory", lambda: 1 << 29)
    text = """<ir_version: 8, opset_import: ["" : 20]>
    main (int64 m, string[1] x) => (y) {
      t = Constant<value = bool {1}>()
      y = Loop (m, t, x) <
        body = step (int64 i, bool c, string[1] v) => (d, w) { d = Identity(c)  w = StringConcat(v, v) }
      >
    }"""
    evaluator = Evaluator(ir.from_proto(onnx.parser.parse_model(text)))
    with pytest.raises(CannotJudgeError, match="StringConcat"):
        evaluator.run({"m": np.array(60), "x": words("abc")})
