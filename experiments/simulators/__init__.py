"""Data sets that are simulated: each module has the generator of one, and readers of its published files."""
