"""A plan becomes a folded graph, and the same in the torch module."""
