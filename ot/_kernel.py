"""Products with the kernel K_ij = exp((f_i + g_j − C_ij)/ε), stored, or recomputed tile by tile where it would not fit.

A sweep is K q, a function of each row's sum, and the product of that with K: one half-step of every algorithm here.
Exponents are formed in the wide type of the potentials, where float32 would lose C/ε ulps, and then rounded to the
working type, in which the exponential and the products run. `p @ K`, never `K.T @ p`: on CPU the latter takes 14 to 69
times as long.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lie import smooth
from ot import _cores, _grid, _pairs, _shards, costs

HIGHEST = jax.lax.Precision.HIGHEST
STORED_ENTRIES = 2**27
"""Above, the kernel is recomputed. Of 8192² entries, on one core: 26 ms a sweep stored and 200 ms to make, most of it
fresh pages; 55 ms not stored. Not stored from 2^25 on, solves at n = 8192 took 1.0, 1.8 and 1.8 times as long at
ε = 0.05, 0.01 and 0.001 of the mean cost."""

_TILE_ENTRIES = 2**21  # 8 MB: enough for XLA to share the exponentials out to the cores, and still in the cache
_FILL_ENTRIES = 2**18
_SAMPLED_ROWS = 1024  # at least, where there are 2^25 pairs or more; of larger clouds every 16th
_LARGEST_STRIDE = 16
_SAMPLED_FROM = 2**25
_SHARED_FROM = 2**20  # entries of a kernel: 2048² 60 % of the time of one core at ε = 0.05, 512² 115 %
_ROUNDING = 4.0
_COORDINATES = 8  # up to which squared distances are sums of squared differences


class Stored:
    """The kernel as a matrix in the working type, whose exponents are formed in it too where `is_rough` lets them.

    `allowed`, of `tolerated`: what they may be off by. Narrow exponents take half the time of wide ones.
    """

    def __init__(
        self, pairs: _pairs.Pairs, f: Array, g: Array, epsilon: Array, working: Any, allowed: Array | None = None
    ):
        fill = partial(_filled, working=working)
        if allowed is None:
            self.matrix = fill(pairs, f, g, epsilon)
            return
        narrow = fill(pairs.cast(working), *(p.astype(working) for p in (f, g, epsilon)))
        # A loop of one round or none: unlike `cond`, it stays a choice under vmap, if no problem needs the wide type.
        state = narrow, ~is_rough(pairs, f, g, epsilon, working, allowed)

        def wide(state: tuple[Array, Array]) -> tuple[Array, Array]:
            tied, _ = jax.lax.optimization_barrier(((pairs, f, g, epsilon), state[1]))  # else made before the loop
            return fill(*tied), jnp.asarray(False)

        self.matrix = jax.lax.while_loop(lambda s: s[1], wide, state)[0]

    def sweep(self, q: Array, weigh: Callable[..., Array], *rows: Array) -> tuple[Array, Array, Array]:
        """r = K q, p = weigh(r, *rows) and p K."""
        r = jnp.dot(self.matrix, q, precision=HIGHEST)
        if self.matrix.size >= _SHARED_FROM:
            r = _cores.shared_out(r)
        p = weigh(r, *rows)
        return r, p, jnp.dot(p, self.matrix, precision=HIGHEST)


def _filled(pairs: _pairs.Pairs, f: Array, g: Array, epsilon: Array, working: Any) -> Array:
    """The matrix of the kernel; a dear cost's in tiles, since XLA would write what its pairs use twice to memory.

    Scratch below 32 MB, which malloc keeps from call to call, is worth much: fresh pages take 1.2 us each, 5 of 13 ms
    at n = 2048.
    """
    n, m = len(f), len(g)
    y = turned(pairs).y
    of_rows = lambda x, f: jnp.exp(exponent(pairs.cost(x, y), f, g, epsilon).astype(working))
    if not pairs.cost.expensive or n * m <= _FILL_ENTRIES:
        return of_rows(pairs.x, f)
    height = max(1, min(n, _FILL_ENTRIES // m))

    def write(block: Array, matrix: Array) -> Array:
        start = jnp.minimum(block * height, n - height)  # the last block writes rows of the one before again
        x, f_block = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, height), (pairs.x, f))
        rows = x, _cores.shared_out(f_block)
        return jax.lax.dynamic_update_slice_in_dim(matrix, of_rows(*rows), start, 0)

    return jax.lax.fori_loop(0, math.ceil(n / height), write, jnp.zeros((n, m), working))


class Tiled:
    """The kernel by blocks of rows: one exponential per entry and sweep, memory O(n + m).

    Exponents are formed in the working type where `_ROUNDING` of its digits of (|f| + |g|)/ε, which bounds what they
    lose in sums that count, is below `allowed`: 1.4 · 10⁹ entries a second and core in place of 0.8 · 10⁹.
    """

    def __init__(
        self, pairs: _pairs.Pairs, f: Array, g: Array, epsilon: Array, working: Any, allowed: Array | None = None
    ):
        self.pairs, self.f, self.g, self.epsilon, self.working = pairs, f, g, epsilon, working
        self.is_rough = None if allowed is None else is_rough(pairs, f, g, epsilon, working, allowed)

    def sweep(self, q: Array, weigh: Callable[..., Array], *rows: Array) -> tuple[Array, Array, Array]:
        """r = K q, p = weigh(r, *rows) and p K; `weigh` sees blocks of rows."""
        wide = partial(self._sweep, self.pairs, self.f, self.g, self.epsilon, weigh)
        if self.is_rough is None:
            return wide(q, *rows)
        narrow = self.pairs.cast(self.working), *(p.astype(self.working) for p in (self.f, self.g, self.epsilon))
        return jax.lax.cond(self.is_rough, partial(self._sweep, *narrow, weigh), wide, q, *rows)

    def _sweep(self, pairs, f, g, epsilon, weigh, q, *rows):
        def part(x, f, *rows):
            n = len(f)
            blocks = *blocked((x, f), n, len(g), "edge"), *blocked(rows, n, len(g), "zero")
            total, (r, p) = jax.lax.scan(visit, jnp.zeros(len(g), self.working), blocks)
            return (r.reshape(-1)[:n], p.reshape(-1)[:n]), total

        flat = _turned(pairs.y)

        def visit(total, block):
            x, f, *rows = block
            tile = jnp.exp(exponent(pairs.cost(x, _turned_back(flat, pairs.y)), f, g, epsilon).astype(self.working))
            r = jnp.dot(tile, q, precision=HIGHEST)  # sums in place of dots take twice the processor's time
            r = _cores.shared_out(r)
            p = weigh(r, *rows)
            return total + jnp.dot(p, tile, precision=HIGHEST), (r, p)

        (r, p), total = _shards.each(pairs.rows, part, pairs.x, f, *rows)
        return r, p, total


def _turned(points: Any) -> Any:
    """Coordinates one after the other in memory: flat, as XLA would choose the layout of an array with axes anew.

    A row of the cost runs over the points y: as they are given, each coordinate would be gathered from every d-th
    place, which takes as long as an exponential.
    """
    return jax.lax.optimization_barrier(jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1).ravel(), points))


def _turned_back(flat: Any, points: Any) -> Any:
    back = lambda flat, leaf: jnp.moveaxis(flat.reshape(*leaf.shape[1:], len(leaf)), -1, 0)
    return jax.tree.map(back, flat, points)


def turned(pairs: _pairs.Pairs) -> _pairs.Pairs:
    """The same problem with the coordinates of y one after the other in memory."""
    return replace(pairs, y=_turned_back(_turned(pairs.y), pairs.y))


Kernel = Stored | Tiled | _grid.Separable


class Sample(NamedTuple):
    """The kernel of every stride-th row: enough for the curvature of the dual, to which many rows contribute alike."""

    kernel: Tiled
    stride: int


def sample(pairs: _pairs.Pairs, f: Array, g: Array, epsilon: Array, working: Any, narrow: bool) -> Sample | None:
    """That of a large cloud; None of a small one, a grid and rows that lie on several devices."""
    n, m = len(f), len(g)
    stride = min(n // _SAMPLED_ROWS, _LARGEST_STRIDE)
    if n * m < _SAMPLED_FROM or stride < 2 or isinstance(pairs.cost, costs.Grid) or pairs.rows is not None:
        return None
    rows = replace(pairs, x=_pairs.thinned(pairs.x, n, stride), a=pairs.a[::stride])
    f = f[::stride]
    if narrow:
        rows, f, g, epsilon = rows.cast(working), f.astype(working), g.astype(working), epsilon.astype(working)
    return Sample(Tiled(rows, f, g, epsilon, working), stride)


def exponent(C: Float[Array, "n m"], f: Array, g: Array, epsilon: Array) -> Float[Array, "n m"]:
    """(f_i + g_j − C_ij)/ε, by one division in all: those of a matrix would take as long as its exponentials."""
    inverse = 1 / epsilon
    return (f * inverse)[:, None] + g * inverse - C * inverse


def tolerated(pairs: _pairs.Pairs, working: Any, error: Array) -> Array | None:
    """`error`, or None where the working type may lose more of a cost than a few of its own digits.

    It cannot hold wider points; in many coordinates squares may cancel, and of squared distances alone it is known by
    how much (`_cancelled`); so may what is in a caller's function.
    """
    known = isinstance(pairs.cost, costs.Precomputed | costs.Grid | costs.SquaredEuclidean)
    safe = known or (_has_few_coordinates(pairs) and not isinstance(pairs.cost, costs.Function))
    return error if safe and pairs.a.dtype == working else None


def is_rough(pairs: _pairs.Pairs, f: Array, g: Array, epsilon: Array, working: Any, allowed: Array) -> Bool[Array, ""]:
    """Whether exponents may be formed in the working type."""
    largest = sum(jnp.max(jnp.where(jnp.isfinite(p), jnp.abs(p), 0)) for p in (f, g))
    lost = float(jnp.finfo(working).eps) * (_ROUNDING * largest + _cancelled(pairs))
    return lost <= allowed * epsilon


def _cancelled(pairs: _pairs.Pairs) -> Array | float:
    """The most that squared distances lose as a matrix product, in units of eps: see `costs.SquaredEuclidean`."""
    if not isinstance(pairs.cost, costs.SquaredEuclidean) or _has_few_coordinates(pairs):
        return 0.0
    centre = jnp.mean(pairs.y, axis=0)
    return 3 * sum(jnp.max(jnp.sum((points - centre) ** 2, axis=-1)) for points in (pairs.x, pairs.y))


def _has_few_coordinates(pairs: _pairs.Pairs) -> bool:
    return all(leaf.shape[-1] <= _COORDINATES for leaf in jax.tree.leaves((pairs.x, pairs.y)))


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
    largest = _cores.largest(scores, axis)
    total = _cores.total(jnp.exp((scores - jnp.expand_dims(largest, axis)).astype(working)), axis)
    return -epsilon * (largest + jnp.log(total).astype(largest.dtype))


def _over_blocks(of_block: Callable[[Any], Array], points: Any, n: int, m: int) -> Array:
    if n * m <= _TILE_ENTRIES or points is None:
        return of_block(points)
    of_each = lambda part: _cores.shared_out(of_block(part))
    return jax.lax.map(of_each, blocked(points, n, m, "edge", _TILE_ENTRIES // 4)).reshape(-1)[:n]
