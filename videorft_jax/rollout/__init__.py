"""Sampling completions: one compiled program a phase, and the engine that runs them."""
