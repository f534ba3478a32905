"""The mesh, the two tables that say how parameters lie on it, and what processes exchange."""
