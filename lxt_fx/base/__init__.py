"""What stands under everything and knows nothing of rules: errors, nodes of a graph, torch's private API."""
