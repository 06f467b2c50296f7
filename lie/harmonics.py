"""Real spherical harmonics, and the Fourier transforms between coefficients and grids on S2 and SO(3).

Conventions. Harmonics are e3nn's: orders m = −l..l about the polar axis y, degree after degree, "component"
normalisation (the mean of Y_lm² over the sphere is 1), no Condon-Shortley sign, Y_1(x) = √3 x in xyz order.
Grids have Gauss-Legendre nodes in the cosine of the polar angle and equal steps in azimuth, so that every integral
of a product of two functions of degree <= `grid_degree` is exact. Transforms are separable: O(L³) work per function on
S2, O(L⁴) on SO(3), instead of L⁴ and L⁶; they are sums of products in full precision, without an FFT, whose gain
would be lost beside the Legendre step.
"""

import math
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lie import check, solid, wigner

_einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


class Grid(NamedTuple):
    """Points of a grid and the weights of its quadrature, which sum to 1: mean f = Σ weights · f(points); float64."""

    points: np.ndarray
    weights: np.ndarray


def evaluate(x: Float[ArrayLike, "*batch 3"], max_degree: int, normalize: bool = True) -> Float[Array, "*batch orders"]:
    """Y_lm(x/|x|) for l = 0..max_degree: (max_degree + 1)² values; the solid harmonics |x|^l Y_lm if not `normalize`.

    At x = 0: Y_0 = 1, all others 0, and if `normalize` all derivatives are 0 by choice; the solid harmonics are
    polynomials, differentiable everywhere. Gradients are analytic (harmonics one degree lower) and finite at the poles.

    Error at any direction, float32 and float64, relative to the peak √(2l + 1) of the degree: <= 2 eps for l <= 4,
    4.1 eps to l = 12, 6.4 eps to l = 20. Raises ValueError for a negative degree.
    """
    x, max_degree = check.array("x", x, 3), check.degree("max_degree", max_degree)
    wide = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    rows = solid.values(wide.reshape(-1, 3), max_degree, bool(normalize))
    return rows.reshape(*x.shape[:-1], (max_degree + 1) ** 2).astype(x.dtype)


def sphere_grid(grid_degree: int) -> Grid:
    """Points (g + 1, 2g + 1, 3) on S2, polar angle by azimuth, and weights (g + 1, 2g + 1), g = `grid_degree`.

    points[b, a] = (sin β sin α, cos β, sin β cos α), cos β rising over the Gauss-Legendre nodes, α = 2πa/(2g + 1).
    """
    cosines, weights = _nodes(check.degree("grid_degree", grid_degree))
    steps = 2 * grid_degree + 1
    alpha, sines = 2 * np.pi * np.arange(steps) / steps, np.sqrt(1 - cosines**2)
    points = [np.outer(sines, np.sin(alpha)), np.outer(cosines, np.ones(steps)), np.outer(sines, np.cos(alpha))]
    return Grid(np.stack(points, axis=-1), np.outer(weights, np.ones(steps) / steps))


def to_grid(
    x: Float[ArrayLike, "*batch orders channels"], grid_degree: int | None = None
) -> Float[Array, "*batch polar azimuth channels"]:
    """Σ_lm x_lm Y_lm at the points of `sphere_grid(grid_degree)`, grid_degree >= L (default L) where orders = (L + 1)².

    Features (*batch, parities, orders, channels) go in as they are; for plain coefficients write x[..., None]. A
    nonlinearity of polynomial degree p applied on the grid is projected back exactly if grid_degree >= (p + 1) L / 2.
    """
    x = check.array("x", x, None, None)
    max_degree = _max_degree_of_orders("x", x.shape[-2])
    grid_degree = _grid_degree(max_degree, grid_degree)
    legendre, _, azimuth = _sphere_tables(max_degree, grid_degree)
    degrees, orders = _positions(max_degree)
    table = jnp.zeros((*x.shape[:-2], max_degree + 1, 2 * max_degree + 1, x.shape[-1]), x.dtype)
    table = table.at[..., degrees, orders, :].set(x)
    rings = _einsum("blm,...lmc->...bmc", legendre.astype(x.dtype), table)
    return _einsum("am,...bmc->...bac", azimuth.astype(x.dtype), rings)


