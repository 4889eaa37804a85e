"""The rules as data, and the named tables made of them."""
