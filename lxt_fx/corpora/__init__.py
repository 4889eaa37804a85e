"""A whole corpus explained: samples in, a line of relevance for each of them out, in one process or on Ray."""
