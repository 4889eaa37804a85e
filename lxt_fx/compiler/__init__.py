"""From a model to the explained module: the steps in order, the module, its record, its file."""
