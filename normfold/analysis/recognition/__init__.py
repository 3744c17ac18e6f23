"""What the operators of a graph are: fixed per-channel maps, token norms, DeepNorm's scalars, names for people."""
