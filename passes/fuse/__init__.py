"""Several ops in one with the same values and gradients: the graph that a plain call runs."""
