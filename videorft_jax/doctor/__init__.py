"""Finds out what is wrong with an installation, a machine or the inputs of a run."""
