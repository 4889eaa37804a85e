"""Each rule's op takes its node's place, in the gradient form or the explicit form."""
