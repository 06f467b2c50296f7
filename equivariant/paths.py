"""Paths of a product with spherical harmonics: which degrees and parities meet, and by which constants they couple."""

from functools import cache
from typing import NamedTuple

import numpy as np

from lie import check, wigner


class Path(NamedTuple):
    """Degree `degree_in` of parity `parity_in`, times harmonics of `degree_filter`, to `degree_out`, `parity_out`."""

    parity_in: int
    degree_in: int
    degree_filter: int
    parity_out: int
    degree_out: int


class Product(NamedTuple):
    """Which features go in and come out of a product with harmonics Y_0..Y_`degree_filter`; static, hashable."""

    degree_in: int
    degree_filter: int
    degree_out: int
    parities_in: int = 1
    parities_out: int = 1


def product(
    degree_in: int, degree_filter: int, degree_out: int, parities_in: int = 1, parities_out: int = 1
) -> Product:
    """A checked Product: TypeError for what is no int, ValueError for a negative degree or other than 1, 2 parities."""
    names = ("degree_in", "degree_filter", "degree_out")
    checked = [check.degree(n, d) for n, d in zip(names, (degree_in, degree_filter, degree_out), strict=True)]
    for name, parities in (("parities_in", parities_in), ("parities_out", parities_out)):
        if parities not in (1, 2):
            raise ValueError(f"{name}: expected 1 (true tensors) or 2 (true and pseudo), got {parities!r}")
    return Product(*checked, parities_in, parities_out)


@cache
def of(product: Product) -> tuple[Path, ...]:
    """All paths, sorted by what they go to, then by where they come from: e3nn-jax's order where parities are 1.

    Harmonics are true tensors, so degrees whose sum is even keep the parity and the others exchange it.
    """
    every = (
        Path(p1, l1, l2, (p1 + l1 + l2 + l3) % 2, l3)
        for p1 in range(product.parities_in)
        for l1 in range(product.degree_in + 1)
        for l2 in range(product.degree_filter + 1)
        for l3 in range(abs(l1 - l2), min(l1 + l2, product.degree_out) + 1)
    )
    kept = (path for path in every if path.parity_out < product.parities_out)
    return tuple(sorted(kept, key=lambda p: (p.parity_out, p.degree_out, p.parity_in, p.degree_in, p.degree_filter)))


@cache
def coupling(path: Path) -> np.ndarray:
    """√(2·l3 + 1) C[l1, l2, l3] in float64, (2·l1 + 1, 2·l2 + 1, 2·l3 + 1): e3nn's "component" normalisation."""
    l1, l2, l3 = path.degree_in, path.degree_filter, path.degree_out
    return np.sqrt(2 * l3 + 1) * wigner.clebsch_gordan(l1, l2, l3)
