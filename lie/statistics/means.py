"""Averages on a group: the Fréchet mean, the geodesic median, and on SO(3) the projected mean."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lie import check, elementwise, smooth, so3
from lie import group as groups
from lie.statistics import samples as layout


class Mean(NamedTuple):
    """An average, the norm of the residual of its defining equation, and how the iteration ended, for each batch."""

    mean: groups.Element
    error: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def frechet_mean(
    group: groups.Group,
    samples: groups.Element,
    weights: ArrayLike | None = None,
    *,
    initial: groups.Element | None = None,
    tolerance: float | None = None,
    max_steps: int = 200,
) -> Mean:
    """The m with Σ_i w_i log(m⁻¹ x_i) = 0, by m ← m exp(Σ_i w_i log(m⁻¹ x_i)).

    samples (n, *batch, *element), weights (n,) or (n, *batch) of any scale. On groups with a bi-invariant metric (SO,
    SU, R^n and their products) this is a stationary point of Σ w d², and the minimiser if the samples lie within π/2
    (SO(3)) of some point; the step minimises a majorant, so Σ w d² never grows. On SE(n) it is the bi-invariant
    exponential barycentre, the only choice that no change of frame moves. `error` is the norm of the residual,
    `converged` means error <= tolerance, by default 16 eps times (largest entry of an element + root mean square
    tangent). Starts at `initial`, by default the projected mean on SO(3) and the first sample elsewhere. Each batch
    element stops on its own. Differentiable to all orders in samples and weights by the implicit function theorem.
    Sources: Karcher 1977, CPAM 30:509; Manton 2004 (the iteration); Pennec, Arsigny 2013 (the barycentre).
    """

    def residual(mean, samples, weights):
        return layout.weighted_sum(weights, layout.tangents(group, mean, samples))

    def move(mean, samples, weights, scale):
        step = residual(mean, samples, weights)
        return step, smooth.norm(step)

    return _solve(group, residual, move, _nowhere, samples, weights, initial, tolerance, max_steps)


def geodesic_median(
    group: groups.Group,
    samples: groups.Element,
    weights: ArrayLike | None = None,
    *,
    initial: groups.Element | None = None,
    tolerance: float | None = None,
    max_steps: int = 1000,
) -> Mean:
    """The m that minimises Σ_i w_i |log(m⁻¹ x_i)|, by Weiszfeld's iteration: it ignores how far an outlier is.

    Arguments and record as `frechet_mean`; the residual is |Σ_i w_i v_i/|v_i||, v_i = log(m⁻¹ x_i), less the weight of
    samples that m coincides with (Vardi and Zhang's rule: samples are no trap, and may be the median). Default
    tolerance sqrt(eps): convergence is linear, and slow where the pull on a median at a sample nearly balances its
    weight. Less than half of the weight, however far away, cannot carry it off. Differentiable; at a sample the median
    moves with the sample. Starts at the Fréchet iteration's first guess.
    Sources: Weiszfeld 1937; Vardi, Zhang 2000, PNAS 97:1423; Fletcher, Venkatasubramanian, Joshi 2009.
    """

    def coincides(lengths, scale):
        return lengths <= 8 * float(jnp.finfo(lengths.dtype).eps) * scale  # m⁻¹ x is no more exact than this

    def residual(mean, samples, weights):
        tangents = layout.tangents(group, mean, samples)
        lengths = smooth.norm(tangents, keepdims=True)
        return layout.weighted_sum(weights, smooth.divide(tangents, jnp.broadcast_to(lengths, tangents.shape)))

    def move(mean, samples, weights, scale):
        tangents = layout.tangents(group, mean, samples)
        lengths = smooth.norm(tangents)
        near = coincides(lengths, scale)
        pulls = jnp.where(near, 0, smooth.divide(jnp.broadcast_to(weights, lengths.shape), lengths))
        pull = layout.weighted_sum(pulls, tangents)
        strength = smooth.norm(pull)
        excess = jnp.maximum(strength - jnp.sum(jnp.where(near, weights, 0), axis=0), 0)
        step = smooth.divide(excess, strength * jnp.sum(pulls, axis=0))[..., None] * pull
        return step, excess

    def pinned(mean, samples, scale):
        return coincides(smooth.norm(layout.tangents(group, mean, samples)), scale)

    if tolerance is None:
        tolerance = float(jnp.finfo(layout.tangent_of(group, samples).dtype).eps) ** 0.5
    return _solve(group, residual, move, pinned, samples, weights, initial, tolerance, max_steps)


def projected_mean(samples: Float[ArrayLike, "n *batch 3 3"], weights: ArrayLike | None = None) -> Float[Array, "..."]:
    """The rotation closest to Σ_i w_i R_i: minimises Σ w |R − R_i|²_F; the matrix Fisher law's estimate of its mode.

    samples (n, *batch, 3, 3) -> (*batch, 3, 3). Closed form (`so3.project`), differentiable where it is unique.
    """
    return so3.project(mean_matrix(samples, weights))


def mean_matrix(
    samples: Float[ArrayLike, "n *batch 3 3"], weights: ArrayLike | None = None
) -> Float[Array, "*batch 3 3"]:
    """Σ_i w_i R_i with weights that sum to 1: the sufficient statistic of the matrix Fisher law."""
    samples = check.array("samples", samples, 3, 3)
    check.rotation("samples", samples)
    tangent = layout.tangent_of(so3, samples)
    weights = layout.normalised(weights, tangent)
    return layout.weighted_sum(weights, layout.align(samples, tangent, weights.ndim - 1))


def _solve(
    group: groups.Group,
    residual: Callable,
    move: Callable,
    pinned: Callable,
    samples: groups.Element,
    weights: ArrayLike | None,
    initial: groups.Element | None,
    tolerance: float | None,
    max_steps: int,
) -> Mean:
    """m ← m exp(step) until the error is at most the tolerance, for each batch element apart.

    residual(m, samples, weights) is 0 at the answer and carries the derivatives; move(m, ..., scale) -> (step, error);
    pinned(m, samples, scale) marks samples that the answer sits on, whose motion it then follows.
    """
    tangent = layout.tangent_of(group, samples)
    weights = layout.normalised(weights, tangent)
    samples = layout.align(samples, tangent, weights.ndim - 1)
    batch = jnp.broadcast_shapes(layout.tangent_of(group, samples).shape[1:-1], weights.shape[1:])
    frozen, fixed = jax.lax.stop_gradient((samples, weights))
    guess = _first_guess(group, frozen, fixed) if initial is None else jax.lax.stop_gradient(initial)
    start = group.retract(guess, jnp.zeros((*batch, tangent.shape[-1]), tangent.dtype))
    spread = smooth.norm(layout.tangents(group, start, frozen))
    scale = smooth.sqrt(layout.weighted_sum(fixed, spread * spread)) + _largest_entry(frozen, weights.ndim - 1)
    limit = 16 * float(jnp.finfo(tangent.dtype).eps) * scale if tolerance is None else jnp.full_like(scale, tolerance)

    @jax.custom_jvp
    def iterate(samples, weights, start, scale, limit):
        def unfinished(error, steps):
            return (error > limit) & (steps < max_steps)

        def advance(carry):
            mean, step, error, steps = carry
            active = unfinished(error, steps)
            mean = group.retract(mean, jnp.where(active[..., None], step, 0))  # a step of 0 changes no digit
            return mean, *move(mean, samples, weights, scale), steps + active.astype(jnp.int32)

        # The first round takes a step of 0, so that `move` is compiled once.
        nothing = jnp.zeros((*limit.shape, tangent.shape[-1]), limit.dtype)
        first = (start, nothing, jnp.full_like(limit, jnp.inf), jnp.full(limit.shape, -1, jnp.int32))
        mean, _, error, steps = jax.lax.while_loop(lambda c: jnp.any(unfinished(*c[2:])), advance, first)
        return Mean(mean, error, steps, error <= limit)

    @iterate.defjvp
    def _iterate_jvp(primals, tangents):
        samples, weights, _, scale, _ = primals
        found = iterate(*primals)
        changes = jax.jvp(partial(residual, found.mean), (samples, weights), tangents[:2])[1]
        velocities = jax.jvp(partial(layout.tangents, group, found.mean), (samples,), tangents[:1])[1]
        held = pinned(found.mean, samples, scale)
        share = smooth.divide(held.astype(weights.dtype), jnp.sum(held, axis=0).astype(weights.dtype))
        free = -_divide_by_slope(group, lambda m: residual(m, samples, weights), found.mean, changes)
        velocity = jnp.where(jnp.any(held, axis=0)[..., None], layout.weighted_sum(share, velocities), free)
        origin = jnp.zeros_like(velocity)
        mean_dot = jax.jvp(partial(group.retract, found.mean), (origin,), (velocity,))[1]
        still: Any = [np.zeros(x.shape, jax.dtypes.float0) for x in (found.steps, found.converged)]
        return found, Mean(mean_dot, jnp.zeros_like(found.error), *still)

    return iterate(samples, weights, start, scale, limit)


def _divide_by_slope(group: groups.Group, field: Callable, mean: groups.Element, values: Array) -> Array:
    """A⁻¹ values, A the body-frame Jacobian of `field` at `mean`; 0 where A is singular: the answer is not unique."""
    size = values.shape[-1]
    origin = jnp.zeros_like(values)
    columns = jax.vmap(
        lambda axis: jax.jvp(
            lambda u: field(group.retract(mean, u)), (origin,), (jnp.broadcast_to(axis, values.shape),)
        )[1]
    )(jnp.eye(size, dtype=values.dtype))
    slope = jnp.moveaxis(columns, 0, -1)
    scale = jnp.max(jnp.abs(slope), axis=(-2, -1), keepdims=True)
    eye = jnp.eye(size, dtype=values.dtype)
    scaled = smooth.divide(slope, jnp.broadcast_to(scale, slope.shape))
    regular = jnp.abs(jnp.linalg.det(scaled)) > 64 * float(jnp.finfo(values.dtype).eps)
    inverse = jnp.linalg.inv(jnp.where(regular[..., None, None], slope, eye))
    return jnp.where(regular[..., None], elementwise.matvec(inverse, values), 0)


def _nowhere(mean: groups.Element, samples: groups.Element, scale: Array) -> Array:
    count = jax.tree.leaves(samples)[0].shape[0]
    return jnp.zeros((count, *scale.shape), bool)


def _first_guess(group: groups.Group, samples: groups.Element, weights: Array) -> groups.Element:
    if group is so3:
        return so3.project(layout.weighted_sum(weights, samples))
    return jax.tree.map(lambda x: x[0], samples)


def _largest_entry(samples: groups.Element, batch_axes: int) -> Array:
    """max |x| of each batch element over its samples and entries: absolute rounding errors scale with it."""
    sizes = [jnp.max(jnp.abs(x), axis=(0, *range(1 + batch_axes, x.ndim)), initial=0) for x in jax.tree.leaves(samples)]
    return jnp.max(jnp.stack(jnp.broadcast_arrays(*sizes)), axis=0)
