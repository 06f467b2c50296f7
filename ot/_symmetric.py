"""The transport of a cloud to itself, for costs that are symmetric: one potential, f = g, by averaged iterations.

f <- (f + T f)/2 with T Sinkhorn's half-step. At the solution T has the derivative −P, P a stochastic matrix with
spectrum in [0, 1] for positive definite kernels, so the average contracts by 1/2 whatever ε is: no falling ε, no
Newton step.
Source: Feydy et al. 2019, "Interpolating between optimal transport and MMD using Sinkhorn divergences", section 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from ot import _ascent, _continuation, _kernel, _pairs


def descend(
    pairs: _pairs.Pairs, state: _continuation.State, tolerance: Array, budget: Int[Array, ""], working: Any
) -> _continuation.State:
    """From the potential f of `state` until the error is at most `tolerance`; both potentials come out equal.

    A sweep makes two steps, one from each side of the kernel, which is symmetric.
    """
    problem = pairs.wide()
    epsilon = problem.epsilon
    present = jnp.where(problem.a > 0, state.f, -jnp.inf)
    allowed = _kernel.tolerated(pairs, working, _continuation.ROUGH * tolerance)
    kernel = _kernel.choose(pairs)(problem, present, present, epsilon, working, allowed)
    a, _, f, _, kappa, _ = _ascent.marginals(problem, state.f, state.f, working)

    def averaged(sums: Array, phi: Array, f: Array, a: Array) -> Array:
        return jnp.where(a > 0, (phi - (jnp.log(sums) + kappa * f) / (1 + kappa)) / 2, 0)

    def unfinished(carried: tuple[Array, ...]) -> Bool[Array, ""]:
        *_, error, sweeps = carried
        return ~(error <= tolerance.astype(working)) & ~jnp.isnan(error) & (sweeps < budget)

    def step(carried: tuple[Array, ...]) -> tuple[Array, ...]:
        before, *_, sweeps = carried
        weigh = lambda r, phi, f, a: jnp.where(a > 0, a * jnp.exp(averaged(r, phi, f, a)), 0)
        r, p, sums = kernel.sweep(a * jnp.exp(before), weigh, before, f, a)
        phi, marginal = averaged(r, before, f, a), p * sums
        mass = jnp.sum(marginal)
        error = 2 * jnp.sum(jnp.abs(marginal - a * jnp.exp(-kappa * (f + phi)))) / mass
        return averaged(sums, phi, f, a), phi, mass, error, sweeps + 1

    unknown = jnp.full((), jnp.inf, working)
    start = (jnp.zeros_like(a), jnp.zeros_like(a), unknown, unknown, state.sweeps)
    _, phi, mass, error, sweeps = jax.lax.while_loop(unfinished, step, start)
    f_new, error = state.f + epsilon * phi.astype(epsilon.dtype), error.astype(epsilon.dtype)
    mass, done = mass.astype(epsilon.dtype), error <= tolerance
    return state._replace(f=f_new, g=f_new, error=error, mass=mass, sweeps=sweeps, done=done)
