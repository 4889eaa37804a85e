"""The graph that a plain call runs: several ops fused into one, with the same values and gradients."""
