"""ai.onnx.ml: what classical models are exported to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from onnx import numpy_helper

from tests.graph.evaluator.agreement import Case
from tests.graph.evaluator.grid.rows import ML, F, N, S, U, V, row

POSTS = (None, "NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def ml(op: str, *inputs: Any, **forms: Any) -> Case:
    """A row of the ai.onnx.ml domain."""
    return row(op, *inputs, domain=ML, **forms)


def cases() -> Iterator[Case]:
    yield from scaling()
    yield from labels()
    yield from linear()
    yield from trees()


def scaling() -> Iterator[Case]:
    for offset, scale in (
        ([0.5], [2.0]),
        ([0.5, 1.0, -1.0, 0.0], [2.0, 3.0, 0.5, -1.0]),
        ([1.0], [2.0, 3.0, 0.5, -1.0]),
    ):
        yield ml("Scaler", F(3, 4), offset=offset, scale=scale)
        yield ml("Scaler", N(-9, 9, 3, 4), offset=offset, scale=scale)
    yield ml("Scaler", F(4), offset=[0.5, 1.0, -1.0, 0.0], scale=[2.0, 3.0, 0.5, -1.0])
    for norm in (None, "MAX", "L1", "L2"):
        yield ml("Normalizer", F(3, 4), norm=norm)
        yield ml("Normalizer", U(0.1, 2, 3, 4), norm=norm)
        yield ml("Normalizer", F(4), norm=norm)
        yield ml("Normalizer", N(-9, 9, 3, 4), norm=norm)
        yield ml("Normalizer", np.zeros((2, 3), np.float32), norm=norm)
        yield ml("Normalizer", F(2, 3, 4), norm=norm)
    for threshold in (None, 0.5, -0.5):
        yield ml("Binarizer", F(3, 4), threshold=threshold)
    yield ml(
        "Imputer", V([1, np.nan, 3], [np.nan, 5, 6]), imputed_value_floats=[7.0], replaced_value_float=float("nan")
    )
    yield ml("Imputer", V([1, 0, 3], [0, 5, 6]), imputed_value_floats=[7.0, 8.0, 9.0], replaced_value_float=0.0)
    yield ml("Imputer", V([1, 0, 3], [0, 5, 6], dtype=np.int64), imputed_value_int64s=[7], replaced_value_int64=0)
    yield ml("Imputer", V([1, 4, 3], [4, 5, 6], dtype=np.int64), imputed_value_int64s=[7, 8, 9], replaced_value_int64=4)
    yield ml("OneHotEncoder", V(1, 3, 2, dtype=np.int64), cats_int64s=[1, 2, 3], zeros=0)
    for sizes in ([3, 1], [2, 2], [4, 1]):
        yield ml("FeatureVectorizer", F(2, 3), F(2, 1), inputdimensions=sizes)
    yield ml("ArrayFeatureExtractor", F(3, 4), V(2, 0, dtype=np.int64))
    yield ml("ArrayFeatureExtractor", F(4), V([2, 0, 3], dtype=np.int64))
    yield ml("OneHotEncoder", V(1, 5, 2, dtype=np.int64), cats_int64s=[1, 2, 3], zeros=1)
    yield ml("OneHotEncoder", S("a", "c"), cats_strings=["a", "b"], zeros=1)
    yield ml("CategoryMapper", S("a", "z"), cats_strings=["a", "b"], cats_int64s=[3, 4], default_int64=-5)
    yield ml("CategoryMapper", V(3, 9, dtype=np.int64), cats_strings=["a", "b"], cats_int64s=[3, 4], default_string="?")


def labels() -> Iterator[Case]:
    forms: list[tuple[Any, dict[str, Any]]] = [
        (S("a", "c", "z"), {"keys_strings": ["a", "b", "c"], "values_int64s": [1, 2, 3], "default_int64": 7}),
        (S("a", "c", "z"), {"keys_strings": ["a", "b", "c"], "values_floats": [1.5, 2.5, 3.5], "default_float": -1.0}),
        (S("a", "c", "z"), {"keys_strings": ["a", "b", "c"], "values_strings": ["x", "y", "w"]}),
        (
            V(1, 3, 9, dtype=np.int64),
            {"keys_int64s": [1, 2, 3], "values_strings": ["a", "b", "c"], "default_string": "?"},
        ),
        (V(1, 3, 9, dtype=np.int64), {"keys_int64s": [1, 2, 3], "values_int64s": [5, 6, 7]}),
        (V(1, 3, 9, dtype=np.int64), {"keys_int64s": [1, 2, 3], "values_floats": [5.0, 6.0, 7.0]}),
        (V(1, np.nan, 9), {"keys_floats": [1.0, float("nan")], "values_floats": [5.0, 6.0]}),
        (V(1, 2, 9), {"keys_floats": [1.0, 2.0], "values_int64s": [5, 6], "default_int64": 3}),
        (V(1, 2, 9), {"keys_floats": [1.0, 2.0], "values_strings": ["a", "b"]}),
    ]
    for x, attributes in forms:
        yield ml("LabelEncoder", x, **attributes)
        yield ml("LabelEncoder", x.reshape(1, -1), **attributes)
    tensors = {
        "keys_tensor": numpy_helper.from_array(V(1, 2, 3, dtype=np.int64)),
        "values_tensor": numpy_helper.from_array(V(10, 20, 30, dtype=np.int64)),
        "default_tensor": numpy_helper.from_array(V(-7, dtype=np.int64)),
    }
    yield ml("LabelEncoder", V(1, 3, 9, dtype=np.int64), **tensors)
    yield ml("LabelEncoder", S("a", "b", "z"), classes_strings=["a", "b"], default_int64=9)
    yield ml("LabelEncoder", V(1, 0, 5, dtype=np.int64), classes_strings=["a", "b"], default_string="?")
    yield ml("ZipMap", U(0, 1, 3, 2), classlabels_strings=["a", "b"])
    yield ml("ZipMap", U(0, 1, 3, 2), classlabels_int64s=[5, -2])


def linear() -> Iterator[Case]:
    names = {"classlabels_strings": ["a", "b", "c"]}, {"classlabels_ints": [3, 5, 9]}
    for post, labels_, given in product(POSTS, names, (F(4, 2), F(2), N(-5, 5, 4, 2))):
        forms = {
            "coefficients": [0.3, -0.4, 0.5, 0.1, -0.2, 0.9],
            "intercepts": [0.1, -0.2, 0.05],
            "post_transform": post,
        }
        yield ml("LinearClassifier", given, outputs=2, **forms, **labels_)
    for post in POSTS:
        forms = {"coefficients": [0.3, -0.4, -0.3, 0.4], "intercepts": [0.1, -0.1], "post_transform": post}
        yield ml("LinearClassifier", F(4, 2), outputs=2, classlabels_ints=[0, 1], multi_class=1, **forms)
        single = {"coefficients": [0.3, -0.4], "intercepts": [0.1], "post_transform": post}
        yield ml("LinearClassifier", F(4, 2), outputs=2, classlabels_ints=[0, 1], **single)
        yield ml("LinearClassifier", F(4, 2), outputs=2, classlabels_strings=["no", "yes"], **single)
        regression = {"coefficients": [0.3, -0.4, 0.5, 0.1], "targets": 2, "post_transform": post}
        yield ml("LinearRegressor", F(4, 2), intercepts=[0.1, 0.2], **regression)
        yield ml("LinearRegressor", F(4, 2), **regression)
        yield ml("LinearRegressor", F(4, 4), coefficients=[0.3, -0.4, 0.5, 0.1], post_transform=post)


def trees() -> Iterator[Case]:
    nodes = {
        "nodes_treeids": [0, 0, 0, 0, 0],
        "nodes_nodeids": [0, 1, 2, 3, 4],
        "nodes_featureids": [0, 1, 0, 0, 0],
        "nodes_modes": ["BRANCH_LEQ", "BRANCH_LEQ", "LEAF", "LEAF", "LEAF"],
        "nodes_values": [0.1, -0.2, 0.0, 0.0, 0.0],
        "nodes_truenodeids": [1, 2, 0, 0, 0],
        "nodes_falsenodeids": [4, 3, 0, 0, 0],
    }
    leaves = {
        "target_treeids": [0, 0, 0],
        "target_nodeids": [2, 3, 4],
        "target_ids": [0, 0, 0],
        "target_weights": [1.0, 2.0, 3.0],
    }
    for aggregate, post in product((None, "SUM", "AVERAGE", "MIN", "MAX"), (None, "LOGISTIC")):
        yield ml(
            "TreeEnsembleRegressor",
            F(6, 2),
            n_targets=1,
            aggregate_function=aggregate,
            post_transform=post,
            **nodes,
            **leaves,
        )
    leaves = {
        "class_treeids": [0, 0, 0],
        "class_nodeids": [2, 3, 4],
        "class_ids": [0, 1, 2],
        "class_weights": [1.0, 2.0, 3.0],
    }
    yield from forests(nodes)
    leaf = {"target_treeids": [0], "target_nodeids": [2], "target_ids": [0], "target_weights": [2.0]}
    for base, aggregate in product((None, [0.5]), ("SUM", "MIN", "AVERAGE")):
        forms = {"aggregate_function": aggregate, "base_values": base, "n_targets": 1}
        yield ml("TreeEnsembleRegressor", F(6, 2), **forms, **nodes, **leaf)
    for post in POSTS[:4]:
        yield ml(
            "TreeEnsembleClassifier",
            F(6, 2),
            outputs=2,
            classlabels_int64s=[0, 1, 2],
            post_transform=post,
            **nodes,
            **leaves,
        )
    yield ml(
        "SVMRegressor",
        F(4, 2),
        coefficients=[0.5, -0.3],
        kernel_params=[0.5, 0.0, 3.0],
        kernel_type="RBF",
        n_supports=2,
        rho=[0.1],
        support_vectors=[0.1, 0.2, -0.4, 0.9],
    )


def forests(nodes: dict[str, Any]) -> Iterator[Case]:
    """Two trees for two targets, every comparison, values that are missing."""
    two = {key: [*value, *value] for key, value in nodes.items()} | {"nodes_treeids": [0] * 5 + [1] * 5}
    leaves = {
        "target_treeids": [0, 0, 0, 1, 1, 1],
        "target_nodeids": [2, 3, 4, 2, 3, 4],
        "target_ids": [0, 1, 0, 0, 0, 1],
        "target_weights": [1.0, 2.0, -3.0, 0.5, 0.25, 4.0],
    }
    x = V([0.1, -0.2], [0.0, -0.3], [0.05, 0.4], [0.7, -0.2], [np.nan, 0.0], [-1.0, np.nan])
    for aggregate in ("SUM", "AVERAGE", "MIN", "MAX"):
        forms = {"n_targets": 2, "aggregate_function": aggregate}
        yield ml("TreeEnsembleRegressor", x, base_values=[0.5, -0.5], **forms, **two, **leaves)
        yield ml("TreeEnsembleRegressor", x, **forms, **two, **leaves)
    for post in POSTS:
        yield ml("TreeEnsembleRegressor", F(6, 2), n_targets=2, post_transform=post, **two, **leaves)
    for mode in ("LEQ", "LT", "GTE", "GT", "EQ", "NEQ"):
        branch = {"nodes_modes": ([f"BRANCH_{mode}"] * 2 + ["LEAF"] * 3) * 2}
        missing = {"nodes_missing_value_tracks_true": [1, 0, 0, 0, 0] * 2}
        yield ml("TreeEnsembleRegressor", x, n_targets=2, **(two | branch), **leaves)
        yield ml("TreeEnsembleRegressor", x, n_targets=2, **(two | branch), **leaves, **missing)
    classes = {f"class_{key.removeprefix('target_')}": value for key, value in leaves.items()}
    for post in POSTS:
        forms = {"classlabels_strings": ["no", "yes"], "post_transform": post, "outputs": 2}
        yield ml("TreeEnsembleClassifier", x, base_values=[0.3, -0.1], **forms, **two, **classes)
        three = classes | {"class_ids": [0, 1, 2, 0, 2, 1]}
        of_three = forms | {"classlabels_strings": ["a", "b", "c"]}
        yield ml("TreeEnsembleClassifier", x, base_values=[0.3, -0.1, 0.2], **of_three, **two, **three)
        yield ml("TreeEnsembleClassifier", x, **of_three, **two, **three)
        binary = classes | {"class_ids": [0] * 6}
        yield ml("TreeEnsembleClassifier", F(6, 2), **forms, **two, **binary)
