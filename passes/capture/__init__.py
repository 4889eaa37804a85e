"""A model becomes a torch.fx graph of ATen ops."""
