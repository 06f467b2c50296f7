"""Optimal assignment inside jit: Bertsekas' auction with falling ε, in which a few free rows bid at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_BIDDERS = 32  # rows per round: more waste bids on the same columns, fewer waste rounds
_FALL = 5.0  # of ε from one phase to the next


def assign(C: Float[Array, "n n"], tolerance: Array, max_steps: Array) -> tuple[Array, Array, Array, Array]:
    """(partner, g, converged, rounds) of min Σ_i C_i,partner(i): g is such that f_i = min_j C_ij − g_j is within ε.

    Each phase ends with an assignment whose mean cost is within ε of the optimum (Bertsekas 1988); ε falls until
    the certified gap is `tolerance` of the value, or rounding, or `max_steps` rounds are used up. A row without a
    partner at that point takes any free column. C in float64, finite; else nothing converges.
    """
    n = C.shape[0]
    least, mean = jnp.min(C), jnp.mean(C)
    scale = jnp.where(mean > least, mean - least, 1)
    max_steps = jnp.where(jnp.isfinite(mean), max_steps, 0)
    bidders = min(_BIDDERS, n)
    index, nobody = jnp.arange(n, dtype=jnp.int32), jnp.full((n,), n, jnp.int32)

    def bid(state):
        partner, owner, g, epsilon, rounds, gap = state
        rows = _first(partner == n, bidders)
        offers = C[jnp.minimum(rows, n - 1)] - g
        first = jnp.min(offers, axis=1)
        best = jnp.min(jnp.where(offers == first[:, None], index, n - 1), axis=1)
        second = jnp.min(jnp.where(index == best[:, None], jnp.inf, offers), axis=1)
        raised = g[best] - jnp.where(jnp.isfinite(second), second - first, 0) - epsilon
        target = jnp.where(rows < n, best, n)
        lowered = g.at[target].min(raised, mode="drop")
        wins = (rows < n) & (raised == lowered[best])
        winner = nobody.at[jnp.where(wins, best, n)].min(rows, mode="drop")
        taken = winner < n
        ousted = jnp.where(taken, owner, n)
        partner = partner.at[ousted].set(n, mode="drop")
        partner = partner.at[winner].set(index, mode="drop")
        return partner, jnp.where(taken, winner, owner), lowered, epsilon, rounds + 1, gap

    def phase(state):
        _, _, g, epsilon, rounds, _ = state
        start = (nobody, nobody, g, epsilon, rounds, jnp.full((), jnp.inf, C.dtype))
        partner, owner, g, epsilon, rounds, _ = jax.lax.while_loop(
            lambda state: jnp.any(state[0] == n) & (state[4] < max_steps), bid, start
        )
        value, lower = _value_and_bound(C, _completed(partner, owner), g)
        return partner, owner, g, epsilon / _FALL, rounds, value - lower - tolerance * jnp.abs(value)

    def unsettled(state):
        return (state[5] > 0) & (state[3] > 1e-14 * scale) & (state[4] < max_steps)

    zero = jnp.zeros((), jnp.int32)
    start = (nobody, nobody, jnp.zeros_like(C[0]), scale / _FALL, zero, jnp.full((), jnp.inf, C.dtype))
    partner, owner, g, _, rounds, _ = jax.lax.while_loop(unsettled, phase, start)
    return _completed(partner, owner), g, jnp.all(partner < n), rounds


def _first(holds: Array, count: int) -> Array:
    """The first `count` indices at which `holds`, n for those that lack. (argmin and nonzero do not lower in float64
    where the caller has x64 switched off.)"""
    n = holds.shape[0]
    rank = jnp.cumsum(holds, dtype=jnp.int32) - 1
    target = jnp.where(holds & (rank < count), rank, count)
    return jnp.full((count,), n, jnp.int32).at[target].set(jnp.arange(n, dtype=jnp.int32), mode="drop")


def _completed(partner: Array, owner: Array) -> Array:
    """The partners, free columns given to the rows that have none."""
    n = partner.shape[0]
    rank = jnp.cumsum(partner == n, dtype=jnp.int32) - 1
    return jnp.where(partner == n, _first(owner == n, n)[jnp.clip(rank, 0)], partner)


def _value_and_bound(C: Array, partner: Array, g: Array) -> tuple[Array, Array]:
    own = jnp.take_along_axis(C, partner[:, None], axis=1)[:, 0]
    return jnp.mean(own), jnp.mean(jnp.min(C - g, axis=1)) + jnp.mean(g)
