"""Nonlinear least squares on groups: Levenberg–Marquardt and Powell's dogleg, sparse or dense, on the host or in jit.

Both minimise Σ_e ρ(|r_e|²) (no factor 1/2) over x exp(ξ). One step linearises at ξ = 0, solves (H + λ diag H) δ = −g
and judges x exp(δ) by the ratio of true to predicted decrease. diag H makes damping and radius independent of units.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.core import Tracer
from jax.flatten_util import ravel_pytree

from lie import check, smooth
from lie.optimizers import elements, factor_graph, normal_equations, robust
from lie.optimizers.factor_graph import Linearisation

Residual = Callable[..., Array] | Sequence[factor_graph.Factor]
Control = tuple[Array, Array]  # Levenberg–Marquardt: λ and its growth; dogleg: radius, unused


class Solution(NamedTuple):
    """What a solver returns; a pytree."""

    x: Any  # like the initial value
    value: Array  # Σ ρ(|r|²) at x
    error: Array  # decrease that the last step's model still promised, relative to the value
    steps: Array  # trial points
    converged: Array


class _State(NamedTuple):
    solution: Solution
    control: Control
    accepted: Array  # whether the last trial point was


class _Method(NamedTuple):
    """What the two methods do differently. Functions of module level, so that compiled code is kept by equality."""

    damping: Callable[[Control], Array]  # λ of the linear system
    shorten: Callable[..., tuple[Array, Array]]  # the step to try, and whether its small promise means convergence
    adapt: Callable[..., Control]
    keeps_direction: bool  # after a refused step the same linear system serves


def levenberg_marquardt(
    residual: Residual,
    x: elements.Parameters,
    groups: elements.Groups,
    *,
    loss: robust.Loss | None = None,
    damping: float = 1e-4,
    tolerance: float | None = None,
    max_steps: int = 100,
    linear_solver: str | None = None,
    cg_tolerance: float = 1e-6,
    cg_steps: int = 500,
) -> Solution:
    """Minimises Σ ρ(|r|²) from x by damped Gauss–Newton steps; quadratic convergence where the residual vanishes.

    residual: a function of all of x whose last axis is one residual vector (dense, for up to some hundred unknowns), or
        a list of `Factor` (sparse).
    groups: prefix pytree as in `riemannian`; with factors a group, or a dict of groups where x is a dict.
    loss: robust loss per residual vector of a dense problem; factors carry their own.
    damping: the first λ. Good steps divide it by up to 10, bad ones multiply it by 2, 4, 8, ...
    tolerance: converged when the model promises a decrease below tolerance · value (or below the rounding of x) while
        λ <= √eps. Default: eps of the dtype, all that the value can show. The distance to the optimum goes as its root.
    linear_solver: for factors. "direct": SciPy's sparse LU in float64, not under jit. "cg": block-Jacobi conjugate
        gradients, to relative residual `cg_tolerance` in at most `cg_steps`, under jit and vmap and on accelerators.
        None: "cg" while tracing, else "direct". Dense problems use Cholesky and are traceable.

    Gauge freedoms need no fixing, the damping carries them; a prior factor pins a node. No reverse-mode derivative.
    Raises ValueError for nodes, names or a solver that do not exist, TypeError for nodes that are not integers.
    Source: Marquardt 1963; Nielsen 1999 (damping); Nocedal & Wright 2006, section 10.3.
    """
    x, dtype = _checked(x)
    control = (jnp.asarray(damping, dtype), jnp.asarray(2, dtype))
    options = _options(x, dtype, tolerance, max_steps, linear_solver, cg_tolerance, cg_steps)
    return _solve(_LEVENBERG_MARQUARDT, control, residual, x, groups, loss, options)


def trust_region(
    residual: Residual,
    x: elements.Parameters,
    groups: elements.Groups,
    *,
    loss: robust.Loss | None = None,
    radius: float = float("inf"),
    tolerance: float | None = None,
    max_steps: int = 100,
    linear_solver: str | None = None,
    cg_tolerance: float = 1e-6,
    cg_steps: int = 500,
) -> Solution:
    """Minimises Σ ρ(|r|²) from x along Powell's dogleg: from the Cauchy point towards the Gauss–Newton step.

    The region is |δ| <= radius in the norm δᵀ diag(H) δ. A refused step costs no new linear system, so this needs fewer
    factorisations than `levenberg_marquardt` where the model is often wrong. Arguments, record and errors as there;
    converged when the full Gauss–Newton step fits the region and promises a decrease below tolerance · value.
    Source: Powell 1970; Nocedal & Wright 2006, chapter 4.
    """
    x, dtype = _checked(x)
    control = (jnp.asarray(radius, dtype), jnp.asarray(0, dtype))
    options = _options(x, dtype, tolerance, max_steps, linear_solver, cg_tolerance, cg_steps)
    return _solve(_DOGLEG, control, residual, x, groups, loss, options)


def _smallest_damping(like: Array) -> Array:
    # Small enough for fast convergence; large enough that rounding of g along a gauge, divided by this, is no step.
    # Relative to the value such steps promise eps²/λ: with a gauge `tolerance` reaches no further (1e-21 in float64).
    return jnp.asarray(float(jnp.finfo(like.dtype).eps) ** 0.5 / 100, like.dtype)


def _whole_step(linearisation: Linearisation, multiply: Any, direction: Array, control: Control) -> tuple[Array, Array]:
    return direction, control[0] <= float(jnp.finfo(direction.dtype).eps) ** 0.5


def _nielsen(linearisation: Linearisation, delta: Array, gain: Array, accepted: Array, control: Control) -> Control:
    damping, growth = control
    shrunk = jnp.maximum(damping * jnp.maximum(0.1, 1 - (2 * gain - 1) ** 3), _smallest_damping(damping))
    return jnp.where(accepted, shrunk, damping * growth), jnp.where(accepted, 2, 2 * growth).astype(growth.dtype)


def _dogleg(linearisation: Linearisation, multiply: Any, newton: Array, control: Control) -> tuple[Array, Array]:
    _, gradient, diagonal, *_ = linearisation
    steepest = -gradient / diagonal
    length = smooth.divide(-jnp.sum(gradient * steepest), jnp.sum(steepest * multiply(steepest)))
    cauchy = length * steepest
    full, first = _norm(newton, diagonal), _norm(cauchy, diagonal)
    radius = jnp.minimum(control[0], full)
    rest = newton - cauchy
    # |cauchy + t rest| = radius; the root in [0, 1], written so that nothing cancels.
    a, b = jnp.sum(diagonal * rest * rest), jnp.sum(diagonal * cauchy * rest)
    c = jnp.maximum(radius * radius - first * first, 0)
    t = smooth.divide(c, b + jnp.sqrt(jnp.maximum(b * b + a * c, 0)))
    bent = cauchy + jnp.minimum(t, 1) * rest
    inside = full <= control[0]
    delta = jnp.where(first >= radius, smooth.divide(radius, first) * cauchy, bent)
    return jnp.where(inside, newton, delta), inside


def _resize(linearisation: Linearisation, delta: Array, gain: Array, accepted: Array, control: Control) -> Control:
    radius, unused = control
    length = _norm(delta, linearisation.diagonal)
    grown = jnp.where((gain > 0.75) & (length > 0.99 * radius), 2 * radius, radius)
    return jnp.where(gain < 0.25, length / 4, grown), unused


def _norm(delta: Array, diagonal: Array) -> Array:
    return jnp.sqrt(jnp.sum(diagonal * delta * delta))


_LEVENBERG_MARQUARDT = _Method(lambda control: control[0], _whole_step, _nielsen, keeps_direction=False)
_DOGLEG = _Method(lambda control: _smallest_damping(control[0]), _dogleg, _resize, keeps_direction=True)


class _Options(NamedTuple):
    tolerance: float
    max_steps: int
    linear_solver: str
    cg_tolerance: float
    cg_steps: int


def _options(x, dtype, tolerance, max_steps, linear_solver, cg_tolerance, cg_steps) -> _Options:
    tracing = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(x))
    chosen = linear_solver or ("cg" if tracing else "direct")
    if chosen not in ("direct", "cg"):
        raise ValueError(f"linear_solver: expected 'direct', 'cg' or None, got {linear_solver!r}")
    if chosen == "direct" and tracing:
        raise ValueError("linear_solver: 'direct' runs SciPy and cannot be traced; use 'cg' under jit, vmap and grad")
    return _Options(
        float(jnp.finfo(dtype).eps) if tolerance is None else tolerance, max_steps, chosen, cg_tolerance, cg_steps
    )


def _checked(x: elements.Parameters) -> tuple[elements.Parameters, Any]:
    x = jax.tree.map(lambda leaf: check.array("x", leaf), x)
    return x, jax.tree.leaves(x)[0].dtype


def _solve(method, control, residual, x, groups, loss, options) -> Solution:
    leaves, structure = jax.tree.flatten(groups, is_leaf=elements.is_group)
    frozen = (tuple(leaves), structure)
    if callable(residual):
        return _iterate_dense(residual, frozen, method, options, loss, x, control)
    factors = list(residual)
    unknowns = factor_graph.columns(factors, x, groups)
    if options.linear_solver == "cg":
        return _iterate_sparse(frozen, method, options, factors, unknowns, x, control)
    return _iterate_on_host(frozen, method, options, factors, unknowns, x, control)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _iterate_dense(residual, frozen, method, options, loss, x, control):
    groups = _thaw(frozen)

    def linearise(x):
        return _dense_linearisation(residual, groups, loss, x)

    def solve(x, linearisation, damping):
        return normal_equations.dense(linearisation, damping)

    def value(x):
        r = jnp.atleast_1d(residual(x))
        return jnp.sum(factor_graph.cost(loss, jnp.sum(r * r, axis=-1)))

    size = jax.eval_shape(lambda x: ravel_pytree(elements.zero_tangents(x, groups))[0], x).shape[0]
    unknowns = [jnp.arange(size)[None]]
    return _iterate(groups, method, options, linearise, solve, value, unknowns, x, control)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _iterate_sparse(frozen, method, options, factors, unknowns, x, control):
    groups = _thaw(frozen)

    def linearise(x):
        return factor_graph.linearise(factors, x, groups, unknowns)

    def solve(x, linearisation, damping):
        return normal_equations.conjugate_gradients(
            factors, x, groups, unknowns, linearisation, damping, options.cg_tolerance, options.cg_steps
        )

    def value(x):
        return factor_graph.value(factors, x, groups)

    return _iterate(groups, method, options, linearise, solve, value, unknowns, x, control)


def _iterate(groups, method, options, linearise, solve, value, unknowns, x, control) -> Solution:
    def step(state):
        linearisation = linearise(state.solution.x)
        direction = solve(state.solution.x, linearisation, method.damping(state.control))
        return _advance(groups, method, options.tolerance, value, unknowns, linearisation, direction, state)

    return jax.lax.while_loop(lambda state: _unfinished(state, options), step, _start(x, value(x), control)).solution


def _iterate_on_host(frozen, method, options, factors, unknowns, x, control) -> Solution:
    state = _start(x, _value_jitted(frozen, factors, x), control)
    size = sum(variable.count * variable.dimension for variable in factor_graph.variables(x, _thaw(frozen)))
    solve = normal_equations.SparseDirect(unknowns, size)
    linearisation = direction = None
    while _unfinished(state, options):
        if linearisation is None or state.accepted:
            linearisation, direction = _linearise_jitted(frozen, factors, unknowns, state.solution.x), None
        if direction is None or not method.keeps_direction:
            direction = solve(linearisation, float(method.damping(state.control)))
        state = _advance_jitted(frozen, method, options.tolerance, factors, unknowns, linearisation, direction, state)
    return state.solution


@partial(jax.jit, static_argnums=0)
def _value_jitted(frozen, factors, x):
    return factor_graph.value(factors, x, _thaw(frozen))


@partial(jax.jit, static_argnums=0)
def _linearise_jitted(frozen, factors, unknowns, x):
    return factor_graph.linearise(factors, x, _thaw(frozen), unknowns)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _advance_jitted(frozen, method, tolerance, factors, unknowns, linearisation, direction, state):
    groups = _thaw(frozen)
    direction = direction.astype(linearisation.gradient.dtype)

    def value(x):
        return factor_graph.value(factors, x, groups)

    return _advance(groups, method, tolerance, value, unknowns, linearisation, direction, state)


def _unfinished(state: _State, options: _Options) -> Array:
    solution = state.solution
    return ~solution.converged & (solution.steps < options.max_steps) & jnp.isfinite(solution.value)


def _start(x, value, control) -> _State:
    unknown = jnp.full_like(value, jnp.inf)
    steps, no = jnp.zeros([], jnp.int32), jnp.zeros([], bool)
    return _State(Solution(x, value, unknown, steps, no), control, no)


def _advance(groups, method, tolerance, value, unknowns, linearisation, direction, state) -> _State:
    """Tries one step: keeps x or moves it, adapts the control, decides on convergence."""

    def multiply(v):
        return factor_graph.multiply(linearisation, unknowns, v)

    x, now, _, steps, _ = state.solution
    delta, trusted = method.shorten(linearisation, multiply, direction, state.control)
    promised = -jnp.sum(delta * (2 * linearisation.gradient + multiply(delta)))
    _, unravel = ravel_pytree(elements.zero_tangents(x, groups))
    trial = elements.retract(x, unravel(delta), groups)
    reached = value(trial)
    # Below the noise of summation the true decrease says nothing; the model is then believed unless the value grows.
    noise = 16 * float(jnp.finfo(now.dtype).eps) * now + linearisation.rounding
    measured = smooth.divide(now - reached, promised, fallback=1.0)
    gain = jnp.where((promised <= 4 * noise) & (reached <= now + noise), 1, measured).astype(now.dtype)
    accepted = gain > 1e-4  # false for NaN: a step out of the residual's domain is refused
    gain = jnp.where(accepted, gain, 0)
    error = smooth.divide(promised, jnp.maximum(now, linearisation.rounding))
    converged = trusted & (promised <= jnp.maximum(tolerance * now, linearisation.rounding))
    moved = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), trial, x)
    solution = Solution(moved, jnp.where(accepted, reached, now), error, steps + 1, converged)
    return _State(solution, method.adapt(linearisation, delta, gain, accepted, state.control), accepted)


def _dense_linearisation(residual, groups, loss, x) -> Linearisation:
    zero, unravel = ravel_pytree(elements.zero_tangents(x, groups))

    def along(xi):
        r = jnp.atleast_1d(residual(elements.retract(x, unravel(xi), groups)))
        r = r.reshape(-1, r.shape[-1])
        return r, r

    J, r = jax.jacfwd(along, has_aux=True)(zero)
    squared = jnp.sum(r * r, axis=-1)
    weight = jnp.ones_like(squared) if loss is None else loss.weight(squared)
    weighted = weight[:, None, None] * J
    block = jnp.einsum("emi,emj->ij", weighted, J, precision=jax.lax.Precision.HIGHEST)
    gradient, diagonal = jnp.sum(weighted * r[..., None], axis=(0, 1)), jnp.diagonal(block)
    rounding = factor_graph.rounding(x, jnp.sum(diagonal))
    total = jnp.sum(factor_graph.cost(loss, squared))
    return Linearisation(total, gradient, jnp.where(diagonal > 0, diagonal, 1), [block[None]], rounding)


def _thaw(frozen) -> elements.Groups:
    leaves, structure = frozen
    return jax.tree.unflatten(structure, leaves)
