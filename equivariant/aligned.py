"""Products with harmonics in the frame where the edge is the polar axis: there only orders of equal |m| meet (eSCN).

A turn D(r) takes r to the axis y, along which Y_lm = √(2l + 1) δ_m0: a path multiplies each order m by one number. Sums
over paths thus cost one small matrix over degrees for each |m|, and two turns (Passaro and Zitnick 2023).

The turn is fixed up to a turn about y, and no choice is continuous on the sphere. No angle is ever differentiated:
the derivative of the turn is the shortest rotation that follows r (the horizontal lift). Whatever does not depend on
the choice, and messages do not, has exact derivatives of every order so, at the poles too, where the derivative
through angles is wrong by 36 to 100 %.

Rows of aligned features are sorted by |m|, then sign of m, then degree. A pseudotensor is kept as its orders (−m, −m)
multiplied by (1, −1), m > 0: then odd paths, which take m to −m, act like even ones.
"""

import operator
from collections.abc import Iterable
from functools import cache, partial, reduce
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from equivariant import paths
from lie import elementwise, smooth, wigner

_HIGHEST = jax.lax.Precision.HIGHEST


class Turn(NamedTuple):
    """D (edges, parities, aligned rows, orders) and its transpose; R (edges, 3, 3) with R r/|r| = (0, 1, 0)."""

    forward: Array
    backward: Array
    R: Array


def rows(max_degree: int, max_order: int) -> np.ndarray:
    """Positions l² + l + m of the aligned rows with |m| <= max_order, in their order."""
    signed = [(m, s) for m in range(max_order + 1) for s in ((1, -1) if m else (1,))]
    return np.array([l * l + l + s * m for m, s in signed for l in range(m, max_degree + 1)])


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def turn(max_degree: int, max_order: int, parities: int, r: Array) -> Turn:
    """The turn that takes r to the y axis, (edges, 3); the identity for r = 0. Rows up to |m| = max_order.

    D(r) = D(R_x(β)) D(R_y(γ)), its entries products of cosines and sines that come from r without an angle.
    """
    middle, cosines, sines, (cos_g, sin_g, y, across) = _angles(max_degree, r)
    plain, swapped = (table.astype(r.dtype) for table in _tables(max_degree, max_order, parities))

    def product(table: np.ndarray) -> Array:
        flat = jnp.matmul(middle, table.reshape(table.shape[0], -1), precision=_HIGHEST)
        return flat.reshape(-1, *table.shape[1:])

    forward = product(plain) * cosines[:, None, None] + product(swapped) * sines[:, None, None]
    # The transpose by the same products: a transposed operand costs a batched product on CPU twice its time.
    plain, swapped = plain.swapaxes(-1, -2), swapped.swapaxes(-1, -2)
    backward = product(plain) * cosines[:, None, :, None] + product(swapped) * sines[:, None, :, None]
    zero = jnp.zeros_like(y)
    R = [[cos_g, zero, sin_g], [across * sin_g, y, -across * cos_g], [-y * sin_g, across, y * cos_g]]
    return Turn(forward, backward, jnp.stack([jnp.stack(row, axis=-1) for row in R], axis=1))


def _angles(max_degree: int, r: Array) -> tuple[Array, Array, Array, tuple[Array, ...]]:
    """(1, cos kβ, sin kβ); cos and sin |m|γ for every order; cos γ, sin γ, cos β, sin β: in r's dtype, made in float64.

    An error of half an eps in an angle is k halves in its multiples: made in float32, they leave an error of
    equivariance of 6.6e-7 at max_degree 4 and 8.8e-7 at 8, so 4.0e-7 and 3.6e-7.
    """
    with jax.enable_x64(True):
        wide = r.astype(jnp.float64)
        length = smooth.norm(wide, axis=-1)
        x, y, z = (smooth.divide(wide[:, i], length, fallback=float(i == 1)) for i in range(3))
        across = smooth.norm(jnp.stack([x, z]), axis=0)
        cos_g, sin_g = smooth.divide(-z, across, fallback=1.0), smooth.divide(x, across)
        cosines, sines = _multiples(y, across, max_degree)
        middle = jnp.concatenate([cosines, sines[:, 1:]], axis=1)
        cosines, sines = (a[:, _absolute_orders(max_degree)] for a in _multiples(cos_g, sin_g, max_degree))
        found = (middle, cosines, sines, (cos_g, sin_g, y, across))
        return jax.tree.map(lambda a: a.astype(r.dtype), found)


