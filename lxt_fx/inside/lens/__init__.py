"""The lens: what the residual stream of each layer stands for at the output, by averaged Jacobians."""
