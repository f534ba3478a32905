"""What a run measures of itself: operations, memory, throughput, and where the figures go."""
