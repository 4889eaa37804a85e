"""The live explorer: a server on localhost whose page asks a model. It needs the extra `serve`."""
