"""Whether an explanation is faithful: removal curves, and the search for rules by them."""
