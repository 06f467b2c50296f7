"""Solid harmonics: the harmonic polynomials r^l Y_lm, degree by degree, stable at the poles and at the origin.

With the polar axis y, ρ² = x² + z² and (z + ix)^m = c_m + i s_m, the harmonic of degree l and order m is F_l^m(y, ρ²)
times c_m, of order −m times s_m. Degree l follows from degree l − 1 by Euler's identity l F = (x·∇)F:
    l F_l^m = (l + m) y F_{l−1}^m − ½ ρ² F_{l−1}^{m+1} + ½ (l + m)(l + m − 1) F_{l−1}^{m−1}   (unnormalised).
It needs no r², which the usual three-term recursion does, and with it amplifies the rounding of r² by l² at the poles.
"""

import math
from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lie import smooth

# On a CPU a large batch runs in pieces whose temporaries stay in the second-level cache: whole-batch temporaries are
# fresh pages at every call, and the page faults cost 2 to 5 times the arithmetic. Entries of output per piece:
_PIECE = 170_000


def values(x: Float[Array, "batch 3"], max_degree: int, normalize: bool) -> Float[Array, "batch orders"]:
    """All harmonics up to `max_degree` at the rows of x, or at x/|x| if `normalize`: rows of (max_degree + 1)²."""
    return _compiled_values(max_degree, normalize, x)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _values(max_degree: int, normalize: bool, x: Array) -> Array:
    def columns(x):
        return jnp.concatenate(_degrees(x, max_degree, normalize))

    return _in_pieces(columns, (max_degree + 1) ** 2, x)


@_values.defjvp
def _values_jvp(max_degree, normalize, primals, tangents):
    (x,), (x_dot,) = primals, tangents

    # Recomputing the lower degrees is cheaper than storing them, so only x is kept for the backward pass.
    @partial(jax.checkpoint, prevent_cse=False)
    def columns(x, x_dot):
        u, u_dot = jax.jvp(_direction, (x,), (x_dot,)) if normalize else (x, x_dot)
        return jnp.concatenate(_slopes(u, u_dot, max_degree))

    return _values(max_degree, normalize, x), _in_pieces(columns, (max_degree + 1) ** 2, x, x_dot)


_compiled_values = jax.jit(_values, static_argnums=(0, 1))  # outside jit: one compilation, not one per operation