def from_grid(
    values: Float[ArrayLike, "*batch polar azimuth channels"], max_degree: int
) -> Float[Array, "*batch orders channels"]:
    """x_lm = mean over the sphere of f Y_lm for l <= max_degree, from values on a `sphere_grid`: undoes `to_grid`.

    Exact for functions of degree <= 2 grid_degree − max_degree. Parseval: Σ x_lm² is the mean of f².
    Raises ValueError if the values lie on no such grid, or on one too coarse for max_degree.
    """
    values, max_degree = check.array("values", values, None, None, None), check.degree("max_degree", max_degree)
    polar, steps = values.shape[-3:-1]
    if steps != 2 * polar - 1 or polar < max_degree + 1:
        raise ValueError(
            f"values: expected shape (..., g + 1, 2g + 1, channels) with g >= max_degree = {max_degree}, "
            f"got {values.shape}"
        )
    _, analysis, azimuth = _sphere_tables(max_degree, polar - 1)
    rings = _einsum("am,...bac->...bmc", azimuth.astype(values.dtype), values)
    table = _einsum("blm,...bmc->...lmc", analysis.astype(values.dtype), rings)
    degrees, orders = _positions(max_degree)
    return table[..., degrees, orders, :]


def rotation_grid(grid_degree: int) -> Grid:
    """Rotations (2g + 1, g + 1, 2g + 1, 3, 3) R = R_y(α) R_x(β) R_y(γ), axes (α, β, γ), and their Haar weights."""
    cosines, weights = _nodes(check.degree("grid_degree", grid_degree))
    steps = 2 * grid_degree + 1
    alpha = 2 * np.pi * np.arange(steps) / steps
    turns_y = _turns(np.cos(alpha), np.sin(alpha), (2, 0))
    turns_x = _turns(cosines, np.sqrt(1 - cosines**2), (1, 2))
    points = np.einsum("aij,bjk,ckl->abcil", turns_y, turns_x, turns_y)
    return Grid(points, np.broadcast_to(weights[:, None] / steps**2, (steps, grid_degree + 1, steps)).copy())


def fourier_so3(
    values: Float[ArrayLike, "*batch alpha beta gamma"], max_degree: int | None = None
) -> tuple[Float[Array, "*batch _ _"], ...]:
    """F_l = ∫ f(R) D_l(R) dR (Haar) for l = 0..max_degree, from values on a `rotation_grid` of degree >= max_degree.

    Exact for f of degree <= 2 grid_degree − max_degree; by default max_degree = grid_degree. Parseval: the mean of f²
    is Σ_l (2l + 1) |F_l|². Convolution (f ∗ g)(R) = ∫ f(Q) g(Q⁻¹R) dQ becomes the product F_l G_l.
    """
    values = check.array("values", values, None, None, None)
    steps, polar, last = values.shape[-3:]
    if steps != last or steps != 2 * polar - 1 or (max_degree is not None and polar < max_degree + 1):
        raise ValueError(
            f"values: expected shape (..., 2g + 1, g + 1, 2g + 1) with g >= max_degree = {max_degree}, "
            f"got {values.shape}"
        )
    max_degree = polar - 1 if max_degree is None else check.degree("max_degree", max_degree)
    azimuth = _azimuth(max_degree, steps).astype(values.dtype) / steps
    moments = _einsum("ai,ck,...abc->...ibk", azimuth, azimuth, values)
    _, weights = _nodes(polar - 1)
    coefficients = []
    for l in range(max_degree + 1):
        straight, mirrored = (weights[:, None] * table for table in _polar_blocks(l, polar - 1))
        near = moments[..., max_degree - l : max_degree + l + 1, :, max_degree - l : max_degree + l + 1]
        far = near[..., ::-1, :, ::-1]
        coefficients.append(
            jnp.sum(near * straight.astype(values.dtype) + far * mirrored.astype(values.dtype), axis=-2)
        )
    return tuple(coefficients)


def inverse_fourier_so3(
    coefficients: tuple[Float[ArrayLike, "*batch _ _"], ...], grid_degree: int | None = None
) -> Float[Array, "*batch alpha beta gamma"]:
    """f(R) = Σ_l (2l + 1) <F_l, D_l(R)> on `rotation_grid(grid_degree)`, grid_degree >= L (default L): undoes
    `fourier_so3`. `coefficients` holds F_0, ..., F_L, all (*batch, 2l + 1, 2l + 1).
    """
    if not coefficients:
        raise ValueError("coefficients: expected one matrix for each degree from 0, got none")
    matrices = [check.array(f"coefficients[{l}]", F, 2 * l + 1, 2 * l + 1) for l, F in enumerate(coefficients)]
    check.same_dtype(**{f"coefficients[{l}]": F for l, F in enumerate(matrices)})
    max_degree, dtype = len(matrices) - 1, matrices[0].dtype
    grid_degree = _grid_degree(max_degree, grid_degree)
    moments = jnp.zeros((), dtype)
    for l, F in enumerate(matrices):
        straight, mirrored = ((2 * l + 1) * table.astype(dtype) for table in _polar_blocks(l, grid_degree))
        F, rest = F[..., :, None, :], max_degree - l
        term = F * straight + (F * mirrored)[..., ::-1, :, ::-1]
        moments = moments + jnp.pad(term, [(0, 0)] * (term.ndim - 3) + [(rest, rest), (0, 0), (rest, rest)])
    azimuth = _azimuth(max_degree, 2 * grid_degree + 1).astype(dtype)
    return _einsum("ai,ck,...ibk->...abc", azimuth, azimuth, moments)


