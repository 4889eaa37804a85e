"""Whether an explanation is faithful: removal curves, and a search for the rules with the best ones."""
