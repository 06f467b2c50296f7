"""Brownian motion on a group by its exact transition law: one draw for any time, however long.

Convention: dX = X ∘ dW with W a standard Brownian motion of the body frame, generator ½ Σ_i L_i². Multiply the time by
σ² for dX = X ∘ σ dW.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, PRNGKeyArray

from lie import check, densities, euclidean, se2, se3, smooth, so2, so3, su2
from lie import group as groups
from lie.processes import integrators

# R / SU(2) kernel: from here on (time) the spectral sum needs fewer terms than the sum over windings, to 1e-16.
_SPECTRAL_FROM = 8.0


def brownian(group: groups.Group, start: groups.Element, time: ArrayLike, *, key: PRNGKeyArray) -> groups.Element:
    """A draw of Brownian motion at `time` >= 0 (any shape that broadcasts against the batch), exact for any time.

    The increment that `start` is multiplied by on the right has the law of the heat kernel with generator ½ Σ L_i²:
    SO(3): IGSO(3) of scale √time, by the true inverse CDF. SU(2): the same, with the sheet of the double cover drawn
    from its heat kernel. SO(2), R^n: exp(√time ξ). SE(n) (metric |v|² + |ω|²): the translation is a Brownian motion of
    R^n that is independent of the rotation. Products: factor by factor. At time 0 the value is `start`.
    Raises TypeError for a group whose transition is not known (`sde` runs on any), ValueError under HAAR_CHECK=1 for
    a negative time.
    """
    time = check.array("time", time)
    check.require("time", time >= 0, "times >= 0")
    tangent = integrators.tangent_of(group, start)
    shape = jnp.broadcast_shapes(time.shape, tangent.shape[:-1])
    time = jnp.broadcast_to(time.astype(tangent.dtype), shape)
    return group.compose(start, _increment(group, start, time, key))


def brownian_path(
    group: groups.Group, start: groups.Element, times: ArrayLike, *, key: PRNGKeyArray
) -> integrators.Path:
    """Brownian motion at all `times` `(steps + 1,)`, increasing, from `start` at times[0]: exact at each of them."""
    times = integrators.as_times(times, integrators.tangent_of(group, start).dtype)

    def step(state, arguments):
        duration, step_key = arguments
        after = brownian(group, state, duration, key=step_key)
        return after, after

    final, path = jax.lax.scan(step, start, (jnp.diff(times), jax.random.split(key, times.shape[0] - 1)))
    return integrators.Path(final, integrators.prepend(start, path))


def _increment(group: groups.Group, start: groups.Element, time: Array, key: Array) -> groups.Element:
    if isinstance(group, groups.Product):
        keys = jax.random.split(key, len(group.factors))
        parts = zip(group.factors, start, keys, strict=True)
        return tuple(_increment(factor, element, time, part_key) for factor, element, part_key in parts)
    if group is so3:
        return _rotation(time, key)
    if group is su2:
        return _quaternion(time, key)
    if group is so2:
        return so2.exp(_normal(time, 1, key))
    if group is se3 or group is se2:
        key_rotation, key_translation = jax.random.split(key)
        if group is se3:
            return se3.Pose(_rotation(time, key_rotation), _normal(time, 3, key_translation))
        return se2.Pose(so2.exp(_normal(time, 1, key_rotation)), _normal(time, 2, key_translation))
    if group is euclidean or isinstance(group, euclidean.Space):
        return _normal(time, start.shape[-1], key)
    raise TypeError(f"brownian: the exact transition of {group} is not known; take small steps with `sde`")


def _normal(time: Array, size: int, key: Array) -> Array:
    return smooth.sqrt(time)[..., None] * jax.random.normal(key, (*time.shape, size), time.dtype)


def _rotation(time: Array, key: Array) -> Array:
    """IGSO(3) of scale √time about the identity, which it is at time 0."""
    moved = time > 0
    centre = so3.identity(time.shape, time.dtype)
    law = densities.IsotropicGaussian(centre, jnp.sqrt(jnp.where(moved, time, 1)))
    return jnp.where(moved[..., None, None], law.sample((), key=key), centre)


def _quaternion(time: Array, key: Array) -> Array:
    """The lift of `_rotation` to the sheet on which its heat kernel puts it: q or −q."""
    key_rotation, key_sheet = jax.random.split(key)
    omega = so3.log(_rotation(time, key_rotation))
    odds = _far_sheet_odds(smooth.norm(omega), jnp.where(time > 0, time, 1))
    far = jax.random.uniform(key_sheet, time.shape, time.dtype) * (1 + odds) < odds
    q = su2.exp(omega)
    return jnp.where(far[..., None], -q, q)


def _far_sheet_odds(angle: Array, time: Array) -> Array:
    """K(2π − ψ)/K(ψ) of SU(2)'s heat kernel K at rotation angle ψ <= π, where −q lies at 2π − ψ.

    K(ψ) sin(ψ/2) is Σ_k (ψ + 4πk) exp(−(ψ + 4πk)²/2t) up to a factor, and Σ_m m sin(mψ/2) exp(−(m² − 1) t/8) for long
    times; both are divided by ψ-free factors only, and the sine is the same on the two sheets.
    """
    early = jnp.minimum(time, _SPECTRAL_FROM)
    late = jnp.maximum(time, _SPECTRAL_FROM)

    def windings(psi):
        shifts = jnp.stack([psi + 4 * jnp.pi * k for k in range(-3, 4)])
        return jnp.sum(shifts * jnp.exp((angle - shifts) * (angle + shifts) / (2 * early)), axis=0)

    def spectral(sign):
        terms = [
            (sign if m % 2 == 0 else 1) * m * jnp.sin(m * angle / 2) * jnp.exp(-(m * m - 1) * late / 8)
            for m in range(1, 8)
        ]
        return jnp.sum(jnp.stack(terms), axis=0)

    short = smooth.divide(windings(2 * jnp.pi - angle), windings(angle))
    long = smooth.divide(spectral(-1), spectral(1), fallback=1.0)
    return jnp.maximum(jnp.where(time < _SPECTRAL_FROM, short, long), 0)
