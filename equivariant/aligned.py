"""Products with harmonics in the frame where the edge is the polar axis: there only orders of equal |m| meet (eSCN).

A turn D(r) takes r to the axis y, along which Y_lm = √(2l + 1) δ_m0: a path multiplies each order m by one number. Sums
over paths thus cost one small matrix over degrees for each |m|, and two turns (Passaro and Zitnick 2023). The order of
the rows, and what becomes of pseudotensors, stands in `turns`.
"""

from functools import cache, partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from equivariant import edge_blocks, paths, torque, turns
from lie import smooth


class PathsSummed(NamedTuple):
    """The kernel: one message (edges, parities, orders, channels), the sum over all paths."""

    def frame(self, product: paths.Product, vectors: Array) -> edge_blocks.Frame:
        """The turn of each edge, and 1 for the paths that it has: one of no length has those through Y_0 alone."""
        D, spin = turns.turn(max(product.degree_in, product.degree_out), vectors)
        through_scalar = np.array([path.y[0] == 0 for path in paths.of(product)])
        there = (smooth.norm(vectors, axis=-1) > 0)[:, None] | through_scalar
        return edge_blocks.Frame((D, there.astype(vectors.dtype)), spin)

    def messages(self, product: paths.Product, X: Array, frame: edge_blocks.Frame, W: Array) -> tuple[Array, ...]:
        """The one message: turned into the frame of its edge, mixed, turned back."""
        (D, there), spin = frame
        turn, top = turns.Turn(D, spin), min(product.degree_in, product.degree_out)
        h = cast(tuple[Array, ...], _expand(product, W * there[:, :, None]))
        T = cast(Array, _mix(product, h, turns.into(top, turn, X)))
        return (turns.back(product.degree_out, top, turn, T),)

    def floats(self, product: paths.Product, channels: int) -> int:
        """Features both ways and in between, weights twice, turns."""
        rows_in = product.parities_in * (product.degree_in + 1) ** 2
        rows_out = product.parities_out * (product.degree_out + 1) ** 2
        top = max(product.degree_in, product.degree_out)
        entries = (top + 1) * (2 * top + 1) * (2 * top + 3) // 3
        return 3 * (rows_in + rows_out) * channels + len(paths.of(product)) * 2 * channels + 4 * entries


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
    return jnp.stack([torque.total(found[path]) for path in range(len(paths.of(product)))], axis=1)


_expand.defvjp(lambda product, W: (_expand(product, W), None), lambda product, _, h: (_collapse(product, h),))
_collapse.defvjp(lambda product, h: (_collapse(product, h), None), lambda product, _, W: (_expand(product, W),))


def _weighted(W: Array, terms) -> Array:
    return torque.total(W[:, path] * np.asarray(value, W.dtype) for path, value in terms)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix(product: paths.Product, h: tuple[Array, ...], x: Array) -> Array:
    """T = Σ over rows in of h x, for every |m| and sign: sums of products, elementwise over channels."""
    # Barriers here and in `turns`: XLA would make the sums anew for each row that reads them, in twice the time.
    pieces = []
    for order, matrix in zip(_orders(product), h, strict=True):
        part = _part(x, order.parities_in, order.rows_in, order.signs)
        T = torque.total(matrix[:, None, :, j] * part[:, :, j, None] for j in range(part.shape[2]))
        pieces.append(_whole(T, order.parities_out, order.signs))
    return jax.lax.optimization_barrier(_assembled(product.parities_out, _orders(product), pieces))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mix_back(product: paths.Product, h: tuple[Array, ...], y: Array) -> Array:
    pieces = []
    for order, matrix in zip(_orders(product), h, strict=True):
        part = _part(y, order.parities_out, order.rows_out, order.signs)
        x = torque.total(matrix[:, None, j] * part[:, :, j, None] for j in range(part.shape[2]))
        pieces.append(_whole(x, order.parities_in, order.signs))
    return jax.lax.optimization_barrier(_assembled(product.parities_in, _orders(product), pieces))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _outer(product: paths.Product, x: Array, y: Array) -> tuple[Array, ...]:
    found = []
    for order in _orders(product):
        into = _part(x, order.parities_in, order.rows_in, order.signs)
        out = _part(y, order.parities_out, order.rows_out, order.signs)
        found.append(torque.total(out[:, s, :, None] * into[:, s, None] for s in range(order.signs)))
    return tuple(found)


# <y, mix(h, x)> = <x, mix_back(h, y)> = <h, outer(x, y)>: each is the others' derivative.
_mix.defvjp(
    lambda product, h, x: (_mix(product, h, x), (h, x)),
    lambda product, saved, y: (_outer(product, saved[1], y), _mix_back(product, saved[0], y)),
)
_mix_back.defvjp(
    lambda product, h, y: (_mix_back(product, h, y), (h, y)),
    lambda product, saved, x: (_outer(product, x, saved[1]), _mix(product, saved[0], x)),
)
_outer.defvjp(
    lambda product, x, y: (_outer(product, x, y), (x, y)),
    lambda product, saved, h: (_mix_back(product, h, saved[1]), _mix(product, h, saved[0])),
)


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
