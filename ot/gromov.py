"""Gromov-Wasserstein transport between spaces that share no coordinates, and fused with a cost that they do share."""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from lie import check, elementwise, record, smooth
from ot import _batch, _dense, _guard, _inputs, costs

Points = Any

_QUANTILES = 64  # of the distances from a point to all others, which the first start compares
_INNER_STEPS = 500
_WINDOW = 10  # steps between two looks at progress
_SOFTEST = 0.01  # of the range of the linearised cost: inner problems softer than this converge in tens of rounds


@record.register("plan", "f", "g", "value", "objective", "error", "change", "steps", "converged")
@dataclass(frozen=True)
class GromovWasserstein:
    """A stationary plan and how the descent ended.

    plan (*batch, n, m). value: the energy of the plan without entropy; objective: with ε KL(P | a bᵀ), which falls in
    every step. f, g: the potentials of its linearised problem. error: the true L1 violation of both marginals. change:
    the L1 distance that the plan moved in the last step, times what the penalty for moving shortened it by. converged:
    error <= tolerance, and change <= tolerance or ten steps lowered the objective by less than tolerance/10 of itself.
    """

    plan: Float[Array, "*batch n m"]
    f: Float[Array, "*batch n"]
    g: Float[Array, "*batch m"]
    value: Float[Array, "*batch"]
    objective: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    change: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]


def solve(
    x: Points,
    y: Points,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    cost: Any = None,
    epsilon: ArrayLike,
    fused: ArrayLike | None = None,
    cross: ArrayLike | None = None,
    starts: int = 1,
    tolerance: float = 1e-3,
    max_steps: int = 2000,
    key: PRNGKeyArray | None = None,
) -> GromovWasserstein:
    """min E(P) + ε KL(P | a bᵀ), E(P) = Σ (C¹_ik − C²_jl)² P_ij P_kl, over plans P of marginals a and b.

    C¹ = cost(x, x) and C² = cost(y, y) are symmetric; `cost` is one cost or a pair of them, by default squared
    Euclidean; `costs.Precomputed` takes a matrix (x or y then None). With `fused` = α in [0, 1] and `cross` = M
    (*batch, n, m) the energy is (1 − α) <M, P> + α E(P). epsilon has the unit of E, the squared cost.
    Each step linearises E and solves an entropic problem, warm-started, with a KL penalty for moving: none unless
    epsilon is below 1 % of the linearised cost's range, but doubled whenever the step raised the objective, as it may
    where E is not concave, and the step is then repeated: the objective never rises. The problem is not convex: the
    first start couples points whose distances to all others are alike, the second is a bᵀ, the rest (`key`) are random,
    and the least objective wins. Time O(n² m + n m²) a step. `value` and `objective` differentiate in x, y, costs and M
    with the plan held fixed, which for `objective` is exact (envelope theorem).
    Raises ValueError and TypeError that name the argument.
    Sources: Mémoli 2011, FoCM 11:417; Peyré, Cuturi, Solomon 2016, ICML; Vayer et al. 2019, ICML (fused).
    """
    first, second = cost if isinstance(cost, tuple) else (cost, cost)
    C1, C2 = _distances("x", x, first), _distances("y", y, second)
    if C1.dtype != C2.dtype:
        raise TypeError(f"x and y: expected costs of one dtype, got {C1.dtype} and {C2.dtype}")
    n, m, dtype = C1.shape[-1], C2.shape[-1], C1.dtype
    a, b = _inputs.weights("a", a, n, dtype), _inputs.weights("b", b, m, dtype)
    if (fused is None) != (cross is None):
        raise ValueError("fused and cross: expected both or neither")
    alpha = jnp.asarray(1 if fused is None else fused).astype(dtype)
    _inputs.require("fused", (alpha >= 0) & (alpha <= 1), f"a number in [0, 1], got {fused}")
    M = jnp.zeros((n, m), dtype) if cross is None else _inputs.cost("cross", check.array("cross", cross, n, m))
    if starts < 1 or (starts > 2 and key is None):
        raise ValueError(f"starts: expected an integer >= 1, and a key for more than 2; got {starts}")
    noise = jnp.zeros((0, n, m), dtype) if key is None else jax.random.normal(key, (max(starts - 2, 0), n, m), dtype)
    return _solve(
        C1, C2, a, b, M, alpha, _inputs.scalar("epsilon", epsilon, dtype), noise, tolerance, starts, max_steps
    )


