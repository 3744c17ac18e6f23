"""An ONNX graph in float64: what every verdict of normfold is measured against.

Every floating tensor, whatever its type in the file, is held and computed in float64, on torch's double kernels.
Integers, booleans and strings are what they are. Nothing of `analysis` or `rewrite` is used here, nor of onnxruntime:
the operators are held against it, one by one, in docs/truth.md.

    values.py      what a tensor of a graph is here; from numpy and back
    call.py        one run of an operator: its attributes, its bodies, what it may allocate
    program.py     a graph made ready to run: operators bound to functions, values freed after their last use
    evaluator.py   the class that people use
    operators/     the table: one small function for every operator and change of its schema
"""

from normfold.graph.evaluator.call import EvaluationError, NotCoveredError
from normfold.graph.evaluator.evaluator import Evaluator
from normfold.graph.evaluator.program import Watch

__all__ = ["EvaluationError", "Evaluator", "NotCoveredError", "Watch"]
