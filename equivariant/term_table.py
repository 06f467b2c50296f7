"""Sparse polynomials by a table of their terms: one short loop over slabs that stay in the first cache, for CPUs.

XLA compiles a loop whose body touches little memory into one function, 0.1 µs a term: a slab of 8 nodes and 64 channels
is multiplied and added as fast as unrolled code does it, and nothing is unrolled, so that compile time does not grow
with the number of terms. Measured at degree 3, orders 1..3 into degree 2 (887 terms, 192 nodes, 64 channels), against
the unrolled form: sums over terms 1.5 times as long, sums over nodes a quarter of it; compiled in 0.3 s, not 2 to 15 s.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Term = tuple[int, int, tuple[int, ...]]  # coefficient, multiplicity, variables

_SLAB = 2048  # numbers of one variable that a pass of the loop touches; at 4096 sums over nodes take 7 times as long


def table(results: Sequence[Sequence[Term]], variables: int) -> np.ndarray:
    """Rows (coefficient, result, multiplicity, variables ...), in the order of results; `variables` stands for 1."""
    order = max(len(term[2]) for terms in results for term in terms)
    return np.array(
        [
            (coefficient, result, multiplicity, *used, *(variables,) * (order - len(used)))
            for result, terms in enumerate(results)
            for coefficient, multiplicity, used in terms
        ],
        np.int32,
    )


def contract(
    rows: np.ndarray,
    results: int,
    coefficients: Float[Array, "blocks terms channels"],
    x: Float[Array, "blocks nodes variables channels"],
) -> Float[Array, "blocks nodes results channels"]:
    """y_o = Σ_t k_t P_t Π_v x_v, slab by slab."""

    def block(pair: tuple[Array, Array]) -> Array:
        P, parts = pair
        return jax.lax.map(partial(slab, P), parts)

    def slab(P: Array, x: Array) -> Array:
        z = _with_one(x)

        def add(y: Array, row: Array) -> tuple[Array, None]:
            return y.at[row[1]].add(_product(P[row[0]][None], z, row)), None

        start = jnp.zeros((results, x.shape[0], x.shape[-1]), x.dtype)
        return jnp.swapaxes(jax.lax.scan(add, start, jnp.asarray(rows))[0], 0, 1)

    y = jax.lax.map(block, (coefficients, _slabs(x)))
    return y.reshape(*y.shape[:1], -1, *y.shape[3:])[:, : x.shape[1]]


def collect(
    rows: np.ndarray,
    terms: int,
    x: Float[Array, "blocks nodes variables channels"],
    d: Float[Array, "blocks nodes results channels"],
) -> Float[Array, "blocks terms channels"]:
    """Σ_n k_t d_o Π_v x_v for each coefficient, slab by slab."""

    def block(pair: tuple[Array, Array]) -> Array:
        return jnp.sum(jax.lax.map(slab, pair), axis=0)

    def slab(pair: tuple[Array, Array]) -> Array:
        z, d = _with_one(pair[0]), jnp.swapaxes(pair[1], 0, 1)

        def add(sums: Array, row: Array) -> tuple[Array, None]:
            return sums.at[row[0]].add(jnp.sum(_product(d[row[1]], z, row), axis=0)), None

        return jax.lax.scan(add, jnp.zeros((terms, z.shape[-1]), z.dtype), jnp.asarray(rows))[0]

    return jax.lax.map(block, (_slabs(x), _slabs(d)))


def _product(start: Array, z: Array, row: Array) -> Array:
    product = start * row[2].astype(start.dtype)
    for i in range(3, row.shape[0]):
        product = product * z[row[i]]
    return product


def _with_one(x: Array) -> Array:
    """Variables first, (variables + 1, nodes, channels): the last is 1, for terms of fewer variables than others."""
    return jnp.concatenate([jnp.swapaxes(x, 0, 1), jnp.ones_like(x[None, :, 0])])


def _slabs(x: Array) -> Array:
    """(blocks, slabs, nodes of one slab, ...), filled up by zeros."""
    blocks, nodes, *rest = x.shape
    size = max(1, min(nodes, _SLAB // x.shape[-1]))
    spare = -nodes % size
    return jnp.pad(x, [(0, 0), (0, spare), (0, 0), (0, 0)]).reshape(blocks, -1, size, *rest)
