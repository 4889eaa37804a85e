"""What is true of a graph: who carries relevance, groups, roles, the rule of each node."""
