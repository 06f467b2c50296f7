"""Symmetric products of features: a basis of all equivariant polynomials of each order, from Clebsch-Gordan products.

A polynomial map of one set of features that commutes with O(3) is a sum over its orders, over the degree and parity of
its result, and over the degrees of its factors. For each of these the products of all equivariant polynomials of one
order less with one more factor, coupled by Clebsch-Gordan coefficients, span the space; linearly dependent ones are
left out. Runs in NumPy's float64, at first use, once.
"""

from functools import cache
from itertools import combinations_with_replacement, product
from typing import NamedTuple

import numpy as np

from lie import wigner

Slot = tuple[int, int]  # parity (0 true, 1 pseudo) and degree of one factor
Variable = tuple[int, int, int]  # the same and the order m = 0..2l of one entry


class Path(NamedTuple):
    """One basis polynomial: its order, the parity and degree of its result, (parity, degree) of its factors."""

    order: int
    parity: int
    degree: int
    factors: tuple[Slot, ...]


class Basis(NamedTuple):
    """`terms[t]` = (row of the result, rows of the factors); path p is Σ_t coefficients[p, t] Π x[rows of the factors].

    Rows count (parity, degree, order) as features do: parity (L + 1)² + l² + l + m.
    """

    paths: tuple[Path, ...]
    terms: tuple[tuple[int, tuple[int, ...]], ...]
    coefficients: np.ndarray


@cache
def symmetric_basis(
    max_degree_in: int, max_degree_out: int, correlation: int, parities_in: int = 1, parities_out: int = 1
) -> Basis:
    """All equivariant polynomials of orders 1..correlation from features to features; paths in the order of `Path`.

    For independent standard normal entries each path has unit variance in every entry of its result, and paths with the
    same factors and result are uncorrelated. Takes 0.2 s for orders 1..4 of degrees 0..2 (58 paths, 744 terms).
    """
    slots = [(p, l) for p in range(parities_in) for l in range(max_degree_in + 1)]
    rows_in, rows_out = (max_degree_in + 1) ** 2, (max_degree_out + 1) ** 2
    paths: list[Path] = []
    entries: dict[tuple[int, tuple[int, ...]], dict[int, float]] = {}
    for order in range(1, correlation + 1):
        signatures = list(combinations_with_replacement(slots, order))
        for p, degree in product(range(parities_out), range(max_degree_out + 1)):
            for signature in signatures:
                if (sum(q + l for q, l in signature) + p + degree) % 2:
                    continue
                variables = _monomials(signature)
                for polynomial in _polynomials(signature).get(degree, ()):
                    for m, k in np.argwhere(np.abs(polynomial) > 1e-9):
                        rows = tuple(sorted(q * rows_in + l * l + i for q, l, i in variables[k]))
                        term = (p * rows_out + degree * degree + int(m), rows)
                        entries.setdefault(term, {})[len(paths)] = float(polynomial[m, k])
                    paths.append(Path(order, p, degree, signature))
    terms = tuple(sorted(entries))
    coefficients = np.zeros((len(paths), len(terms)))
    for t, term in enumerate(terms):
        for path, value in entries[term].items():
            coefficients[path, t] = value
    return Basis(tuple(paths), terms, coefficients)


@cache
def _monomials(signature: tuple[Slot, ...]) -> tuple[tuple[Variable, ...], ...]:
    """All monomials with these factors, each a sorted tuple of variables."""
    groups = []
    for p, l in sorted(set(signature)):
        entries = [(p, l, m) for m in range(2 * l + 1)]
        groups.append(list(combinations_with_replacement(entries, signature.count((p, l)))))
    return tuple(sum(parts, ()) for parts in product(*groups))


@cache
def _polynomials(signature: tuple[Slot, ...]) -> dict[int, np.ndarray]:
    """Degree of the result -> orthonormal polynomials (count, 2 degree + 1, monomials), of either parity."""
    *prefix, (p, l) = signature
    if not prefix:
        return {l: np.eye(2 * l + 1)[None]}
    place = {monomial: k for k, monomial in enumerate(_monomials(signature))}
    grown = np.array(
        [[place[tuple(sorted((*m, (p, l, i))))] for i in range(2 * l + 1)] for m in _monomials(tuple(prefix))]
    )
    candidates: dict[int, list[np.ndarray]] = {}
    for j, lower in _polynomials(tuple(prefix)).items():
        for degree in range(abs(j - l), j + l + 1):
            coupled = np.einsum("qan,aim->qmni", lower, wigner.clebsch_gordan(j, l, degree))
            full = np.zeros((len(lower), 2 * degree + 1, len(place)))
            for i in range(2 * l + 1):  # different monomials, multiplied by one variable, stay different
                full[:, :, grown[:, i]] += coupled[..., i]
            candidates.setdefault(degree, []).append(full)
    moments = _moments(_monomials(signature))
    kept = {degree: _orthonormal(np.concatenate(found), moments) for degree, found in sorted(candidates.items())}
    return {degree: polynomials for degree, polynomials in kept.items() if len(polynomials)}


def _moments(monomials: tuple[tuple[Variable, ...], ...]) -> np.ndarray:
    """E[a b] of every two monomials for independent standard normal variables: Π (n − 1)!! over even exponents n."""
    variables = sorted({v for monomial in monomials for v in monomial})
    exponents = np.array([[monomial.count(v) for v in variables] for monomial in monomials])
    top = 2 * int(exponents.max())
    single = np.array([0.0 if n % 2 else float(np.prod(np.arange(n - 1, 0, -2))) for n in range(top + 1)])
    moments = np.ones((len(monomials), len(monomials)))
    for column in exponents.T:  # one variable after another: all at once would need the square times the variables
        moments *= single[column[:, None] + column]
    return moments


def _orthonormal(candidates: np.ndarray, moments: np.ndarray) -> np.ndarray:
    """Gram-Schmidt in the given order, twice for accuracy: deterministic, where eigenvectors of a tie are not."""
    kept = np.zeros((0, *candidates.shape[1:]))
    for candidate in candidates:
        length = _product(candidate, candidate, moments) ** 0.5
        rest = candidate
        for _ in range(2):
            weighted = rest @ moments / len(rest)
            rest = rest - np.einsum("qmn,mn,qab->ab", kept, weighted, kept) if len(kept) else rest
        size = _product(rest, rest, moments) ** 0.5
        if size > 1e-6 * max(length, 1e-6):
            kept = np.concatenate([kept, rest[None] / size])
    return kept


def _product(f: np.ndarray, g: np.ndarray, moments: np.ndarray) -> float:
    """E[Σ_m f_m g_m]/(2l + 1)."""
    return max(float(np.sum((f @ moments) * g)) / len(f), 0.0)
