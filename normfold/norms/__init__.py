"""The norms: their closed forms at inference, and how to find them in a torch module."""
