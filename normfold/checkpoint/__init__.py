"""A checkpoint file becomes a module, a program or a graph in evaluation mode, without running what it holds."""
