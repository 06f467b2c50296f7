"""Sinkhorn's iteration on one dense cost in logarithms, warm-started: the inner loop of solvers that repeat it.

`sinkhorn.solve` is the solver for users; this one is small enough to sit inside another loop.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int


class Scaling(NamedTuple):
    """Potentials of one problem, the L1 violation of both marginals, and the kernel-vector products it took."""

    f: Float[Array, "n"]
    g: Float[Array, "m"]
    error: Float[Array, ""]
    steps: Int[Array, ""]


def row_update(C: Float[Array, "n m"], g: Float[Array, "m"], log_b: Float[Array, "m"], epsilon: Array) -> Array:
    """f_i = −ε log Σ_j b_j exp((g_j − C_ij)/ε): then every row i of the plan sums to a_i."""
    return -epsilon * jax.nn.logsumexp((g - C) / epsilon + log_b, axis=-1)


def column_update(C: Float[Array, "n m"], f: Float[Array, "n"], log_a: Float[Array, "n"], epsilon: Array) -> Array:
    """g_j = −ε log Σ_i a_i exp((f_i − C_ij)/ε)."""
    return -epsilon * jax.nn.logsumexp((f[:, None] - C) / epsilon + log_a[:, None], axis=-2)


def solve(
    C: Float[Array, "n m"],
    log_a: Float[Array, "n"],
    log_b: Float[Array, "m"],
    epsilon: Array,
    g: Float[Array, "m"],
    tolerance: ArrayLike,
    max_steps: int,
    active: Bool[Array, ""] | bool = True,
) -> Scaling:
    """Alternate from g until the L1 error is at most `tolerance`; nothing but one round is done where not `active`.

    The rows are exact after each round, so the error is that of the columns, Σ_j b_j |exp((g_j − g'_j)/ε) − 1| with g'
    the next update: it is measured at the potentials that are returned.
    """
    b = jnp.exp(log_b)

    def round_of(g):
        f = row_update(C, g, log_b, epsilon)
        ahead = column_update(C, f, log_a, epsilon)
        return f, g, ahead, jnp.sum(b * jnp.abs(jnp.expm1((g - ahead) / epsilon)))

    def unfinished(state):
        *_, error, steps = state
        return active & ~(error <= tolerance) & (steps < max_steps)

    def advance(state):
        _, _, ahead, _, steps = state
        return *round_of(ahead), steps + 2

    f, g, _, error, steps = jax.lax.while_loop(unfinished, advance, (*round_of(g), jnp.int32(2)))
    return Scaling(f, g, error, steps)
