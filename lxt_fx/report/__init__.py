"""Text about a graph: the printed graph, the certificate, the table of modules."""