@partial(jax.jit, static_argnames="starts")
def _solve(C1, C2, a, b, M, alpha, epsilon, noise, tolerance, starts: int, max_steps: Any) -> GromovWasserstein:
    solver = partial(_solve_one, tolerance=tolerance, starts=starts, max_steps=max_steps)
    return _batch.over(solver, [C1, C2, a, b, M, alpha, epsilon, noise], [2, 2, 1, 1, 2, 0, 0, 3])


class _Energy(NamedTuple):
    """(1 − α) <M, P> + α E(P) for plans of marginals a and b, with its parts that no plan changes."""

    C1: Array
    C2: Array
    a: Array
    b: Array
    M: Array
    alpha: Array

    def constant(self) -> Array:
        """Σ C¹² a a + Σ C²² b b."""
        rows, columns = self.C1**2 * self.a * self.a[:, None], self.C2**2 * self.b * self.b[:, None]
        return jnp.sum(rows) + jnp.sum(columns)

    def moved(self, P: Array) -> Array:
        """C¹ P C²."""
        return elementwise.einsum("ij,jk->ik", elementwise.einsum("ij,jk->ik", self.C1, P), self.C2)

    def value(self, P: Array, moved: Array) -> Array:
        """The energy of a plan P, given C¹ P C²."""
        structure = self.constant() - 2 * jnp.sum(P * moved)
        return (1 - self.alpha) * jnp.sum(self.M * P) + self.alpha * structure

    def slope(self, moved: Array) -> Array:
        """Its derivative in P, up to functions of i or of j alone, which no plan feels."""
        return (1 - self.alpha) * self.M - 4 * self.alpha * moved


class _State(NamedTuple):
    log_ratio: Array  # log(P / a bᵀ)
    moved: Array  # C¹ P C²
    f: Array
    g: Array
    objective: Array
    error: Array
    change: Array
    penalty: Array
    steps: Array
    reference: Array  # the objective at the last look at progress
    settled: Array


def _solve_one(
    C1: Array,
    C2: Array,
    a: Array,
    b: Array,
    M: Array,
    alpha: Array,
    epsilon: Array,
    noise: Array,
    *,
    tolerance,
    starts,
    max_steps,
) -> GromovWasserstein:
    live = _Energy(C1, C2, a, b, M, alpha)
    frozen, eps = jax.lax.stop_gradient((live, epsilon))
    first = _starts(frozen, eps, jax.lax.stop_gradient(noise), starts)
    ends = jax.vmap(partial(_descend, frozen, eps, tolerance=tolerance, max_steps=max_steps))(first)
    best = jax.tree.map(lambda x: x[jnp.argmin(jnp.where(jnp.isnan(ends.objective), jnp.inf, ends.objective))], ends)
    P = _plan(frozen, best.log_ratio)
    value = live.value(P, live.moved(P))
    objective = value + epsilon * jnp.sum(P * best.log_ratio)
    return GromovWasserstein(P, best.f, best.g, value, objective, best.error, best.change, best.steps, best.settled)


