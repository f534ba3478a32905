"""Finds out what a run needs of a machine that is not here: programs, memory and least time."""