def _max_degree_of_orders(name: str, orders: int) -> int:
    max_degree = math.isqrt(orders) - 1
    if max_degree < 0 or (max_degree + 1) ** 2 != orders:
        raise ValueError(f"{name}: expected (max_degree + 1)**2 orders on the last axis but one, got {orders}")
    return max_degree


def _grid_degree(max_degree: int, grid_degree: int | None) -> int:
    if grid_degree is None:
        return max_degree
    if check.degree("grid_degree", grid_degree) < max_degree:
        raise ValueError(f"grid_degree: expected at least max_degree = {max_degree}, got {grid_degree}")
    return grid_degree


@cache
def _nodes(grid_degree: int) -> tuple[np.ndarray, np.ndarray]:
    """cos β and weights, which sum to 1, of the Gauss-Legendre rule that is exact to degree 2 grid_degree + 1."""
    nodes, weights = np.polynomial.legendre.leggauss(grid_degree + 1)
    return nodes, weights / 2


@cache
def _azimuth(max_degree: int, steps: int) -> np.ndarray:
    """(sin |m|α, ..., 1, ..., cos mα) at the steps of α: (steps, 2 max_degree + 1)."""
    phases = np.outer(2 * np.pi * np.arange(steps) / steps, np.arange(max_degree + 1))
    return np.concatenate([np.sin(phases[:, :0:-1]), np.cos(phases)], axis=1)


@cache
def _sphere_tables(max_degree: int, grid_degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The factors of Y_lm in the polar angle, (polar, degrees, orders); those times weights; those in azimuth."""
    cosines, weights = _nodes(grid_degree)
    legendre = np.zeros((grid_degree + 1, max_degree + 1, 2 * max_degree + 1))
    for m in range(max_degree + 1):
        for l, ring in enumerate(_legendre(cosines, m, max_degree), start=m):
            legendre[:, l, max_degree + m] = legendre[:, l, max_degree - m] = ring
    steps = 2 * grid_degree + 1
    return legendre, weights[:, None, None] * legendre / steps, _azimuth(max_degree, steps)


def _legendre(cosines: np.ndarray, m: int, max_degree: int) -> list[np.ndarray]:
    """Normalised associated Legendre functions of order m for l = m..max_degree, by the three-term recursion."""
    first = np.sqrt(1 - cosines**2) ** m * math.prod(math.sqrt((2 * k + 1) / (2 * k)) for k in range(1, m + 1))
    rings = [first * (math.sqrt(2) if m else 1)]
    for l in range(m + 1, max_degree + 1):
        up = math.sqrt((4 * l * l - 1) / (l * l - m * m))
        down = up * math.sqrt(((l - 1) ** 2 - m * m) / (4 * (l - 1) ** 2 - 1))
        rings.append(up * cosines * rings[-1] - (down * rings[-2] if l > m + 1 else 0))
    return rings


@cache
def _polar_blocks(degree: int, grid_degree: int) -> tuple[np.ndarray, np.ndarray]:
    """S, M (2l + 1, polar, 2l + 1): D_l[i, j] = e_i(α) S e_j(γ) + e_{−i}(α) M e_{−j}(γ), e = (sines, 1, cosines)."""
    cosines, _ = _nodes(grid_degree)
    beta, k = np.arccos(cosines)[:, None], np.arange(1, degree + 1)
    turn = np.concatenate([np.ones_like(beta), np.cos(k * beta), np.sin(k * beta)], axis=1)
    P, Q = (np.einsum("bt,tij->ibj", turn, block) for block in wigner.middle_blocks(degree))
    order = np.arange(-degree, degree + 1)
    size, sign = np.abs(order), np.where(order < 0, -1.0, 1.0)
    return P[size][:, :, size] * sign, -Q[size][:, :, size] * sign[:, None, None]


def _turns(cosine: np.ndarray, sine: np.ndarray, plane: tuple[int, int]) -> np.ndarray:
    """Rotations that carry the first axis of the plane towards the second, (n, 3, 3)."""
    i, j = plane
    turns = np.tile(np.eye(3), (len(cosine), 1, 1))
    turns[:, i, i] = turns[:, j, j] = cosine
    turns[:, j, i], turns[:, i, j] = sine, -sine
    return turns


def _positions(max_degree: int) -> tuple[np.ndarray, np.ndarray]:
    """Row l and column L + m of each of the (L + 1)² orders in a (degrees, orders) table."""
    pairs = [(l, max_degree + m) for l in range(max_degree + 1) for m in range(-l, l + 1)]
    degrees, orders = np.array(pairs, np.int32).T
    return degrees, orders
