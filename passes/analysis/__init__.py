"""Analyses of the graph: which values carry relevance, groups of nodes, their roles, the rule of each node."""
