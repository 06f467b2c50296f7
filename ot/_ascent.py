"""Ascent of the dual on one fixed kernel: Sinkhorn's iteration far from the solution, truncated Newton steps near it.

With the potentials f + ε φ, g + ε γ and the plan P = diag(a e^φ) K diag(b e^γ), φ is always the exact answer to γ, so
the rows are right and what is left is a concave function of γ alone (the semi-dual) with gradient β − c, c = P^T 1, and
negative Hessian S = diag(c + κ_b β) − λ_a P^T diag(1/P1) P. Targets are α = a e^(−f/ρ_a), β = b e^(−g/ρ_b), κ = ε/ρ,
λ = 1/(1 + κ); ρ = ∞ gives the balanced problem: α = a, β = b, κ = 0, λ = 1.

Newton's system is solved by conjugate gradients, preconditioned by the diagonal, to a third of its residual in at most
20 products; twice as many after each step that did not halve the error. The step is accepted while the slope along it
does not turn by more than half: a slope is exact where the difference of two values of the dual is rounding. To 1e-3 at
ε = 0.001 of the mean cost (n = 512, d = 3) the whole continuation takes 128 sweeps; OTT-JAX's plain iteration 2600.
Rejected: momentum 1.5 at ε = 0.05, which takes 11 sweeps for Newton's 13 but stalls below; and, in products on the same
instance in the first version, which took 426: acceptance by the error 9000, residual to a tenth 504, to a half 650; a
fixed 20 products where 1e-6 is asked for: 10 500 sweeps in place of 1300.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lie import smooth
from ot import _kernel, _pairs

LARGEST_SCALING = 30.0
"""e^30: with it a kernel in float32 still holds what matters (entries below 1e-38 count for less than 1e-12)."""

_NEWTON_BELOW = 0.2  # the error, relative to the mass, below which Newton's method is tried
_RESIDUAL = 0.3
_LAST_STEP = 0.7  # of the residual that would end the ascent: what a step aims at,
_REACH = 0.02  # where that is more than this
_FEW_PRODUCTS = 6  # and for as many products: 15 % fewer sweeps at n = 8192; aimed at to the end, a fifth more at 0.001
_PRODUCTS = 20
_MOST_PRODUCTS = 640
_SAMPLED_WITHIN = 0.15  # of the mass: what sampled rows may miss of the columns; at 0.25 steps overshoot
_LONGEST_STEP = 5.0  # in γ: a potential may change by 5 ε in one step
_STEEPEST_TURN = 0.5
_TRIALS = 6
_PATIENCE = 4  # Sinkhorn iterations after a step that found no acceptable length


class Marginals(NamedTuple):
    """Weights, absorbed potentials over ε, and κ = ε/ρ of both sides, in the working type."""

    a: Float[Array, "n"]
    b: Float[Array, "m"]
    f: Float[Array, "n"]
    g: Float[Array, "m"]
    kappa_a: Float[Array, ""]
    kappa_b: Float[Array, ""]


def marginals(pairs: _pairs.Pairs, f: Float[Array, "n"], g: Float[Array, "m"], working: Any) -> Marginals:
    """Those of a problem at absorbed potentials."""
    values = pairs.a, pairs.b, f / pairs.epsilon, g / pairs.epsilon, *pairs.softness()
    return Marginals(*(x.astype(working) for x in values))


class Point(NamedTuple):
    """γ, the φ that answers it, p = a e^φ, the row sums K q, p K and the columns c = q ∘ p K of the plan."""

    gamma: Float[Array, "m"]
    phi: Float[Array, "n"]
    p: Float[Array, "n"]
    r: Float[Array, "n"]
    pull: Float[Array, "m"]
    c: Float[Array, "m"]
    beta: Float[Array, "m"]
    error: Float[Array, ""]


class Search(NamedTuple):
    """Where the ascent stands: the last accepted point and the step that is being tried from it."""

    point: Point
    direction: Float[Array, "m"]  # of Newton's method; the slope along it is what a trial must not turn
    stride: Float[Array, "m"]
    length: Float[Array, ""]
    trials: Int[Array, ""]  # 0: choose the next step
    newton: Bool[Array, ""]
    patience: Int[Array, ""]
    products: Int[Array, ""]  # allowed to the next Newton step: twice as many after one that did not halve the error
    sweeps: Int[Array, ""]


def climb(
    kernel: _kernel.Kernel,
    marginals: Marginals,
    target: Float[Array, ""],
    budget: Int[Array, ""],
    sample: _kernel.Sample | None = None,
) -> tuple[Point, Int[Array, ""]]:
    """From γ = 0 until the error is at most `target`, the scaling leaves the range of the kernel or sweeps run out.

    Returns the last accepted point and the number of sweeps. One trial is one pass of one loop, so that the sweep is
    compiled once for the trial and once for conjugate gradients.
    """

    def unfinished(search: Search) -> Bool[Array, ""]:
        return _lively(search.point, search.sweeps, target, budget)

    def step(search: Search) -> Search:
        point, fresh = search.point, search.trials == 0
        newton = jnp.where(fresh, (point.error < _NEWTON_BELOW) & (search.patience == 0), search.newton)
        limit = jnp.where(fresh & newton, search.products, 0)
        needed = _LAST_STEP * target / point.error
        finer = jnp.where(needed > _REACH, needed, _RESIDUAL)
        w, products = newton_direction(kernel, marginals, point, _RESIDUAL, limit, finer, sample)
        shortened = w * jnp.minimum(1, smooth.divide(jnp.full_like(target, _LONGEST_STEP), jnp.max(jnp.abs(w)), 1.0))
        stride = jnp.where(
            newton, shortened, jnp.where(jnp.isinf(point.error), 0, _column_answer(marginals, point) - point.gamma)
        )
        direction, stride = jnp.where(fresh, w, search.direction), jnp.where(fresh, stride, search.stride)
        length = jnp.where(fresh, 1, search.length)

        trial = visit(kernel, marginals, point.gamma + length * stride)
        here, there = _slope(point, direction), _slope(trial, direction)
        good = ~newton | ((there >= -_STEEPEST_TURN * here) & jnp.isfinite(trial.error))
        slow = newton & good & (trial.error > point.error / 2)
        trials = search.trials + 1
        failed = ~good & (trials == _TRIALS)
        secant = jnp.where(jnp.isfinite(there), jnp.clip(smooth.divide(here, here - there), 0.1, 0.5), 0.25)
        return Search(
            jax.tree.map(lambda new, old: jnp.where(good, new, old), trial, point),
            direction,
            stride,
            length * secant,
            jnp.where(good | failed, 0, trials),
            newton,
            jnp.where(failed, _PATIENCE, jnp.where(good, jnp.maximum(search.patience - 1, 0), search.patience)),
            jnp.where(slow, jnp.minimum(2 * search.products, _MOST_PRODUCTS), search.products),
            search.sweeps + products + 1,
        )

    zero_a, zero_b, unknown = jnp.zeros_like(marginals.a), jnp.zeros_like(marginals.b), jnp.full_like(target, jnp.inf)
    nowhere = Point(zero_b, zero_a, zero_a, zero_a + 1, zero_b + 1, zero_b, zero_b, unknown)
    none = jnp.int32(0)
    begun = Search(
        nowhere, zero_b, zero_b, jnp.ones_like(target), none, jnp.asarray(False), none, none + _PRODUCTS, none
    )
    search = jax.lax.while_loop(unfinished, step, begun)
    return search.point, search.sweeps


def settle(
    kernel: _kernel.Kernel, marginals: Marginals, target: Float[Array, ""], budget: Int[Array, ""]
) -> tuple[Point, Int[Array, ""]]:
    """As `climb`, by Sinkhorn's iteration alone: a third of the program, for small problems at large ε."""

    def step(carried: tuple[Point, Int[Array, ""]]) -> tuple[Point, Int[Array, ""]]:
        point, sweeps = carried
        return visit(kernel, marginals, _column_answer(marginals, point)), sweeps + 1

    def unfinished(carried: tuple[Point, Int[Array, ""]]) -> Bool[Array, ""]:
        return _lively(*carried, target, budget)

    begun = visit(kernel, marginals, jnp.zeros_like(marginals.b)), jnp.int32(1)
    return jax.lax.while_loop(unfinished, step, begun)


