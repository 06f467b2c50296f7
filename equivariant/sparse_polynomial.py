"""Sparse polynomials with coefficients that differ from block to block of nodes, and all their derivatives.

y_o = Σ_t k_t P_t Π_v x_v for a fixed list of terms, channel by channel. XLA unrolls the list into one pass of multiply-
adds over the channels for each result, in Horner's scheme, so that no monomial of a node is ever in memory. Derivatives
are again such polynomials: `contract` by x is one with x and the cotangent as variables, `contract` by P is `collect`,
the sum of monomials over the nodes of a block, and both are closed under reverse differentiation, to any order. (XLA's
own derivative of the unrolled form takes 12 s to compile and 30 times as long to run, since it keeps the monomials.)
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Term = tuple[int, int, tuple[int, ...]]  # coefficient, multiplicity, variables in ascending order

_NODES_AT_ONCE = 256  # what is alive of a chunk (64 channels, degree 2) fits the cache: twice the speed of all at once


@dataclass(frozen=True, eq=False)  # compared by identity, so that tracing never hashes a thousand terms
class Polynomial:
    """The terms of each result; they use variables 0..variables − 1 and coefficients 0..coefficients − 1."""

    results: tuple[tuple[Term, ...], ...]
    variables: int
    coefficients: int

    def gradient(self) -> "Polynomial":
        """∂/∂x_v of Σ_o d_o y_o, for each v, as a polynomial in (x, d)."""
        return _gradient(self)


@cache
def _gradient(polynomial: Polynomial) -> Polynomial:
    slopes: list[list[Term]] = [[] for _ in range(polynomial.variables)]
    for result, terms in enumerate(polynomial.results):
        for coefficient, multiplicity, variables in terms:
            for v in sorted(set(variables)):
                rest = list(variables)
                rest.remove(v)
                count = multiplicity * variables.count(v)
                slopes[v].append((coefficient, count, (*rest, polynomial.variables + result)))
    variables = polynomial.variables + len(polynomial.results)
    return Polynomial(tuple(map(tuple, slopes)), variables, polynomial.coefficients)


def contract(
    polynomial: Polynomial,
    coefficients: Float[Array, "blocks terms channels"],
    x: Float[Array, "blocks nodes variables channels"],
) -> Float[Array, "blocks nodes results channels"]:
    """y_o = Σ_t k_t P_t Π_v x_v for every node and channel, P being that of the node's block.

    Reverse differentiation only, to any order. Error <= 4 eps times the sum of the magnitudes of the terms.
    """
    return cast(Array, _contract(polynomial, coefficients, x))


def collect(
    polynomial: Polynomial,
    x: Float[Array, "blocks nodes variables channels"],
    d: Float[Array, "blocks nodes results channels"],
) -> Float[Array, "blocks terms channels"]:
    """∂/∂P_t of Σ_o d_o y_o, summed over the nodes of a block: Σ_n k_t d_o Π_v x_v. Differentiates as `contract`."""
    return cast(Array, _collect(polynomial, x, d))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _contract(polynomial: Polynomial, coefficients: Array, x: Array) -> Array:
    return _in_chunks(partial(_contract_chunk, polynomial), coefficients, x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _collect(polynomial: Polynomial, x: Array, d: Array) -> Array:
    return _in_chunks(partial(_collect_chunk, polynomial), x, d)


def _contract_forward(polynomial, coefficients, x):
    return contract(polynomial, coefficients, x), (coefficients, x)


def _contract_backward(polynomial, saved, d):
    coefficients, x = saved
    along_x = contract(polynomial.gradient(), coefficients, jnp.concatenate([x, d], axis=-2))
    return collect(polynomial, x, d), along_x


def _collect_forward(polynomial, x, d):
    return collect(polynomial, x, d), (x, d)


def _collect_backward(polynomial, saved, weights):
    x, d = saved
    along_x = contract(polynomial.gradient(), weights, jnp.concatenate([x, d], axis=-2))
    return along_x, contract(polynomial, weights, x)


_contract.defvjp(_contract_forward, _contract_backward)
_collect.defvjp(_collect_forward, _collect_backward)


def _contract_chunk(polynomial: Polynomial, coefficients: Array, x: Array) -> Array:
    P = [coefficients[:, None, t] for t in range(polynomial.coefficients)]
    variables = [x[:, :, v] for v in range(polynomial.variables)]
    zero = jnp.zeros_like(variables[0])
    results = [_horner(list(terms), P, variables) if terms else zero for terms in polynomial.results]
    return jnp.stack(results, axis=-2)


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


def _collect_chunk(polynomial: Polynomial, x: Array, d: Array) -> Array:
    sums: list[Array | None] = [None] * polynomial.coefficients
    for result, terms in enumerate(polynomial.results):
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
