"""Products with harmonics, every path apart: per edge one matrix Y·C for each degree that comes in, in the fixed frame.

u = M(r) X with M_l1(r)[(path, m3), m1] = Σ_m2 C[m1, m2, m3] Y_m2(r): one product of Y with constants, then one batched
product of small matrices over all channels. Written backwards by hand: M is small, messages are never stored.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from equivariant import paths
from lie import harmonics

_HIGHEST = jax.lax.Precision.HIGHEST


class Group(NamedTuple):
    """Paths from one (parity, degree) to one other, which differ in the filter only: `count` from path `start` on."""

    start: int
    count: int
    parity_out: int
    degree_out: int


class Entry(NamedTuple):
    """What comes in as one (parity, degree): its rows, its groups of paths, and (filter orders, rows out · rows in)."""

    parity: int
    rows: slice
    groups: tuple[Group, ...]
    table: np.ndarray


@cache
def entries(product: paths.Product) -> tuple[Entry, ...]:
    """The entries of a product, in the order of parity and degree; those that lead nowhere are left out."""
    every = paths.of(product)
    found = []
    for p1 in range(product.parities_in):
        for l1 in range(product.degree_in + 1):
            groups, columns = [], []
            for p3 in range(product.parities_out):
                for l3 in range(product.degree_out + 1):
                    members = [i for i, p in enumerate(every) if p.x == (l1, p1) and p.out == (l3, p3)]
                    if not members:
                        continue
                    groups.append(Group(members[0], len(members), p3, l3))
                    for i in members:
                        column = np.zeros(((product.degree_filter + 1) ** 2, 2 * l3 + 1, 2 * l1 + 1))
                        l2, _ = every[i].y
                        column[l2 * l2 : (l2 + 1) ** 2] = paths.coupling(every[i]).transpose(1, 2, 0)
                        columns.append(column)
            if groups:
                table = np.concatenate(columns, axis=1).reshape((product.degree_filter + 1) ** 2, -1)
                found.append(Entry(p1, slice(l1 * l1, (l1 + 1) ** 2), tuple(groups), table))
    return tuple(found)


class PathsKept(NamedTuple):
    """The kernel: one message (edges, paths of the group, 2·l3 + 1, channels) per group, in the order of `entries`."""

    def messages(self, product: paths.Product, X: Array, vectors: Array, W: Array) -> tuple[Array, ...]:
        """One batched product of matrices for each degree that comes in."""
        Y = harmonics.evaluate(vectors, product.degree_filter)
        found = []
        for entry in entries(product):
            u = jnp.matmul(_matrix(entry, Y), X[:, entry.parity, entry.rows], precision=_HIGHEST)
            for group, part in zip(entry.groups, _groups(entry, u), strict=True):
                found.append(part * W[:, group.start : group.start + group.count, None])
        return tuple(found)

    def cotangents(
        self, product: paths.Product, X: Array, vectors: Array, W: Array, Y: tuple[Array, ...]
    ) -> tuple[Array, Array, Array]:
        """Derivatives by features, vectors and weights, the messages made anew."""
        filters, pull = jax.vjp(lambda v: harmonics.evaluate(v, product.degree_filter), vectors)
        X_bar = [[jnp.zeros_like(X[:, p, s]) for s in _rows(product)] for p in range(product.parities_in)]
        W_bar: dict[int, Array] = {}
        filters_bar, remaining = jnp.zeros_like(filters), list(Y)
        for entry in entries(product):
            M, part_in = _matrix(entry, filters), X[:, entry.parity, entry.rows]
            u = jnp.matmul(M, part_in, precision=_HIGHEST)
            given = [remaining.pop(0) for _ in entry.groups]
            weighted = []
            for group, part, y in zip(entry.groups, _groups(entry, u), given, strict=True):
                W_bar[group.start] = jnp.sum(part * y, axis=2)
                weighted.append(y * W[:, group.start : group.start + group.count, None])
            z = jnp.concatenate([w.reshape(w.shape[0], -1, w.shape[-1]) for w in weighted], axis=1)
            degree = entry.rows.stop - entry.rows.start >> 1
            X_bar[entry.parity][degree] = jnp.matmul(_transposed(entry, filters), z, precision=_HIGHEST)
            M_bar = jnp.einsum("brc,bmc->brm", z, part_in, precision=_HIGHEST).reshape(X.shape[0], -1)
            filters_bar += jnp.matmul(M_bar, entry.table.T.astype(M_bar.dtype), precision=_HIGHEST)
        (vectors_bar,) = pull(filters_bar)
        stacked = jnp.stack([jnp.concatenate(rows, axis=1) for rows in X_bar], axis=1)
        return stacked, vectors_bar, jnp.concatenate([W_bar[start] for start in sorted(W_bar)], axis=1)

    def floats(self, product: paths.Product, channels: int) -> int:
        """Messages thrice, features both ways, weights twice, and the matrices."""
        every = paths.of(product)
        rows = 3 * sum(2 * path.out[0] + 1 for path in every) + 2 * product.parities_in * (product.degree_in + 1) ** 2
        return (rows + 2 * len(every)) * channels + sum(entry.table.shape[1] for entry in entries(product))


def gather(product: paths.Product, sums: tuple[Array, ...]) -> tuple[tuple[Array, ...], ...]:
    """From sums over edges, by [parity][degree] that comes out: (nodes, 2·l3 + 1, paths, channels), paths in order."""
    found: dict[tuple[int, int], list[tuple[int, Array]]] = {}
    groups = [group for entry in entries(product) for group in entry.groups]
    for group, a in zip(groups, sums, strict=True):
        found.setdefault((group.parity_out, group.degree_out), []).append((group.start, a))

    def joined(p: int, l: int) -> Array:
        parts = [jnp.swapaxes(a, 1, 2) for _, a in sorted(found.get((p, l), []), key=lambda pair: pair[0])]
        n, channels = sums[0].shape[0], sums[0].shape[-1]
        return jnp.concatenate(parts, axis=2) if parts else jnp.zeros((n, 2 * l + 1, 0, channels), sums[0].dtype)

    return tuple(tuple(joined(p, l) for l in range(product.degree_out + 1)) for p in range(product.parities_out))


def _rows(product: paths.Product) -> list[slice]:
    return [slice(l * l, (l + 1) ** 2) for l in range(product.degree_in + 1)]


def _matrix(entry: Entry, Y: Array) -> Array:
    orders = entry.rows.stop - entry.rows.start
    return jnp.matmul(Y, entry.table.astype(Y.dtype), precision=_HIGHEST).reshape(Y.shape[0], -1, orders)


def _transposed(entry: Entry, Y: Array) -> Array:
    """The transpose of `_matrix`, made anew: a transposed operand makes the product 8 times as long at max_degree 1."""
    orders = entry.rows.stop - entry.rows.start
    table = entry.table.reshape(entry.table.shape[0], -1, orders).swapaxes(1, 2)
    flat = jnp.matmul(Y, table.reshape(table.shape[0], -1).astype(Y.dtype), precision=_HIGHEST)
    return flat.reshape(Y.shape[0], orders, -1)


def _groups(entry: Entry, u: Array) -> list[Array]:
    parts, start = [], 0
    for group in entry.groups:
        orders = 2 * group.degree_out + 1
        parts.append(u[:, start : start + group.count * orders].reshape(u.shape[0], group.count, orders, u.shape[-1]))
        start += group.count * orders
    return parts
