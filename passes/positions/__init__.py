"""The selection of positions moves from the logits up the graph."""
