"""Diffusions on a group, step by step: geodesic Euler-Maruyama for any drift and any diagonal diffusion.

Convention: dX = X ∘ (f dt + σ dW) with W a standard Brownian motion of the body frame, so the generator is
L_f + ½ σ² Σ_i L_i². On SO(3) and in time t, σ = 1 is IGSO(3) with scale √t.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import group as groups
from lie.processes import integrators

# A number, or a function of (time, X) whose value broadcasts against the tangent (*batch, dimension).
Diffusion = ArrayLike | Callable[[Float[Array, ""], groups.Element], ArrayLike]


def sde(
    group: groups.Group,
    drift: integrators.Field,
    diffusion: Diffusion,
    start: groups.Element,
    times: ArrayLike,
    *,
    store: bool = False,
    key: PRNGKeyArray,
) -> integrators.Path:
    """dX = X ∘ (drift dt + diffusion dW) by geodesic Euler-Maruyama, X exp(drift h + diffusion √|h| ξ).

    drift(time, X) -> body tangent `(*batch, dimension)`; diffusion a number or a function whose value broadcasts
    against it (one entry a coordinate: diagonal noise); times `(steps + 1,)`, increasing, or decreasing for a process
    that runs backward (h < 0). Weak order 1. A diffusion that depends on X samples the generator ½ Σ_i σ_i² L_i²
    (Itô in the body frame), which is Stratonovich's only when L_i σ_i = 0. Returns `Path(final, path)`, `path` with
    the leading axis of `times` or None unless `store`. Raises as `ode`.
    """
    tangent = integrators.tangent_of(group, start)
    sigma = as_function(diffusion, tangent)

    def step(state, arguments):
        begin, end, step_key = arguments
        h = end - begin
        noise = jax.random.normal(step_key, tangent.shape, tangent.dtype)
        drifted = integrators.as_tangent("drift", drift(begin, state), tangent) * h
        after = group.retract(state, drifted + sigma(begin, state) * jnp.sqrt(jnp.abs(h)) * noise)
        return after, after if store else None

    times = integrators.as_times(times, tangent.dtype)
    keys = jax.random.split(key, times.shape[0] - 1)
    final, path = jax.lax.scan(step, start, (times[:-1], times[1:], keys))
    return integrators.Path(final, integrators.prepend(start, path) if store else None)


def as_function(diffusion: Diffusion, tangent: jax.ShapeDtypeStruct) -> Callable[..., Array]:
    """The diffusion as a function of (time, X) in the dtype of the tangent; raises ValueError if it does not fit."""

    def sigma(time, state):
        value = jnp.asarray(diffusion(time, state) if callable(diffusion) else diffusion).astype(tangent.dtype)
        if jnp.broadcast_shapes(value.shape, tangent.shape) != tangent.shape:
            raise ValueError(f"diffusion: expected a shape that broadcasts to {tangent.shape}, got {value.shape}")
        return value

    return sigma
