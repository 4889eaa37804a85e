"""One spelling for each op, and a float leaf that relevance is read at."""
