"""The field's benchmarks, read from the files that their users have downloaded."""
