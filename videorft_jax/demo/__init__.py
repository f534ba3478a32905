"""The whole method in minutes: a world of moving shapes, its questions, and a tiny model."""
