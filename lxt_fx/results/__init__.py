"""What every explanation returns: relevance of a person's inputs with named axes, what was explained, and the accounts."""
