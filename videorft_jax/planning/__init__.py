"""What a run will need of a machine that is not here: programs, memory, least time."""
