"""Products with harmonics, every path apart: per edge one matrix Y·C for each degree that comes in, in the fixed frame.

u = M(r) X with M_l1(r)[(path, m3), m1] = Σ_m2 C[m1, m2, m3] Y_m2(r): one product of Y with constants for a block of
edges, then for each edge a small matrix times the features of all channels.
"""

from functools import cache, partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from equivariant import edge_blocks, paths, torque
from lie import harmonics, wigner

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

    def frame(self, product: paths.Product, vectors: Array) -> edge_blocks.Frame:
        """M of each entry, constant, and the spin of the edge."""
        Y = harmonics.evaluate(jax.lax.stop_gradient(vectors), product.degree_filter)
        M = []
        for entry in entries(product):
            flat = jnp.matmul(Y, entry.table.astype(Y.dtype), precision=_HIGHEST)
            M.append(flat.reshape(Y.shape[0], -1, entry.rows.stop - entry.rows.start))
        return edge_blocks.Frame(tuple(M), torque.spin(vectors))

    def messages(self, product: paths.Product, X: Array, frame: edge_blocks.Frame, W: Array) -> tuple[Array, ...]:
        """M X for each degree that comes in, its parts times their weights."""
        groups = [group for entry in entries(product) for group in entry.groups]
        u = cast(tuple[Array, ...], _applied(product, frame.fixed, frame.moving, X))
        parts = [part for entry, rows in zip(entries(product), u, strict=True) for part in _groups(entry, rows)]
        in_order = sorted(groups)  # by the first path
        of_group = dict(zip(in_order, _cut(tuple(group.count for group in in_order), W), strict=True))
        return tuple(cast(Array, _weighted(part, of_group[g])) for g, part in zip(groups, parts, strict=True))

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


# For one edge products are written out, elementwise over channels: XLA keeps all in one function (`edge_blocks`).


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _applied(product: paths.Product, M: tuple[Array, ...], spin: Array, X: Array) -> tuple[Array, ...]:
    """u = M X, by entries: (edges, rows out, channels)."""
    found = []
    for entry, matrix in zip(entries(product), M, strict=True):
        x = X[:, entry.parity, entry.rows]
        if x.shape[0] > 1:
            found.append(jnp.matmul(matrix, x, precision=_HIGHEST))
        else:
            found.append(torque.total(matrix[:, :, j, None] * x[:, None, j] for j in range(x.shape[1])))
    return tuple(found)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _transposed(product: paths.Product, M: tuple[Array, ...], spin: Array, u: tuple[Array, ...]) -> Array:
    """The transpose of `_applied`."""
    edges, channels = u[0].shape[0], u[0].shape[-1]
    zeros = [jnp.zeros((edges, 2 * l + 1, channels), u[0].dtype) for l in range(product.degree_in + 1)]
    found = [list(zeros) for _ in range(product.parities_in)]
    for entry, matrix, z in zip(entries(product), M, u, strict=True):
        degree = entry.rows.stop - entry.rows.start >> 1
        if edges > 1:
            found[entry.parity][degree] = jnp.einsum("erm,erc->emc", matrix, z, precision=_HIGHEST)
        else:
            found[entry.parity][degree] = torque.total(matrix[:, r, :, None] * z[:, r, None] for r in range(z.shape[1]))
    return jnp.stack([jnp.concatenate(by_degree, axis=1) for by_degree in found], axis=1)


def _torque_out(product: paths.Product, u: tuple[Array, ...], y: tuple[Array, ...]) -> Array:
    """The torque of messages on messages, all paths to one degree at once."""
    found: dict[int, tuple[list[Array], list[Array]]] = {}
    for entry, *both in zip(entries(product), u, y, strict=True):
        for group, *parts in zip(entry.groups, *(_groups(entry, rows) for rows in both), strict=True):
            for known, part in zip(found.setdefault(group.degree_out, ([], [])), parts, strict=True):
                known.append(part)
    return torque.total(
        torque.torque(_generators(l), *(jnp.concatenate(parts, axis=1) for parts in both))
        for l, both in sorted(found.items())
    )


def _torque_in(product: paths.Product, X: Array, Y: Array) -> Array:
    return torque.total(
        torque.torque(_generators(l), X[:, :, l * l : (l + 1) ** 2], Y[:, :, l * l : (l + 1) ** 2])
        for l in range(product.degree_in + 1)
    )


@cache
def _generators(degree: int) -> torque.Generators:
    return torque.generators(wigner.generators(degree))


def _applied_backward(product, saved, y):
    """D(g) M = M D(g): what turns the frame turns what comes out, less what turns what came in."""
    M, spin, X = saved
    y = jax.lax.optimization_barrier(y)  # or XLA makes sums anew for each product that takes them
    Y = cast(Array, _transposed(product, M, spin, y))
    Y, u = jax.lax.optimization_barrier((Y, _applied(product, M, spin, X)))
    return None, torque.over_channels(_torque_out(product, u, y) - _torque_in(product, X, Y)), Y


def _transposed_backward(product, saved, Y):
    M, spin, u = saved
    y = cast(tuple[Array, ...], _applied(product, M, spin, Y))
    X = cast(Array, _transposed(product, M, spin, u))
    return None, torque.over_channels(_torque_in(product, X, Y) - _torque_out(product, u, y)), y


_applied.defvjp(lambda product, *arrays: (_applied(product, *arrays), arrays), _applied_backward)
_transposed.defvjp(lambda product, *arrays: (_transposed(product, *arrays), arrays), _transposed_backward)


@jax.custom_vjp
def _weighted(u: Array, W: Array) -> Array:
    return u * W[:, :, None]


@jax.custom_vjp
def _over_orders(u: Array, y: Array) -> Array:
    """The derivative of <y, weighted(u, W)> by W; a sum over an axis in the middle is no vector operation on CPU."""
    return torque.total(u[:, :, m] * y[:, :, m] for m in range(u.shape[2]))


_weighted.defvjp(lambda u, W: (_weighted(u, W), (u, W)), lambda s, y: (_weighted(y, s[1]), _over_orders(s[0], y)))
_over_orders.defvjp(lambda u, y: (_over_orders(u, y), (u, y)), lambda s, W: (_weighted(s[1], W), _weighted(s[0], W)))


def _groups(entry: Entry, u: Array) -> list[Array]:
    cuts = _cut(tuple(group.count * (2 * group.degree_out + 1) for group in entry.groups), u)
    return [
        part.reshape(u.shape[0], group.count, -1, u.shape[-1]) for group, part in zip(entry.groups, cuts, strict=True)
    ]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cut_rows(lengths: tuple[int, ...], x: Array) -> tuple[Array, ...]:
    return tuple(jnp.split(x, np.cumsum(lengths)[:-1], axis=1))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _joined(lengths: tuple[int, ...], parts: tuple[Array, ...]) -> Array:
    return jnp.concatenate(parts, axis=1)


# XLA would add up padded parts instead, which takes several times as long on CPU.
_cut_rows.defvjp(lambda lengths, x: (_cut_rows(lengths, x), None), lambda lengths, _, x: (_joined(lengths, x),))
_joined.defvjp(lambda lengths, x: (_joined(lengths, x), None), lambda lengths, _, x: (_cut_rows(lengths, x),))


def _cut(lengths: tuple[int, ...], x: Array) -> tuple[Array, ...]:
    return cast(tuple[Array, ...], _cut_rows(lengths, x))