@turn.defjvp
def _turn_jvp(max_degree, max_order, parities, primals, tangents):
    (r,), (r_dot,) = primals, tangents
    # All orders: the generators lead from the rows kept to their neighbours.
    whole = turn(max_degree, max_degree, parities, r)
    moved = elementwise.matvec(whole.R, smooth.divide(r_dot, smooth.norm(r, axis=-1)[:, None]))
    omega_x, omega_z = -moved[:, 2], moved[:, 0]
    kept = len(rows(max_degree, max_order))
    G = _generators(max_degree, parities).astype(r.dtype)[:, :, :kept]
    direction = omega_x[:, None, None, None] * G[0] + omega_z[:, None, None, None] * G[1]
    forward = jnp.matmul(direction, whole.forward, precision=_HIGHEST)
    zero = jnp.zeros_like(omega_x)
    hat = [[zero, -omega_z, zero], [omega_z, zero, -omega_x], [zero, omega_x, zero]]
    R_dot = elementwise.matmul(jnp.stack([jnp.stack(row, axis=-1) for row in hat], axis=1), whole.R)
    primal = Turn(whole.forward[:, :, :kept], whole.backward[..., :kept], whole.R)
    return primal, Turn(forward, forward.swapaxes(-1, -2), R_dot)


class PathsSummed(NamedTuple):
    """The kernel: one message (edges, parities, orders, channels), the sum over all paths."""

    def messages(self, product: paths.Product, X: Array, vectors: Array, W: Array) -> tuple[Array, ...]:
        """The one message: turned into the frame of its edge, mixed, turned back."""
        top = min(product.degree_in, product.degree_out)
        into = turn(product.degree_in, top, product.parities_in, vectors)
        out = turn(product.degree_out, top, product.parities_out, vectors)
        h = _matrices(product, _present(product, vectors, W))
        return (_turned(out.backward, _mix(product, h, _turned(into.forward, X))),)

    def cotangents(
        self, product: paths.Product, X: Array, vectors: Array, W: Array, Y: tuple[Array, ...]
    ) -> tuple[Array, Array, Array]:
        """Derivatives by features, vectors and weights: by hand, through the torque on the edge."""
        top = min(product.degree_in, product.degree_out)
        # One order more than meets: the generators of turns about x and z lead from |m| to |m| ± 1.
        into = turn(product.degree_in, min(top + 1, product.degree_in), product.parities_in, vectors)
        out = turn(product.degree_out, min(top + 1, product.degree_out), product.parities_out, vectors)
        inner_in, inner_out = len(rows(product.degree_in, top)), len(rows(product.degree_out, top))
        x, y = _turned(into.forward, X), _turned(out.forward, Y[0])
        x_inner, y_inner = x[:, :, :inner_in], y[:, :, :inner_out]
        h = _matrices(product, _present(product, vectors, W))
        T = _mix(product, h, x_inner)
        x_bar = _mix_back(product, h, y_inner)
        W_bar = _present(product, vectors, cast(Array, _collapse(product, _outer(product, x_inner, y_inner))))
        X_bar = _turned(into.backward[..., :inner_in], x_bar)
        # Turning the frame by ω moves the message by Dᵀ(−ωG T + h ωG x): the torque on the edge.
        torque = _torque(product.degree_out, T, y, sign=-1) + _torque(product.degree_in, x, x_bar, sign=1)
        arm = torque[:, 1, None] * into.R[:, 0] - torque[:, 0, None] * into.R[:, 2]
        return X_bar, smooth.divide(arm, smooth.norm(vectors, axis=-1)[:, None]), W_bar

    def floats(self, product: paths.Product, channels: int) -> int:
        """Features both ways and in between, weights twice, turns."""
        rows_in = product.parities_in * (product.degree_in + 1) ** 2
        rows_out = product.parities_out * (product.degree_out + 1) ** 2
        squares = (product.degree_in + 1) ** 4 + (product.degree_out + 1) ** 4
        return 3 * (rows_in + rows_out) * channels + len(paths.of(product)) * 2 * channels + 2 * squares


