"""Classifiers and mixtures that experiments compare with: few lines of NumPy each, exact conjugate updates."""
