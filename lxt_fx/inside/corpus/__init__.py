"""What the units of a model stand for: a corpus is read once, and each unit gets its samples."""