class _Order(NamedTuple):
    """Aligned rows of one |m| and the parities that meet there: all of them, but at m = 0 each only itself."""

    parities_in: slice
    parities_out: slice
    rows_in: slice
    rows_out: slice
    signs: int
    terms: tuple[tuple[tuple[tuple[int, float], ...], ...], ...]  # [row out][row in] -> (path, coefficient), ...


@cache
def _orders(product: paths.Product) -> tuple[_Order, ...]:
    found, start_in, start_out = [], 0, 0
    for m in range(min(product.degree_in, product.degree_out) + 1):
        signs = 2 if m else 1
        size_in, size_out = product.degree_in + 1 - m, product.degree_out + 1 - m
        rows_in = slice(start_in, start_in + signs * size_in)
        rows_out = slice(start_out, start_out + signs * size_out)
        start_in, start_out = rows_in.stop, rows_out.stop
        together = [(slice(product.parities_in), slice(product.parities_out))]
        alone = [(slice(p, p + 1), slice(p, p + 1)) for p in range(min(product.parities_in, product.parities_out))]
        for parities_in, parities_out in together if m else alone:
            terms = tuple(
                tuple(
                    _terms(product, m, p1, l1, p3, l3)
                    for p1 in range(product.parities_in)[parities_in]
                    for l1 in range(m, product.degree_in + 1)
                )
                for p3 in range(product.parities_out)[parities_out]
                for l3 in range(m, product.degree_out + 1)
            )
            found.append(_Order(parities_in, parities_out, rows_in, rows_out, signs, terms))
    return tuple(found)


def _terms(product, m, p1, l1, p3, l3) -> tuple[tuple[int, float], ...]:
    """The paths between two rows, each with the number by which it multiplies order m."""
    return tuple(
        (i, float(np.sqrt(2 * path.y[0] + 1) * _axis_value(path, m)))
        for i, path in enumerate(paths.of(product))
        if path.x == (l1, p1) and path.out == (l3, p3)
    )


def _axis_value(path: paths.Path, m: int) -> float:
    """What the path's coupling with Y_l2,0 does to order m, pseudotensors being kept as the module says."""
    (l1, p1), (l2, _), (l3, p3) = path
    C = paths.coupling(path)[:, l2]
    if p1 == p3:
        return C[l1 + m, l3 + m]
    return C[l1 - m, l3 + m] if p1 else -C[l1 - m, l3 + m]


def _present(product: paths.Product, vectors: Array, W: Array) -> Array:
    """W, with 0 for the paths that an edge of no length lacks: all but those through Y_0."""
    through_scalar = np.array([path.y[0] == 0 for path in paths.of(product)])
    there = ((smooth.norm(vectors, axis=-1) > 0)[:, None] | through_scalar).astype(W.dtype)
    # Without the barrier XLA makes the norm anew for every channel of every path: 10 % of the whole at degree 3.
    return W * jax.lax.optimization_barrier(there)[..., None]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _expand(product: paths.Product, W: Array) -> tuple[Array, ...]:
    """For each |m| the matrix over degrees, (edges, rows out, rows in, channels), that the paths make together."""
    nothing = jnp.zeros_like(W[:, 0])
    matrices = []
    for order in _orders(product):
        entries = [_weighted(W, terms) if terms else nothing for row in order.terms for terms in row]
        shape = (W.shape[0], len(order.terms), len(order.terms[0]), W.shape[-1])
        matrices.append(jnp.stack(entries, axis=1).reshape(shape))
    return tuple(matrices)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _collapse(product: paths.Product, matrices: tuple[Array, ...]) -> Array:
    """The transpose of `_expand`; each is the other's derivative."""
    found: dict[int, list[Array]] = {}
    for order, matrix in zip(_orders(product), matrices, strict=True):
        for i, row in enumerate(order.terms):
            for j, terms in enumerate(row):
                for path, value in terms:
                    found.setdefault(path, []).append(matrix[:, i, j] * np.asarray(value, matrix.dtype))
    return jnp.stack([_sum(found[path]) for path in range(len(paths.of(product)))], axis=1)


