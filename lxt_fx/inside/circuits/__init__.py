"""Which parts of a network hand on what an answer needs: scores of edges, nodes and neurons from pairs of inputs, circuits
of them, and how faithful these are."""
