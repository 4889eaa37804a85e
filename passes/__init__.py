"""One pass in each file. An analysis returns a value, a transform edits the graph; `lxt_fx.compiler.pipeline` calls
them."""
