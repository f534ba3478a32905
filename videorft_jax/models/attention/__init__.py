"""Attention: the masks, a plain reference, and a fast path for each platform."""
