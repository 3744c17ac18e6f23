"""The class that people use: a graph, ready to be run in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from normfold.errors import GraphError
from normfold.graph.evaluator.limits import Meter, free_processors
from normfold.graph.evaluator.program import Program, Scope, Watch
from normfold.graph.evaluator.values import Value, from_numpy, to_numpy


class Evaluator:
    """A graph in float64. Raises NotCoveredError for an operator that is not in the table.

    The weights stay where they are (mapped, if they lie in external data) and are widened when an operator reads them;
    a tensor is freed after its last use. Running needs the memory of the largest set of live tensors, in float64.
    move: move every floating weight by up to half of this, relatively, at random, and as far the other way where it is
    negative: what the outputs do then is what rounding decides.
    """

    def __init__(self, model: ir.Model, *, move: float = 0.0) -> None:
        self._program = Program(model, move=move)
        self.inputs = tuple(value for value in model.graph.inputs if value not in self._program.weights)
        self._overridable = tuple(value for value in model.graph.inputs if value in self._program.weights)
        self.outputs = tuple(model.graph.outputs)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs that have to be fed."""
        return tuple(str(value.name) for value in self.inputs)

    def run(self, feeds: Mapping[str, Any], *, watch: Watch | None = None) -> tuple[Any, ...]:
        """The outputs for these numpy arrays (lists for sequences, None for an empty optional): float64, or integers,
        booleans and str as they are.

        watch: called after every operator, those in bodies included, with the node and its values. Raises
        EvaluationError where an operator cannot take what it is given, NotCoveredError for an attribute that is not
        known, CannotJudgeError where memory or the amount of work runs out.
        """
        scope = Scope()
        for value in (*self.inputs, *self._overridable):
            name = str(value.name)
            if name in feeds:
                scope[value] = _taken(feeds[name])
            elif value in self.inputs:
                raise GraphError(f"the graph has an input {name!r}, and nothing is given for it")
        # NaN and infinities are values like others: no warnings.
        with torch.no_grad(), np.errstate(all="ignore"), free_processors():
            found = self._program.run(scope, Meter(), watch)
        return tuple(to_numpy(value) for value in found)


def _taken(given: Any) -> Value:
    if isinstance(given, list):
        return [from_numpy(item) for item in given]
    return None if given is None else from_numpy(given)
