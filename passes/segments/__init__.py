"""The graph is cut at its layers, and the backward recomputes the parts."""
