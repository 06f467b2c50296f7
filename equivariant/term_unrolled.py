"""Sparse polynomials unrolled: for each result one pass of multiply-adds over the channels, in Horner's scheme.

For accelerators, where one long kernel is cheap and a loop of short ones is not; on CPU see `term_table`.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from equivariant.term_table import Term

_NODES_AT_ONCE = 256  # bounds the temporaries: the products of a chunk of nodes


def contract(
    results: Sequence[Sequence[Term]],
    coefficients: Float[Array, "blocks terms channels"],
    x: Float[Array, "blocks nodes variables channels"],
) -> Float[Array, "blocks nodes results channels"]:
    """y_o = Σ_t k_t P_t Π_v x_v."""
    return _in_chunks(partial(_contract_chunk, results), coefficients, x)


def collect(
    results: Sequence[Sequence[Term]],
    terms: int,
    x: Float[Array, "blocks nodes variables channels"],
    d: Float[Array, "blocks nodes results channels"],
) -> Float[Array, "blocks terms channels"]:
    """Σ_n k_t d_o Π_v x_v for each coefficient."""
    return _in_chunks(partial(_collect_chunk, results, terms), x, d)


def _contract_chunk(results: Sequence[Sequence[Term]], coefficients: Array, x: Array) -> Array:
    P = [coefficients[:, None, t] for t in range(coefficients.shape[1])]
    variables = [x[:, :, v] for v in range(x.shape[2])]
    zero = jnp.zeros_like(variables[0])
    return jnp.stack([_horner(list(part), P, variables) if part else zero for part in results], axis=-2)


def _horner(terms: Sequence[Term], P: Sequence[Array], x: Sequence[Array]) -> Array:
    """Σ k P_t Π x_v, the first variable of each term taken out of the sum over the others: one multiply-add a term."""
    total, groups = None, {}
    for coefficient, multiplicity, variables in terms:
        if variables:
            groups.setdefault(variables[0], []).append((coefficient, multiplicity, variables[1:]))
        else:
            part = P[coefficient] if multiplicity == 1 else multiplicity * P[coefficient]
            total = part if total is None else total + part
    for v, rest in groups.items():
        part = x[v] * _horner(rest, P, x)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("terms: expected at least one")
    return total


def _collect_chunk(results: Sequence[Sequence[Term]], count: int, x: Array, d: Array) -> Array:
    sums: list[Array | None] = [None] * count
    for result, terms in enumerate(results):
        for coefficient, multiplicity, variables in terms:
            part, rest = d[:, :, result], variables
            if rest:  # with the last variable first: (x_c d)(x_a x_b) meets again what other terms have computed
                part, rest = x[:, :, rest[-1]] * part, rest[:-1]
            if rest:
                part = reduce(operator.mul, [x[:, :, v] for v in rest]) * part
            part = part if multiplicity == 1 else multiplicity * part
            previous = sums[coefficient]
            sums[coefficient] = part if previous is None else previous + part
    zero = jnp.zeros((x.shape[0], x.shape[-1]), x.dtype)
    return jnp.stack([zero if part is None else jnp.sum(part, axis=1) for part in sums], axis=1)


def _in_chunks(function: Callable[[Array, Array], Array], a: Array, b: Array) -> Array:
    """`function` of whole blocks, some at a time where there are many nodes: what it keeps then stays in the cache."""
    blocks, nodes = a.shape[0], (b if b.ndim == 4 else a).shape[1]
    size = max(1, _NODES_AT_ONCE // max(nodes, 1))
    if blocks <= size:
        return function(a, b)
    chunks = -(-blocks // size)
    spare = chunks * size - blocks
    pad = lambda x: jnp.pad(x, [(0, spare)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, size, *x.shape[1:])
    y = jax.lax.map(lambda pair: function(*pair), (pad(a), pad(b)))
    return y.reshape(chunks * size, *y.shape[2:])[:blocks]
