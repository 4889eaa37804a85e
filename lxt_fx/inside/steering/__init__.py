"""Values inside a model are changed while a block runs."""