def _descend(energy: _Energy, epsilon: Array, log_ratio: Array, *, tolerance: Any, max_steps: Any) -> _State:
    spread = jnp.ptp(energy.C1) * jnp.ptp(energy.C2)
    enough = energy.alpha * spread  # λ KL(P | P') with this λ bounds what linearising E leaves out (Pinsker)
    resolution = 8 * float(jnp.finfo(epsilon.dtype).eps) * (energy.constant() + jnp.max(jnp.abs(energy.M)))

    def advance(state):
        slope = energy.slope(state.moved)
        penalty = jnp.maximum(state.penalty, _SOFTEST * jnp.ptp(slope) - epsilon)
        softness = epsilon + penalty
        f, g, log_ratio = _coupled(energy, slope - penalty * state.log_ratio, softness, tolerance / 10, state.g)
        P = _plan(energy, log_ratio)
        moved, short = energy.moved(P), energy.b - jnp.sum(P, 0)
        error = jnp.sum(jnp.abs(jnp.sum(P, 1) - energy.a)) + jnp.sum(jnp.abs(short))
        # What the columns still lack is charged at its price g: plans that are not quite feasible look no cheaper.
        objective = energy.value(P, moved) + epsilon * jnp.sum(P * log_ratio) + jnp.sum(g * short)
        change = jnp.sum(jnp.abs(P - _plan(energy, state.log_ratio))) * (softness / epsilon)
        better = objective <= state.objective + resolution
        relaxed = jnp.where(state.penalty > enough / 64, state.penalty / 2, 0)
        tightened = jnp.clip(2 * state.penalty, enough / 64, 2 * enough)
        penalty = jnp.where(better, relaxed, tightened)
        moved_on = state._replace(
            log_ratio=log_ratio, moved=moved, f=f, g=g, objective=objective, error=error, change=change
        )
        state = jax.tree.map(lambda new, old: jnp.where(better, new, old), moved_on, state)
        steps = state.steps + 1
        checked = steps % _WINDOW == 0
        gain = state.reference - state.objective
        settled = (change <= tolerance) | (checked & (gain <= 0.1 * tolerance * jnp.abs(state.objective)))
        settled = settled & (state.error <= tolerance)
        reference = jnp.where(checked, state.objective, state.reference)
        return state._replace(penalty=penalty, steps=steps, reference=reference, settled=settled)

    def unfinished(state):
        return ~state.settled & (state.steps < max_steps)

    moved = energy.moved(_plan(energy, log_ratio))
    endless, zero = jnp.full_like(epsilon, jnp.inf), jnp.zeros_like(epsilon)
    f, g = jnp.zeros_like(energy.a), jnp.zeros_like(energy.b)
    first = _State(log_ratio, moved, f, g, endless, endless, endless, zero, jnp.int32(0), endless, jnp.bool_(False))
    return jax.lax.while_loop(unfinished, advance, first)


def _plan(energy: _Energy, log_ratio: Array) -> Array:
    return energy.a[:, None] * energy.b * jnp.exp(log_ratio)


def _starts(energy: _Energy, epsilon: Array, noise: Array, starts: int) -> Array:
    """log(P / a bᵀ) of `starts` couplings: alike profiles of distances, then a bᵀ, then random ones."""
    levels = (jnp.arange(_QUANTILES, dtype=epsilon.dtype) + 0.5) / _QUANTILES
    profiles = [_profiles(C, w, levels) for C, w in ((energy.C1, energy.a), (energy.C2, energy.b))]
    difference = (profiles[0][:, None, :] - profiles[1][None, :, :]) ** 2
    alike = (1 - energy.alpha) * energy.M + energy.alpha * jnp.mean(difference, axis=-1)
    guesses = jnp.concatenate([alike[None], jnp.zeros_like(alike)[None], noise * epsilon])[:starts]

    def coupled(guess):
        softness = jnp.maximum(epsilon, _SOFTEST * jnp.ptp(guess))
        return _coupled(energy, guess, softness, 0.01, jnp.zeros_like(energy.b))[2]

    return jax.vmap(coupled)(guesses)


def _coupled(energy: _Energy, C: Array, epsilon: Array, tolerance: Any, g: Array) -> tuple[Array, Array, Array]:
    """f, g and log(P / a bᵀ) of the entropic problem with cost C, iterated from g."""
    log_a, log_b = smooth.log(energy.a), smooth.log(energy.b)
    found = _dense.solve(C, log_a, log_b, epsilon, g, tolerance, _INNER_STEPS)
    return found.f, found.g, (found.f[:, None] + found.g - C) / epsilon


def _profiles(C: Array, weights: Array, levels: Array) -> Array:
    """(n, levels): quantiles of the distances from each point to all others."""

    def one(row):
        order = jnp.argsort(row)
        sizes = weights[order]
        return jnp.interp(levels, jnp.cumsum(sizes) - sizes / 2, row[order])

    return jax.vmap(one)(C)


def _distances(name: str, x: Points, cost: Any) -> Array:
    record_of = costs.SquaredEuclidean() if cost is None else costs.wrap(cost)
    if x is None and not isinstance(record_of, costs.Precomputed):
        raise ValueError(f"{name}: expected points, or None with costs.Precomputed")
    C = _inputs.cost(name, record_of(_inputs.points(name, x), x))
    if C.shape[-1] != C.shape[-2]:
        raise ValueError(f"{name}: expected a square cost matrix, got {C.shape}")
    asymmetry = jnp.max(jnp.abs(C - jnp.swapaxes(C, -1, -2)), initial=0)
    allowed = 64 * float(jnp.finfo(C.dtype).eps) * jnp.max(jnp.abs(C), initial=0)
    _inputs.require(name, asymmetry <= allowed, "a symmetric cost between its points")
    return C


sys.modules[__name__].__class__ = _guard.FunctionInPOT
