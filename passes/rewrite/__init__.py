"""The op of each rule replaces its node, in gradient form or explicit form."""
