"""The media contract, and the decoding of videos and images under it."""