def _lively(point: Point, sweeps: Array, target: Array, budget: Array) -> Bool[Array, ""]:
    largest = jnp.maximum(jnp.max(jnp.abs(point.gamma)), jnp.max(jnp.abs(point.phi)))
    return (point.error > target) & (largest < LARGEST_SCALING) & (sweeps < budget)


def visit(kernel: _kernel.Kernel, marginals: Marginals, gamma: Float[Array, "m"]) -> Point:
    """The point at γ, by one sweep. Entries without weight stay at φ = γ = 0: their potentials come at the end."""
    a, b, f, g, kappa_a, kappa_b = marginals
    gamma = jnp.where(b > 0, gamma, 0)
    q = b * jnp.exp(gamma)

    def answer(r, a, f):
        return jnp.where(a > 0, -(jnp.log(r) + kappa_a * f) / (1 + kappa_a), 0)

    r, p, pull = kernel.sweep(q, lambda r, a, f: jnp.where(a > 0, a * jnp.exp(answer(r, a, f)), 0), a, f)
    c = jnp.where(b > 0, q * pull, 0)
    beta = b * jnp.exp(-kappa_b * (g + gamma))
    error = jnp.sum(jnp.abs(beta - c)) / jnp.sum(c)
    return Point(gamma, answer(r, a, f), p, r, pull, c, beta, error)


