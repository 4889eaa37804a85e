"""Explain a model by what it is for: which number of its output is meant, for every kind of head."""
