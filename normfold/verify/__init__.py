"""The judge: whether a graph computes what its source computes. Knows nothing of folding."""
