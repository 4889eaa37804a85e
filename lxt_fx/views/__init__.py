"""How an explanation looks: HTML page, PNG, terminal."""