_expand.defvjp(lambda product, W: (_expand(product, W), None), lambda product, _, h: (_collapse(product, h),))
_collapse.defvjp(lambda product, h: (_collapse(product, h), None), lambda product, _, W: (_expand(product, W),))


def _matrices(product: paths.Product, W: Array) -> tuple[Array, ...]:
    return cast(tuple[Array, ...], _expand(product, W))  # a custom_vjp has no type of its own


def _weighted(W: Array, terms) -> Array:
    return _sum(W[:, path] * np.asarray(value, W.dtype) for path, value in terms)


def _sum(parts: Iterable[Array]) -> Array:
    return reduce(operator.add, parts)


def _mix(product: paths.Product, h: tuple[Array, ...], x: Array) -> Array:
    """T = Σ over rows in of h x, for every |m| and sign: sums of products, elementwise over channels."""
    pieces = []
    for order, matrix in zip(_orders(product), h, strict=True):
        part = _part(x, order.parities_in, order.rows_in, order.signs)
        T = _sum(matrix[:, None, :, j] * part[:, :, j, None] for j in range(part.shape[2]))
        pieces.append(_whole(T, order.parities_out, order.signs))
    return _assembled(product.parities_out, _orders(product), pieces)


def _mix_back(product: paths.Product, h: tuple[Array, ...], y: Array) -> Array:
    pieces = []
    for order, matrix in zip(_orders(product), h, strict=True):
        part = _part(y, order.parities_out, order.rows_out, order.signs)
        x = _sum(matrix[:, None, j] * part[:, :, j, None] for j in range(part.shape[2]))
        pieces.append(_whole(x, order.parities_in, order.signs))
    return _assembled(product.parities_in, _orders(product), pieces)


def _outer(product: paths.Product, x: Array, y: Array) -> tuple[Array, ...]:
    found = []
    for order in _orders(product):
        into = _part(x, order.parities_in, order.rows_in, order.signs)
        out = _part(y, order.parities_out, order.rows_out, order.signs)
        found.append(_sum(out[:, s, :, None] * into[:, s, None] for s in range(order.signs)))
    return tuple(found)


def _part(x: Array, parities: slice, rows: slice, signs: int) -> Array:
    """(edges, signs, parities · degrees, channels) out of aligned rows."""
    part = x[:, parities, rows]
    edges, p, _, channels = part.shape
    part = part.reshape(edges, p, signs, -1, channels)
    return (part[:, 0] if p == 1 else jnp.swapaxes(part, 1, 2)).reshape(edges, signs, -1, channels)


def _whole(part: Array, parities: slice, signs: int) -> Array:
    """The inverse of `_part`: (edges, parities, signs · degrees, channels)."""
    p, (edges, _, _, channels) = parities.stop - (parities.start or 0), part.shape
    part = part.reshape(edges, signs, p, -1, channels)
    return (part if p == 1 else jnp.swapaxes(part, 1, 2)).reshape(edges, p, -1, channels)


def _assembled(parities: int, orders: tuple[_Order, ...], pieces: list[Array]) -> Array:
    """Pieces of all |m| as aligned rows; at m = 0 each parity comes alone, or not at all: then it is zero there."""
    alone = sum(order.signs == 1 for order in orders)
    first = pieces[:alone]
    if alone < parities:
        first.append(jnp.zeros_like(first[0]))
    return jnp.concatenate([jnp.concatenate(first, axis=1), *pieces[alone:]], axis=2)


def _turned(D: Array, x: Array) -> Array:
    if D.shape[-2:] == (1, 1) and D.shape[1] == 1:
        return x
    return jnp.einsum("epij,epjc->epic", D, x, precision=_HIGHEST)


