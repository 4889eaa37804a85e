"""What everything else uses and what knows nothing of rules: errors, nodes of a graph, torch's private API."""
