"""Lie groups for learning: arrays in, arrays out, exact in value and derivatives: `from lie import so3`.

With HAAR_CHECK=1 in the environment, jaxtyping and beartype check every annotation at run time (the tests run so).
"""

from lie import _neighbours, check

_neighbours.warn()

if check.values_are_checked():
    from jaxtyping import install_import_hook

    install_import_hook(["lie", "equivariant", "ot"], "beartype.beartype")

__all__ = [
    "charts",
    "check",
    "densities",
    "elementwise",
    "euclidean",
    "group",
    "harmonics",
    "optimizers",
    "processes",
    "record",
    "se2",
    "se3",
    "smooth",
    "so2",
    "so3",
    "solid",
    "sphere",
    "statistics",
    "su2",
    "svd3",
    "wigner",
]
