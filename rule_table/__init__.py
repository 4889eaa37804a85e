"""The rules as rows of data, and the named tables made of them."""
