"""An ONNX graph: reading, checking, looking at it, evaluating it in float64, writing it."""
