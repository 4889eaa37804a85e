"""Where the parts of a graph run and where their weights lie: moves between devices, and weights that are streamed."""
