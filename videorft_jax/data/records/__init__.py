"""Records: how a question and its media are written, read, checked and turned into a prompt."""
