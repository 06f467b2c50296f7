"""Layers and networks that commute with the groups of `lie`: Flax NNX modules over pure functions of arrays."""

import lie  # noqa: F401  first, for HAAR_CHECK's import hook and the warning where POT's files are mixed in

__all__ = [
    "activation",
    "ase_calculator",
    "atoms",
    "attention",
    "egnn",
    "equiformer_v2",
    "equivariance",
    "features",
    "frames",
    "graph",
    "linear",
    "mace",
    "nequip",
    "normalization",
    "potential",
    "radial",
    "radial_field",
    "se3_transformer",
    "segnn",
    "sparse_polynomial",
    "symmetric_basis",
    "symmetric_contraction",
    "tensor_field_network",
    "tensor_product",
]
