"""One pass a file: an analysis returns a value, a transform edits the graph; `lxt_fx.compiler.pipeline` calls them."""