def _in_pieces(columns: Callable[..., Array], orders: int, *rows: Array) -> Array:
    """`columns` of the rows: (batch, 3) each -> (batch, orders).

    `columns` itself goes from (3, batch) to (orders, batch): the batch lies along the processor's lanes.
    """

    def whole(*rows):
        return columns(*(row.T for row in rows)).T

    def piecewise(*rows):
        cut = [jnp.pad(row, ((0, pieces * size - batch), (0, 0))).reshape(pieces, size, 3) for row in rows]
        result = jax.lax.map(lambda piece: whole(*piece), tuple(cut)).reshape(pieces * size, orders)
        return result if pieces * size == batch else result[:batch]

    batch = rows[0].shape[0]
    pieces, size = _cut(batch, max(64, _PIECE // orders))
    if pieces < 3:
        return whole(*rows)
    return jax.lax.platform_dependent(*rows, cpu=piecewise, default=whole)


@cache
def _cut(batch: int, largest: int) -> tuple[int, int]:
    """(pieces, size) with size <= largest; without a remainder if that takes at most twice as many pieces."""
    fewest = -(-batch // largest)
    for pieces in range(fewest, 2 * fewest + 1):
        if pieces and batch % pieces == 0:
            return pieces, batch // pieces
    return fewest, -(-batch // max(fewest, 1))


def _direction(x: Array) -> Array:
    """x/|x| along the first axis; 0 with zero derivatives at 0."""
    pole = jnp.array([0, 1, 0], x.dtype)  # never seen: it keeps the division finite where x = 0
    return jnp.where(jnp.any(x != 0, axis=0), smooth.direction(x.T, pole).T, 0)


def _degrees(x: Array, max_degree: int, normalize: bool) -> list[Array]:
    """Blocks (2l + 1, batch) for l = 0..max_degree at x (3, batch)."""
    u = _direction(x) if normalize else x
    ones, zeros = jnp.ones_like(u[:1]), jnp.zeros_like(u[:1])
    y, rho_squared = u[1:2], u[:1] * u[:1] + u[2:] * u[2:]
    phases = _phases(u, max_degree)
    excess = _excess(u) if normalize else None
    factor, blocks = ones, [ones]
    for l in range(1, max_degree + 1):
        same, above, below = (column.astype(x.dtype)[:, None] for column in _recursion(l))
        grown = same[:l] * y * factor
        if l > 1:
            grown = grown + above[:l] * rho_squared * jnp.concatenate([factor[1:], zeros])
            grown = grown + below[:l] * jnp.concatenate([zeros, factor[:-1]])
        factor = jnp.concatenate([grown, below[l] * factor[-1:]])
        # a unit vector in floating point is too long by 1 + excess/2, and degree l by the l-th power of that
        exact = factor if excess is None else factor * (1 - l / 2 * excess)
        blocks.append(jnp.concatenate([exact[:0:-1], exact]) * phases[max_degree - l : max_degree + l + 1])
    return blocks


def _phases(u: Array, max_degree: int) -> Array:
    """(s_L, ..., s_1, 1, c_1, ..., c_L) with c_m + i s_m = (z + ix)^m, by repeated doubling."""
    cosines, sines = u[2:], u[:1]
    while cosines.shape[0] < max_degree:
        c, s = cosines[-1:], sines[-1:]
        cosines, sines = (
            jnp.concatenate([cosines, cosines * c - sines * s]),
            jnp.concatenate([sines, sines * c + cosines * s]),
        )
    return jnp.concatenate([sines[:max_degree][::-1], jnp.ones_like(u[:1]), cosines[:max_degree]])


def _excess(u: Array) -> Array:
    """|u|² − 1 for a rounded unit vector, to a fraction of an ulp: squares of half-length heads are exact; 0 at 0."""
    head = jax.lax.reduce_precision(u, *_HALF_LENGTH[u.dtype.itemsize])
    squares, rest = head * head, (u - head) * (u + head)
    excess = ((squares[:1] - 1) + squares[1:2] + squares[2:]) + (rest[:1] + rest[1:2] + rest[2:])
    return jax.lax.stop_gradient(jnp.where(excess > -0.5, excess, 0))


_HALF_LENGTH = {4: (8, 11), 8: (11, 25)}  # exponent and mantissa bits of a head whose square is exact, by item size


def _slopes(u: Array, u_dot: Array, max_degree: int) -> list[Array]:
    """Blocks of (u̇·∇)R: the gradient of a harmonic polynomial is made of harmonics one degree lower."""
    padding = ((2, 2), (0, 0))
    blocks = [jnp.zeros_like(u[:1])]
    for l, lower in enumerate(_degrees(u, max_degree - 1, False) if max_degree else [], start=1):
        slope_x, slope_y, slope_z = (table.astype(u.dtype) for table in _gradient(l))
        padded = jnp.pad(lower, padding)
        mirrored = padded[::-1]
        here, before, after = (slice(start, start + 2 * l + 1) for start in (1, 0, 2))
        blocks.append(
            u_dot[:1] * (slope_x[0][:, None] * mirrored[before] + slope_x[1][:, None] * mirrored[after])
            + u_dot[1:2] * (slope_y[:, None] * padded[here])
            + u_dot[2:] * (slope_z[0][:, None] * padded[before] + slope_z[1][:, None] * padded[after])
        )
    return blocks


def _norm(l: int, m: int) -> float:
    """From r^l P_l^m(y/r) (no Condon-Shortley sign) to "component" normalisation: mean square 1 on the sphere."""
    return math.sqrt((2 * l + 1) * (1 if m == 0 else 2) * (math.factorial(l - m) / math.factorial(l + m)))


@cache
def _recursion(l: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coefficients over m = 0..l of y F^m, ρ² F^{m+1} and F^{m−1} of degree l − 1 (see the head of the file)."""
    same, above, below = np.zeros(l + 1), np.zeros(l + 1), np.zeros(l + 1)
    for m in range(l + 1):
        if m < l:
            same[m] = (l + m) / l * _norm(l, m) / _norm(l - 1, m)
        if m + 1 < l:
            above[m] = -(1 if m == 0 else 0.5) / l * _norm(l, m) / _norm(l - 1, m + 1)
        if m > 0:
            below[m] = 0.5 * (l + m) * (l + m - 1) / l * _norm(l, m) / _norm(l - 1, m - 1)
    return same, above, below


@cache
def _gradient(l: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """∂x, ∂y, ∂z of degree l in terms of degree l − 1, over the orders m = −l..l.

    ∂y R_m = a R_m; ∂z R_m = b R_{m−1} + c R_{m+1}; ∂x R_m = d R_{−(m−1)} + e R_{−(m+1)}: rows (before, after) as
    `_slopes` reads them, from (∂z + i∂x) R^m = −R^{m+1}, (∂z − i∂x) R^m = (l + m)(l + m − 1) R^{m−1} unnormalised.
    """
    slope_x, slope_y, slope_z = np.zeros((2, 2 * l + 1)), np.zeros(2 * l + 1), np.zeros((2, 2 * l + 1))
    for m in range(l + 1):
        for sign in (1, -1) if m else (1,):  # +: the cosine c_m at index m, −: the sine s_m at index −m
            row, outward = l + sign * m, 1 if sign > 0 else 0  # outward: towards larger |m|
            if m < l:
                slope_y[row] = (l + m) * _norm(l, m) / _norm(l - 1, m)
            if m + 1 < l:
                size = (1 if m == 0 else 0.5) * _norm(l, m) / _norm(l - 1, m + 1)
                slope_z[outward, row] = -size
                slope_x[outward, row] = -sign * size
            if m > (0 if sign > 0 else 1):
                size = 0.5 * (l + m) * (l + m - 1) * _norm(l, m) / _norm(l - 1, m - 1)
                slope_z[1 - outward, row] = size
            if m > (1 if sign > 0 else 0):
                size = 0.5 * (l + m) * (l + m - 1) * _norm(l, m) / _norm(l - 1, m - 1)
                slope_x[1 - outward, row] = -sign * size
    return slope_x, slope_y, slope_z
