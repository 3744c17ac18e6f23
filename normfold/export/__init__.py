"""A loaded module becomes an ONNX graph that computes exactly what the module computes."""
