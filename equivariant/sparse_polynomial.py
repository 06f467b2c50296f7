"""Sparse polynomials with coefficients that differ from block to block of nodes, and all their derivatives.

y_o = Σ_t k_t P_t Π_v x_v for a fixed list of terms, channel by channel: on CPU by a loop over a table of the terms, on
accelerators, where a loop of short passes is slow, unrolled into one pass of multiply-adds over the channels for each
result, in Horner's scheme. No monomial of a node is kept in memory. Derivatives are again such polynomials: `contract`
by x is one with x and the cotangent as variables, `contract` by P is `collect`, the sum of monomials over the nodes of
a block, and both are closed under reverse differentiation, to any order. (XLA's own derivative of the unrolled form
takes 12 s to compile and 30 times as long to run, since it keeps the monomials.)
"""

from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from equivariant import term_table, term_unrolled
from equivariant.term_table import Term


@dataclass(frozen=True, eq=False)  # compared by identity, so that tracing never hashes a thousand terms
class Polynomial:
    """The terms of each result; they use variables 0..variables − 1 and coefficients 0..coefficients − 1."""

    results: tuple[tuple[Term, ...], ...]
    variables: int
    coefficients: int

    def gradient(self) -> "Polynomial":
        """∂/∂x_v of Σ_o d_o y_o, for each v, as a polynomial in (x, d)."""
        return _gradient(self)

    @cached_property
    def table(self) -> np.ndarray:
        """The terms as `term_table` takes them."""
        return term_table.table(self.results, self.variables)


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
    if jax.default_backend() == "cpu":
        return term_table.contract(polynomial.table, len(polynomial.results), coefficients, x)
    return term_unrolled.contract(polynomial.results, coefficients, x)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _collect(polynomial: Polynomial, x: Array, d: Array) -> Array:
    if jax.default_backend() == "cpu":
        return term_table.collect(polynomial.table, polynomial.coefficients, x, d)
    return term_unrolled.collect(polynomial.results, polynomial.coefficients, x, d)


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
