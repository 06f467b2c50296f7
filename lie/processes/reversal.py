"""Diffusions run backward in time, given the score of their marginals, and the likelihood of the flow they share.

The forward process is dX = X ∘ (f dt + σ(t) dW) with densities p_t against Haar's measure; the score is its body-frame
gradient, s_i = L_i log p_t. For every λ >= 0 the drift f − ½ (1 + λ²) σ² s, run from T down to 0 with noise λσ, has the
same marginals: λ = 1 is the reverse-time SDE, λ = 0 the probability-flow ODE.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, euclidean
from lie import group as groups
from lie.processes import diffusions, integrators


class Likelihood(NamedTuple):
    """log density of the starting points, where the flow took them, and the integral of its divergence on the way."""

    log_prob: Float[Array, "*batch"]
    final: groups.Element
    log_volume: Float[Array, "*batch"]


def reverse_drift(
    group: groups.Group,
    drift: integrators.Field,
    diffusion: diffusions.Diffusion,
    score: integrators.Field,
    *,
    noise_ratio: ArrayLike = 1.0,
) -> integrators.Field:
    """The field f − ½ (1 + noise_ratio²) σ² score: what drives the reversed process, with decreasing times.

    All of drift, diffusion and score are functions of (time, X) in the body frame; the diffusion may depend on time
    and coordinate, not on X. Sources: Anderson 1982, Stoch. Proc. Appl. 12:313; Song et al. 2021, ICLR.
    """

    def field(time, state):
        tangent = integrators.tangent_of(group, state)
        sigma = diffusions.as_function(diffusion, tangent)(time, state)
        ratio = jnp.asarray(noise_ratio, tangent.dtype)
        ahead = integrators.as_tangent("drift", drift(time, state), tangent)
        uphill = integrators.as_tangent("score", score(time, state), tangent)
        return ahead - (1 + ratio * ratio) / 2 * sigma * sigma * uphill

    return field


def probability_flow(
    group: groups.Group, drift: integrators.Field, diffusion: diffusions.Diffusion, score: integrators.Field
) -> integrators.Field:
    """The field f − ½ σ² score: its flow (`ode`) has the marginals of the diffusion, in both directions of time."""
    return reverse_drift(group, drift, diffusion, score, noise_ratio=0.0)


def reverse(
    group: groups.Group,
    drift: integrators.Field,
    diffusion: diffusions.Diffusion,
    score: integrators.Field,
    start: groups.Element,
    times: ArrayLike,
    *,
    noise_ratio: ArrayLike = 1.0,
    store: bool = False,
    key: PRNGKeyArray,
) -> integrators.Path:
    """Draws from p at times[-1] given draws `start` from p at times[0] > times[-1]: the diffusion run backward.

    `times` decrease; noise_ratio λ = 1 is the reverse-time SDE, 0 the probability flow by geodesic Euler steps (`ode`
    on `probability_flow` has a higher order). Geodesic Euler-Maruyama, weak order 1. Returns and raises as `sde`.
    """
    field = reverse_drift(group, drift, diffusion, score, noise_ratio=noise_ratio)

    def noise(time, state):
        tangent = integrators.tangent_of(group, state)
        return jnp.asarray(noise_ratio, tangent.dtype) * diffusions.as_function(diffusion, tangent)(time, state)

    return diffusions.sde(group, field, noise, start, times, store=store, key=key)


def divergence(
    group: groups.Group, field: Callable[[groups.Element], Array], state: groups.Element
) -> Float[Array, "*batch"]:
    """Σ_i L_i f_i, the trace of the body-frame Jacobian of `field` at `state`: exact, one forward derivative per axis.

    It is the divergence against the right Haar measure, which is the Haar measure of all groups here (unimodular).
    """
    tangent = integrators.tangent_of(group, state)
    origin = jnp.zeros(tangent.shape, tangent.dtype)

    def along(axis):
        direction = jnp.broadcast_to(axis, tangent.shape)
        _, slope = jax.jvp(lambda u: field(group.retract(state, u)), (origin,), (direction,))
        return jnp.sum(slope * direction, axis=-1)

    return jnp.sum(jax.vmap(along)(jnp.eye(tangent.shape[-1], dtype=tangent.dtype)), axis=0)


def log_prob(
    group: groups.Group,
    field: integrators.Field,
    sample: groups.Element,
    times: ArrayLike,
    final_log_prob: Callable[[groups.Element], Array],
    *,
    method: str = "commutator_free_4",
) -> Likelihood:
    """log density of `sample` at times[0], from that of the flow of `field` at times[-1]: the change of variables.

    log p(X_0) = log p(X_T) + ∫ div f dt along Ẋ = X ∘ f(t, X), with the exact `divergence`, and the integral carried
    by the same one-step method as the state (its order in both). `field` must treat the elements of a batch apart.
    Returns `Likelihood(log_prob, final, log_volume)`, log_volume the integral. Raises as `ode`.
    """

    def extended(time, state):
        position = state[0]
        rate = divergence(group, lambda x: field(time, x), position)
        return jnp.concatenate([field(time, position), rate[..., None]], axis=-1)

    extended_group = groups.product(group, euclidean.Space(1))
    tangent = integrators.tangent_of(group, sample)
    start = (sample, jnp.zeros((*tangent.shape[:-1], 1), tangent.dtype))
    final, volume = integrators.ode(extended_group, extended, start, times, method=method).final
    log_density = check.array("final_log_prob", final_log_prob(final))
    return Likelihood(log_density + volume[..., 0], final, volume[..., 0])
