"""The graph in canonical form: one spelling for each op, and a float input at which relevance is read."""
