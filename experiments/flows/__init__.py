"""Generative flows on the spaces of lie, as experiments train them."""
