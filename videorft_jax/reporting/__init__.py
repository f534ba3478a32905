"""Pages that show a run: its curves, and what the model saw, said and was rewarded for."""
