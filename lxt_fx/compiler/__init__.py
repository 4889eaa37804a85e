"""From a model to the explained module: the steps of `transform`, the module, its record, its file."""
