"""Exact samples of a Bingham law on unit quaternions, density proportional to exp(−Σ a_i q_i²), a_i >= 0."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from lie import smooth


def sample(exponents: Float[Array, "*batch 4"], shape: tuple[int, ...], *, key: PRNGKeyArray) -> Float[Array, "..."]:
    """Unit quaternions (*shape, 4); `exponents` broadcasts against them.

    Rejection from the angular central Gaussian with Ω = I + 2A/b, where Σ 1/(b + 2 a_i) = 1 makes the bound tightest:
    at least 0.45 of the proposals are taken, whatever A. A loop draws for all until every one has been taken; what an
    element receives does not depend on the others. Source: Kent, Ganeiban, Mardia 2018, sect. 3.
    """
    a = jnp.broadcast_to(exponents, (*shape, 4))
    b = _envelope(exponents)[..., None]
    widths = jax.lax.rsqrt(1 + 2 * exponents / b)
    b = b[..., 0]
    bound = jnp.log(4 / b) * 2 - (4 - b) / 2

    def draw(state):
        q, waiting, attempt = state
        key_direction, key_accept = jax.random.split(jax.random.fold_in(key, attempt))
        proposal = jax.random.normal(key_direction, a.shape, a.dtype) * widths
        proposal = proposal / smooth.norm(proposal, keepdims=True)
        u = jnp.sum(a * proposal * proposal, axis=-1)
        log_ratio = 2 * jnp.log1p(2 * u / b) - u - bound
        accepted = -jax.random.exponential(key_accept, shape, a.dtype) <= log_ratio
        q = jnp.where((waiting & accepted)[..., None], proposal, q)
        return q, waiting & ~accepted, attempt + 1

    start = jnp.zeros_like(a), jnp.ones(shape, bool), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(lambda state: jnp.any(state[1]), draw, start)[0]


def _envelope(a: Array) -> Array:
    """The root b in 1..4 of Σ 1/(b + 2 a_i) = 1: Newton's method from 1 ascends to it."""

    def step(_, b):
        reciprocal = 1 / (b[..., None] + 2 * a)
        return b + (jnp.sum(reciprocal, axis=-1) - 1) / jnp.sum(reciprocal * reciprocal, axis=-1)

    return jax.lax.fori_loop(0, 12, step, jnp.ones_like(a[..., 0]))
