"""Small numerical operations that several rooms share."""
