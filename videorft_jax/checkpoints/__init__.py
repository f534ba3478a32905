"""Checkpoints behind a sealed manifest, on a local disk or in a bucket."""