def _torque(max_degree: int, x: Array, y: Array, sign: int) -> Array:
    """sign · Σ <y, G x> for the turns about x and z, (edges, 2); x and y may lack outer rows of each other."""
    if max_degree == 0:
        return jnp.zeros((x.shape[0], 2), x.dtype)
    G = sign * _generators(max_degree, x.shape[1])[:, :, : y.shape[2], : x.shape[2]]
    A = jnp.einsum("epic,epjc->epij", y, x, precision=_HIGHEST).reshape(x.shape[0], -1)
    return jnp.matmul(A, G.reshape(2, -1).T.astype(x.dtype), precision=_HIGHEST)


def _multiples(cosine: Array, sine: Array, top: int) -> tuple[Array, Array]:
    """cos kφ and sin kφ, k = 0..top, (edges, top + 1): by doubling, so that errors grow with k, not k²."""
    cosines, sines = cosine[:, None], sine[:, None]
    while cosines.shape[1] < top:
        c, s = cosines[:, -1:], sines[:, -1:]
        cosines, sines = (
            jnp.concatenate([cosines, cosines * c - sines * s], axis=1),
            jnp.concatenate([sines, sines * c + cosines * s], axis=1),
        )
    one = jnp.ones_like(cosine)[:, None]
    return jnp.concatenate([one, cosines[:, :top]], axis=1), jnp.concatenate([0 * one, sines[:, :top]], axis=1)


@cache
def _absolute_orders(max_degree: int) -> np.ndarray:
    return np.array([abs(m) for l in range(max_degree + 1) for m in range(-l, l + 1)])


@cache
def _tables(max_degree: int, max_order: int, parities: int) -> tuple[np.ndarray, np.ndarray]:
    """(2L + 1, parities, aligned rows, orders): what (1, cos kβ, sin kβ) and cos mγ, or sin mγ, make of D, float64."""
    size = (max_degree + 1) ** 2
    plain, swapped = np.zeros((2, 2 * max_degree + 1, size, size))
    for l in range(max_degree + 1):
        P, Q = wigner.middle_blocks(l)
        about_x = np.zeros((2 * l + 1, 2 * l + 1, 2 * l + 1))
        about_x[:, l:, l:], about_x[:, :l, :l] = P, Q[:, :0:-1, :0:-1]
        signs = np.sign(np.arange(-l, l + 1))
        place = np.r_[0 : l + 1, max_degree + 1 : max_degree + 1 + l]
        rows_l = slice(l * l, (l + 1) ** 2)
        plain[place, rows_l, rows_l] = about_x
        swapped[place, rows_l, rows_l] = (-signs * about_x)[..., ::-1]  # D(R_y(γ)) = cos mγ, −sin mγ across ±m
    kept = len(rows(max_degree, max_order))
    align = _aligning(max_degree, parities)[:, :kept]
    return np.einsum("pij,tjk->tpik", align, plain), np.einsum("pij,tjk->tpik", align, swapped)


@cache
def _aligning(max_degree: int, parities: int) -> np.ndarray:
    """(parities, aligned rows, orders): sorts rows; a pseudotensor's orders ±m are exchanged, the second negated."""
    places = rows(max_degree, max_degree)
    matrix = np.zeros((parities, len(places), len(places)))
    for row, place in enumerate(places):
        l = int(np.sqrt(place))
        m = place - l * l - l
        matrix[0, row, place] = 1
        if parities == 2:
            matrix[1, row, l * l + l - m] = -1 if m < 0 else 1
    return matrix


@cache
def _generators(max_degree: int, parities: int) -> np.ndarray:
    """G_x and G_z on aligned rows, (2, parities, rows, rows), float64."""
    size = (max_degree + 1) ** 2
    G = np.zeros((2, size, size))
    for l in range(max_degree + 1):
        G[:, l * l : (l + 1) ** 2, l * l : (l + 1) ** 2] = wigner.generators(l)[[0, 2]]
    align = _aligning(max_degree, parities)
    return np.einsum("pij,gjk,plk->gpil", align, G, align)
