"""How the text of a model becomes a score: our own reader and those of three other tools."""
