"""Activation checkpointing: the graph is cut into segments of layers, and the backward recomputes each segment."""
