"""What the outputs of a model are worth: running, scoring and comparing them."""
