"""Dictionaries of features, and how they become values of a graph."""
