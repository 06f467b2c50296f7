"""Products with the kernel K_ij = exp((f_i + g_j − C_ij)/ε), stored, or recomputed tile by tile where it would not fit.

A sweep is K q, a function of each row's sum, and the product of that with K: one half-step of every algorithm here.
Exponents are formed in the wide type of the potentials, where float32 would lose C/ε ulps, and then rounded to the
working type, in which the exponential and the products run. `p @ K`, never `K.T @ p`: on CPU the latter takes 14 to 69
times as long.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lie import smooth
from ot import _grid, _pairs, _shards, costs

HIGHEST = jax.lax.Precision.HIGHEST
STORED_ENTRIES = 2**27
"""Above, the kernel is recomputed: 8192² entries take 21 ms a sweep stored (115 ms to make), 110 ms of one core not."""

_TILE_ENTRIES = 2**21  # 8 MB: enough for XLA to share the exponentials out to the cores, and still in the cache
_ROUNDING = 4.0


class Stored:
    """The kernel as a matrix in the working type."""

    def __init__(
        self, pairs: _pairs.Pairs, f: Array, g: Array, epsilon: Array, working: Any, allowed: Array | float = 0.0
    ):
        self.matrix = jnp.exp(exponent(pairs.matrix(), f, g, epsilon).astype(working))

    def sweep(self, q: Array, weigh: Callable[..., Array], *rows: Array) -> tuple[Array, Array, Array]:
        """r = K q, p = weigh(r, *rows) and p K."""
        r = jnp.dot(self.matrix, q, precision=HIGHEST)
        p = weigh(r, *rows)
        return r, p, jnp.dot(p, self.matrix, precision=HIGHEST)


class Tiled:
    """The kernel by blocks of rows: one exponential per entry and sweep, memory O(n + m).

    Exponents are formed in the working type where `_ROUNDING` of its digits of (|f| + |g|)/ε, which bounds what they
    lose in sums that count, is below `allowed`: 1.4 · 10⁹ entries a second and core in place of 0.8 · 10⁹.
    """

    def __init__(
        self, pairs: _pairs.Pairs, f: Array, g: Array, epsilon: Array, working: Any, allowed: Array | float = 0.0
    ):
        self.pairs, self.f, self.g, self.epsilon, self.working = pairs, f, g, epsilon, working
        largest = sum(jnp.max(jnp.where(jnp.isfinite(p), jnp.abs(p), 0)) for p in (f, g))
        self.is_rough = _ROUNDING * float(jnp.finfo(working).eps) * largest <= allowed * epsilon

    def sweep(self, q: Array, weigh: Callable[..., Array], *rows: Array) -> tuple[Array, Array, Array]:
        """r = K q, p = weigh(r, *rows) and p K; `weigh` sees blocks of rows."""
        wide = partial(self._sweep, self.pairs, self.f, self.g, self.epsilon, weigh)
        if self.pairs.a.dtype == self.working:
            return wide(q, *rows)
        narrow = self.pairs.cast(self.working), *(p.astype(self.working) for p in (self.f, self.g, self.epsilon))
        return jax.lax.cond(self.is_rough, partial(self._sweep, *narrow, weigh), wide, q, *rows)

    def _sweep(self, pairs, f, g, epsilon, weigh, q, *rows):
        def part(x, f, *rows):
            n = len(f)
            blocks = *blocked((x, f), n, len(g), "edge"), *blocked(rows, n, len(g), "zero")
            total, (r, p) = jax.lax.scan(visit, jnp.zeros(len(g), self.working), blocks)
            return (r.reshape(-1)[:n], p.reshape(-1)[:n]), total

        turned = _turned(pairs.y)

        def visit(total, block):
            x, f, *rows = block
            tile = jnp.exp(exponent(pairs.cost(x, _turned_back(turned)), f, g, epsilon).astype(self.working))
            r = jnp.dot(tile, q, precision=HIGHEST)  # sums in place of dots take twice the processor's time
            p = weigh(r, *rows)
            return total + jnp.dot(p, tile, precision=HIGHEST), (r, p)

        (r, p), total = _shards.each(pairs.rows, part, pairs.x, f, *rows)
        return r, p, total


def _turned(points: Any) -> Any:
    """Coordinates one after the other in memory.

    A row of the cost runs over the points y: as they are given, each coordinate would be gathered from every d-th
    place, which takes as long as an exponential.
    """
    return jax.lax.optimization_barrier(jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), points))


def _turned_back(points: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), points)


Kernel = Stored | Tiled | _grid.Separable


def exponent(C: Float[Array, "n m"], f: Array, g: Array, epsilon: Array) -> Float[Array, "n m"]:
    """(f_i + g_j − C_ij)/ε, by one division in all: those of a matrix would take as long as its exponentials."""
    inverse = 1 / epsilon
    return (f * inverse)[:, None] + g * inverse - C * inverse


def choose(pairs: _pairs.Pairs) -> type[Stored] | type[Tiled] | type[_grid.Separable]:
    """Stored while it fits, recomputed above; a given matrix is in memory already, so its kernel may be too."""
    if isinstance(pairs.cost, costs.Grid):
        return _grid.Separable
    fits = len(pairs.a) * len(pairs.b) <= STORED_ENTRIES
    return Stored if fits or pairs.x is None else Tiled


def blocked(rows: Any, n: int, m: int, filling: str, entries: int | None = None) -> Any:
    """Arrays over n rows as (blocks, rows, ...) with about `entries` pairs in a block of rows, by default a tile.

    The last block is filled up with zeros ("zero") or copies of the last row ("edge").
    """
    height = max(1, min(n, (entries or _TILE_ENTRIES) // m))
    count = math.ceil(n / height)

    def split(leaf):
        filled = jnp.pad(
            leaf,
            [(0, count * height - n)] + [(0, 0)] * (leaf.ndim - 1),
            mode="constant" if filling == "zero" else filling,
        )
        return filled.reshape(count, height, *leaf.shape[1:])

    return jax.tree.map(split, rows)


def row_answer(pairs: _pairs.Pairs, g: Float[Array, "m"], epsilon: Array, working: Any) -> Float[Array, "n"]:
    """f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε), in logarithms, which cannot overflow or underflow; blockwise."""
    log_b = smooth.log(pairs.b)
    if isinstance(pairs.cost, costs.Grid):
        matrices = _grid.matrices(pairs)
        return -epsilon * _grid.soft_maximum(matrices, g / epsilon + log_b, epsilon, working)
    of_block = lambda x: _soft_minimum((g - pairs.cost(x, pairs.y)) / epsilon + log_b, epsilon, 1, working)
    if pairs.x is None:
        return of_block(None)
    size = lambda x: jax.tree.leaves(x)[0].shape[0]
    part = lambda x: (_over_blocks(of_block, x, size(x), len(pairs.b)), ())
    return _shards.each(pairs.rows, part, pairs.x)[0]


def column_answer(pairs: _pairs.Pairs, f: Float[Array, "n"], epsilon: Array, working: Any) -> Float[Array, "m"]:
    """g_j = −ε log Σ_i a_i exp((f_i − C_ij)/ε), likewise; by blocks of columns."""
    log_a = smooth.log(pairs.a)
    if isinstance(pairs.cost, costs.Grid):
        matrices = tuple(C.T for C in _grid.matrices(pairs))
        return -epsilon * _grid.soft_maximum(matrices, f / epsilon + log_a, epsilon, working)
    return _over_blocks(
        lambda y: _soft_minimum(
            ((f + epsilon * log_a)[:, None] - pairs.cost(pairs.x, y)) / epsilon, epsilon, 0, working
        ),
        pairs.y,
        len(pairs.b),
        len(pairs.a),
    )


def _soft_minimum(scores: Float[Array, "n m"], epsilon: Array, axis: int, working: Any) -> Float[Array, "..."]:
    largest = jnp.max(scores, axis=axis)
    total = jnp.sum(jnp.exp((scores - jnp.expand_dims(largest, axis)).astype(working)), axis=axis)
    return -epsilon * (largest + jnp.log(total).astype(largest.dtype))


def _over_blocks(of_block: Callable[[Any], Array], points: Any, n: int, m: int) -> Array:
    if n * m <= STORED_ENTRIES // 8 or points is None:
        return of_block(points)
    return jax.lax.map(of_block, blocked(points, n, m, "edge", _TILE_ENTRIES // 4)).reshape(-1)[:n]