def _column_answer(marginals: Marginals, point: Point) -> Float[Array, "m"]:
    """γ of Sinkhorn's iteration."""
    answer = -(jnp.log(point.pull) + marginals.kappa_b * marginals.g) / (1 + marginals.kappa_b)
    return jnp.where(marginals.b > 0, answer, 0)


def _slope(point: Point, direction: Float[Array, "m"]) -> Float[Array, ""]:
    return jnp.sum((point.beta - point.c) * direction)


def newton_direction(
    kernel: _kernel.Kernel,
    marginals: Marginals,
    point: Point,
    forcing: float,
    limit: Int[Array, ""],
    finer: Array | float = 1.0,
    sample: _kernel.Sample | None = None,
) -> tuple[Float[Array, "m"], Int[Array, ""]]:
    """w with S w ≈ β − c, and the sweeps that it took.

    S is that of the sampled rows alone where their columns, scaled up, are c but for a little: a product is then a
    part of a sweep, and the direction no worse than the residual that is asked for.
    """
    residual = point.beta - point.c
    balanced = (marginals.kappa_a == 0) & (marginals.kappa_b == 0)  # then S 1 = 0, and rounding must not point along 1
    excess = jnp.where(balanced, jnp.sum(residual) / jnp.sum(point.c), 0)
    residual = residual - excess * point.c
    q = marginals.b * jnp.exp(point.gamma)
    h = jnp.where(marginals.a > 0, point.p / jnp.where(marginals.a > 0, point.r, 1), 0) / (1 + marginals.kappa_a)

    def returned(w: Array) -> Array:
        return q * kernel.sweep(q * w, lambda s, h: h * s, h)[2]

    if sample is None:
        diagonal = point.c + marginals.kappa_b * point.beta
        apply = lambda w: diagonal * w - returned(w)
        return conjugate_gradients(apply, diagonal, residual, forcing, limit, finer)

    few, stride = sample
    of_few = lambda v, weigh, rows: q * few.sweep(q * v, weigh, stride * rows[::stride])[2]
    columns = of_few(jnp.ones_like(q), lambda r, p: p, point.p)
    close = jnp.sum(jnp.abs(columns - point.c)) <= _SAMPLED_WITHIN * jnp.sum(point.c)
    diagonal = jnp.where(close, columns, point.c) + marginals.kappa_b * point.beta
    sampled = lambda w: of_few(w, lambda s, h: h * s, h)
    apply = lambda w: diagonal * w - jax.lax.cond(close, sampled, returned, w)
    w, products = conjugate_gradients(apply, diagonal, residual, forcing, limit, finer)
    return w, jnp.where(close, -(-products // stride), products)


def conjugate_gradients(
    apply: Any,
    diagonal: Float[Array, "m"],
    residual: Float[Array, "m"],
    forcing: float,
    limit: Int[Array, ""],
    finer: Array | float = 1.0,
) -> tuple[Float[Array, "m"], Int[Array, ""]]:
    """w with A w ≈ residual for a positive semi-definite A, preconditioned by its diagonal; entries with none stay 0.

    Until the preconditioned residual has fallen to `forcing` of its first value, and to `finer` of it if that takes
    few products, after `limit` products, or where rounding turns the curvature of a direction negative.
    """

    def scaled(r):
        return smooth.divide(r, diagonal)

    z = scaled(residual)
    first = jnp.sum(residual * z)

    def unfinished(state):
        *_, size, products, sound = state
        aim = jnp.where(products < _FEW_PRODUCTS, jnp.minimum(forcing, finer), forcing)
        return sound & (products < limit) & (size > aim**2 * first)

    def step(state):
        w, r, direction, size, products, _ = state
        image = apply(direction)
        bend = jnp.sum(direction * image)
        sound = bend > 0
        length = jnp.where(sound, size / jnp.where(sound, bend, 1), 0)
        w, r = w + length * direction, r - length * image
        z = scaled(r)
        size, before = jnp.sum(r * z), size
        return w, r, z + size / before * direction, size, products + 1, sound

    start = (jnp.zeros_like(residual), residual, z, first, jnp.int32(0), first > 0)
    w, *_, products, _ = jax.lax.while_loop(unfinished, step, start)
    return w, products
