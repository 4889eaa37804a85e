"""Layers whose weights are packed: which classes are known, and how the weights of each are unpacked."""
