"""Wasserstein barycenters: weights on a given support, or free points on R^n, spheres and groups; debiased."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lie import elementwise, euclidean, record, smooth, so2, so3, sphere, su2
from lie import group as groups
from ot import _batch, _dense, _guard, _inputs, costs

Points = Any

_INNER_STEPS = 1000


@record.register("points", "weights", "value", "error", "movement", "steps", "converged")
@dataclass(frozen=True)
class Barycenter:
    """Weighted points and how the iteration ended.

    points (size, *event): the given support, or the free points. weights (*batch, size). value: Σ_k λ_k OT_ε(μ, μ_k),
    with Sinkhorn divergences in place of OT_ε where debiased. error: the true L1 violation of all marginals, weighted
    by λ, and of the condition that removes the bias. movement: root mean square length of the last step of the points,
    0 for a given support. converged: error <= tolerance, and for free points movement <= tolerance times their spread.
    """

    points: Points
    weights: Float[Array, "*batch size"]
    value: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    movement: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def solve(
    clouds: Sequence[Points],
    masses: Sequence[ArrayLike | None] | None = None,
    *,
    shares: ArrayLike | None = None,
    support: Points | None = None,
    initial: Points | None = None,
    size: int | None = None,
    cost: Any = None,
    group: Any = None,
    epsilon: ArrayLike,
    debiased: bool = True,
    tolerance: float = 1e-3,
    max_steps: int = 2000,
) -> Barycenter:
    """The μ that minimises Σ_k λ_k OT_ε(μ, μ_k), or the sum of Sinkhorn divergences where `debiased`.

    clouds: K point clouds (n_k, *event) with masses (*batch, n_k), uniform where None; shares λ (K,), uniform if None.
    With `support` (size, *event) the points are given and μ's weights are found, by iterative Bregman projections in
    logarithms; `cost` is any cost of `ot.costs`, default squared Euclidean. Without `support` the weights are uniform
    and the points move: each goes along the mean of log_z(x) under its rows of the plans, for the debiased barycenter
    less what the plan of μ to itself pulls, so that ε does not shrink it. `group` is None (R^n), `lie.sphere`, so2,
    so3, su2, euclidean or a product of these, the cost the squared geodesic distance; they start from `initial`, else
    from `size` points of the first cloud (all if None), spread evenly over its order. Free points take no batch axes.
    Raises ValueError and TypeError that name the argument.
    Sources: Benamou et al. 2015, SISC 37:A1111; Janati, Cuturi, Gramfort 2020, ICML (debiased); Cuturi, Doucet 2014,
    ICML, and Luise et al. 2019 (free support).
    """
    clouds = [_inputs.points(f"clouds[{k}]", cloud) for k, cloud in enumerate(clouds)]
    if not clouds:
        raise ValueError("clouds: expected at least one cloud, got none")
    given = [None] * len(clouds) if masses is None else list(masses)
    if len(given) != len(clouds):
        raise ValueError(f"masses: expected {len(clouds)} entries, one per cloud, got {len(given)}")
    leaf = jax.tree.leaves(clouds[0])[0]
    dtype = leaf.dtype
    a = [
        _inputs.weights(f"masses[{k}]", mass, jax.tree.leaves(cloud)[0].shape[0], dtype)
        for k, (mass, cloud) in enumerate(zip(given, clouds, strict=True))
    ]
    shares = _inputs.weights("shares", shares, len(clouds), dtype)
    epsilon = _inputs.scalar("epsilon", epsilon, dtype)
    if support is not None:
        if initial is not None or size is not None or group is not None:
            raise ValueError("support: expected neither initial, size nor group beside it; `cost` may be a Geodesic")
        return _on_support(
            clouds, a, shares, _inputs.points("support", support), cost, epsilon, debiased, tolerance, max_steps
        )
    if cost is not None:
        raise ValueError("cost: free points have the squared distance of `group`; a cost needs a given `support`")
    space = _space(group)
    start = _start(clouds[0], initial, size)
    if any(mass.ndim != 1 for mass in a) or shares.ndim != 1:
        raise ValueError("masses and shares: free points take no batch axes; use jax.vmap")
    return _moved(tuple(clouds), tuple(a), shares, start, epsilon, tolerance, max_steps, space, debiased)


def _on_support(clouds, a, shares, support, cost, epsilon, debiased, tolerance, max_steps) -> Barycenter:
    measure = costs.SquaredEuclidean() if cost is None else costs.wrap(cost)
    matrices = [_inputs.cost(f"clouds[{k}]", measure(support, cloud)) for k, cloud in enumerate(clouds)]
    own = _inputs.cost("support", measure(support, support))
    selves = [measure(cloud, cloud) for cloud in clouds] if debiased else []
    found = _weigh(tuple(a), tuple(matrices), tuple(selves), own, shares, epsilon, tolerance, max_steps, debiased)
    return Barycenter(support, *found)


@partial(jax.jit, static_argnames="debiased")
def _weigh(a, matrices, selves, own, shares, epsilon, tolerance, max_steps, debiased: bool):
    count = len(a)

    def one(own, shares, epsilon, *arrays):
        parts = arrays[:count], arrays[count : 2 * count], arrays[2 * count :]
        return _weigh_one(*parts, own, shares, epsilon, tolerance, max_steps, debiased)

    event_axes = [2, 1, 0] + [1] * count + [2] * (len(matrices) + len(selves))
    return _batch.over(one, [own, shares, epsilon, *a, *matrices, *selves], event_axes)


def _weigh_one(a, matrices, selves, own, shares, epsilon, tolerance, max_steps, debiased: bool):
    """log K_k = −C_k/ε of (size, n_k). Scalings u_k of the support and v_k of the clouds, d of the support to itself.

    v_k = a_k/(Kᵀu_k), ρ = d Π (K_k v_k)^λ, u_k = ρ/(K_k v_k), and d ← √(d ρ/(K d)), which makes d (K d) = ρ.
    """
    a, matrices, selves, own, shares, epsilon = jax.lax.stop_gradient((a, matrices, selves, own, shares, epsilon))
    log_a, log_K = [smooth.log(a_k) for a_k in a], [-C / epsilon for C in matrices]
    log_own = -own / epsilon

    def advance(state):
        log_u, log_v, log_d, _, _, steps = state
        seen = [logsumexp(K + v, axis=-1) for K, v in zip(log_K, log_v, strict=True)]  # K_k v_k
        log_rho = log_d + sum(share * s for share, s in zip(shares, seen, strict=True))
        log_u = [log_rho - s for s in seen]
        ahead = [_columns(K, u, w) for K, u, w in zip(log_K, log_u, log_a, strict=True)]
        # The support's side is exact now; the violation is that of the clouds, a_k v_k/(next v_k).
        off = [jnp.sum(w * jnp.abs(jnp.expm1(_ratio(v, n)))) for w, v, n in zip(a, log_v, ahead, strict=True)]
        error = jnp.sum(shares * jnp.stack(off))
        if debiased:
            own_seen = logsumexp(log_own + log_d, axis=-1)
            error = error + jnp.sum(jnp.abs(jnp.exp(log_d + own_seen) - jnp.exp(log_rho)))
            log_d = (log_d + log_rho - own_seen) / 2
        return log_u, ahead, log_d, log_rho, error, steps + 1

    def unfinished(state):
        return ~(state[4] <= tolerance) & (state[5] < max_steps)

    size = own.shape[0]
    flat = jnp.zeros(size, own.dtype)
    guess = [_columns(K, flat, w) for K, w in zip(log_K, log_a, strict=True)]
    first = [flat] * len(a), guess, flat, flat, jnp.full_like(epsilon, jnp.inf), jnp.int32(0)
    log_u, log_v, log_d, log_rho, error, steps = jax.lax.while_loop(unfinished, advance, first)
    rho = jnp.exp(log_rho)
    # OT_ε with KL(P | ρ aᵀ): potentials are ε log of the scalings less those of the weights.
    values = [
        epsilon * (jnp.sum(rho * (u - log_rho)) + jnp.sum(w * jnp.where(w > 0, v - lw, 0)))
        for u, v, w, lw in zip(log_u, log_v, a, log_a, strict=True)
    ]
    value = jnp.sum(shares * jnp.stack(values))
    if debiased:
        halves = [_half_self_transport(C, w, epsilon, tolerance) for C, w in zip(selves, a, strict=True)]
        value = value - epsilon * jnp.sum(rho * (log_d - log_rho)) - jnp.sum(shares * jnp.stack(halves))
    return rho, value, error, jnp.zeros_like(error), steps, error <= tolerance


def _columns(log_K: Array, log_u: Array, log_a: Array) -> Array:
    """log v = log a − log Kᵀu."""
    return log_a - logsumexp(log_K + log_u[:, None], axis=0)


def _ratio(log_v: Array, after: Array) -> Array:
    present = log_v > -jnp.inf
    return jnp.where(present, jnp.where(present, log_v, 0) - jnp.where(present, after, 0), 0)


def _self_scaling(C: Array, w: Array, epsilon: Array, tolerance: Any) -> tuple[Array, Array]:
    """f of the symmetric plan w_i w_j exp((f_i + f_j − C_ij)/ε) of marginals w, and its L1 error: f ← (f + f')/2."""
    log_w = smooth.log(w)

    def advance(state):
        f, _, steps = state
        ahead = _dense.row_update(C, f, log_w, epsilon)
        error = jnp.sum(w * jnp.abs(jnp.expm1((f - ahead) / epsilon)))
        return jnp.where(error <= tolerance, f, (f + ahead) / 2), error, steps + 1

    def unfinished(state):
        return ~(state[1] <= tolerance) & (state[2] < _INNER_STEPS)

    f, error, _ = jax.lax.while_loop(
        unfinished, advance, (jnp.zeros_like(w), jnp.full_like(epsilon, jnp.inf), jnp.int32(0))
    )
    return f, error


def _half_self_transport(C: Array, w: Array, epsilon: Array, tolerance: Any) -> Array:
    """OT_ε(w, w)/2."""
    return jnp.sum(w * _self_scaling(C, w, epsilon, tolerance)[0])


@partial(jax.jit, static_argnames=("space", "debiased"))
def _moved(clouds, a, shares, start, epsilon, tolerance, max_steps, space: Any, debiased: bool) -> Barycenter:
    clouds, a, shares, start, epsilon = jax.lax.stop_gradient((clouds, a, shares, start, epsilon))
    measure = costs.Sphere() if space is sphere else costs.Geodesic(space)
    log_a = [smooth.log(mass) for mass in a]
    count = jax.tree.leaves(start)[0].shape[0]
    w = jnp.full((count,), 1 / count, epsilon.dtype)
    log_w, inner = jnp.log(w), tolerance / 4
    halves = [_half_self_transport(measure(x, x), mass, epsilon, inner) for x, mass in zip(clouds, a, strict=True)]

    def assess(z, duals):
        """The step of every point, and the potentials g_k, the value and the error it was found with."""
        step = value = error = jnp.zeros((), epsilon.dtype)
        after = []
        for x, mass, log_mass, share, half, g in zip(clouds, a, log_a, shares, halves, duals, strict=True):
            C = measure(z, x)
            found = _dense.solve(C, log_w, log_mass, epsilon, g, inner, _INNER_STEPS)
            rows = jnp.exp((found.f[:, None] + found.g - C) / epsilon + log_mass)  # P_ij / w_i
            step = step + share * _pull(space, z, x, rows)
            dual = jnp.sum(w * found.f) + jnp.sum(mass * found.g)
            value, error = value + share * (dual - half if debiased else dual), error + share * found.error
            after.append(found.g)
        if debiased:
            C = measure(z, z)
            f, own_error = _self_scaling(C, w, epsilon, inner)
            step = step - _pull(space, z, z, jnp.exp((f[:, None] + f - C) / epsilon + log_w))
            value, error = value - jnp.sum(w * f), error + own_error
        return step, tuple(after), value, error

    def advance(state):
        z, step, duals, *_, steps = state
        z = space.retract(z, step)
        return z, *assess(z, duals), steps + 1

    def movement(step):
        return jnp.sqrt(jnp.sum(step * step) / count)

    def unfinished(state):
        _, step, _, _, error, steps = state
        return ~((movement(step) <= tolerance * spread) & (error <= tolerance)) & (steps < max_steps)

    spread = jnp.sqrt(sum(share * jnp.mean(measure(start, x)) for share, x in zip(shares, clouds, strict=True)))
    first = (start, *assess(start, tuple(jnp.zeros_like(mass) for mass in a)), jnp.int32(0))
    z, step, _, value, error, steps = jax.lax.while_loop(unfinished, advance, first)
    moved = movement(step)
    return Barycenter(z, w, value, error, moved, steps, (moved <= tolerance * spread) & (error <= tolerance))


def _pull(space: Any, z: Points, x: Points, rows: Array) -> Array:
    """Σ_j rows_ij log_{z_i}(x_j): the tangent at each z along the mean of what it is coupled to."""
    if space is euclidean:
        return elementwise.einsum("ij,jd->id", rows, x) - jnp.sum(rows, axis=-1, keepdims=True) * z
    tangents = space.local(*(jax.tree.map(lambda p, e=e: jnp.expand_dims(p, e), q) for q, e in ((z, 1), (x, 0))))
    return jnp.sum(rows[..., None] * tangents, axis=1)


def _space(group: Any) -> Any:
    space = euclidean if group is None else group
    if not _is_flat_or_compact(space):
        raise ValueError(
            f"group: expected None, lie.sphere, so2, so3, su2, euclidean or a product of these, on which the squared "
            f"distance is |log(g⁻¹h)|² and moving along its mean lowers it; got {group!r}"
        )
    return space


def _is_flat_or_compact(space: Any) -> bool:
    if isinstance(space, groups.Product):
        return all(map(_is_flat_or_compact, space.factors))
    return space in (sphere, so2, so3, su2, euclidean) or isinstance(space, euclidean.Space)


def _start(cloud: Points, initial: Points | None, size: int | None) -> Points:
    if initial is not None:
        if size is not None:
            raise ValueError("size: expected None beside `initial`, whose points are counted")
        return _inputs.points("initial", initial)
    count = jax.tree.leaves(cloud)[0].shape[0]
    if size is None:
        return cloud
    if not 1 <= size <= count:
        raise ValueError(f"size: expected 1..{count}, the points of the first cloud, got {size}; or give `initial`")
    chosen = (np.arange(size) * count + count // 2) // size
    return jax.tree.map(lambda leaf: leaf[chosen], cloud)


sys.modules[__name__].__class__ = _guard.FunctionInPOT
