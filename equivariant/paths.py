"""Paths of a product of features: which degrees and parities meet, where they lead, by which constants they couple."""

from functools import cache
from typing import NamedTuple

import numpy as np

from equivariant import features
from lie import check, wigner


class Path(NamedTuple):
    """(degree, parity) of x, of y and of what comes out of their product."""

    x: tuple[int, int]
    y: tuple[int, int]
    out: tuple[int, int]


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
    found = Product(
        check.degree("degree_in", degree_in),
        check.degree("degree_filter", degree_filter),
        check.degree("degree_out", degree_out),
        parities_in,
        parities_out,
    )
    for name, parities in (("parities_in", parities_in), ("parities_out", parities_out)):
        if parities not in (1, 2):
            raise ValueError(f"{name}: expected 1 (true tensors) or 2 (true and pseudo), got {parities!r}")
    return found


@cache
def between(x: features.Layout, y: features.Layout, max_degree: int, parities: int = 1) -> tuple[Path, ...]:
    """All paths from x and y to degrees <= max_degree; in the order of the weights.

    Degrees whose sum is even multiply parities, the others exchange the result's. Sorted by parity and degree of what
    comes out, then by degree and parity of x, then of y: within one output e3nn's order. How many channels the layouts
    have does not matter.
    """
    every = (
        Path((l1, p1), (l2, p2), (l3, (p1 + p2 + l1 + l2 + l3) % 2))
        for l1 in range(x.max_degree + 1)
        for p1 in range(x.parities)
        for l2 in range(y.max_degree + 1)
        for p2 in range(y.parities)
        for l3 in range(abs(l1 - l2), min(l1 + l2, max_degree) + 1)
    )
    return tuple(sorted((p for p in every if p.out[1] < parities), key=lambda p: (p.out[::-1], p.x, p.y)))


@cache
def of(product: Product) -> tuple[Path, ...]:
    """The paths of a product with harmonics, which are true tensors, in the order of `between`."""
    x = features.Layout(product.degree_in, 1, product.parities_in)
    return between(x, features.Layout(product.degree_filter, 1), product.degree_out, product.parities_out)


@cache
def coupling(path: Path) -> np.ndarray:
    """√(2·l3 + 1) C[l1, l2, l3] in float64, (2·l1 + 1, 2·l2 + 1, 2·l3 + 1): e3nn's "component" normalisation."""
    l1, l2, l3 = (degree for degree, _ in path)
    return np.sqrt(2 * l3 + 1) * wigner.clebsch_gordan(l1, l2, l3)
