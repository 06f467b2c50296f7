"""The engine runs experiments: it owns the loop, seeds, checkpoints, records and pictures; an experiment is pure."""
