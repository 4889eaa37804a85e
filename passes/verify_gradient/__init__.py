"""Whether a graph passes the gradient that its model passes."""
