"""One pass a file: an analysis returns a value, a transform edits the graph. The order stands in `lxt_fx.compiler.pipeline`."""
