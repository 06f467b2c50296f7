"""The exact Wasserstein distance between weighted clouds: an optimal plan with a certificate from the dual."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lie import record, smooth
from ot import _doubles, _inputs, _pairs, _validate, costs
from ot.wasserstein import _auction, _matching, _primal_dual

Points = Any


@record.register("value", "gap", "f", "g", "steps", "converged", "rows", "columns", "mass")
@dataclass(frozen=True)
class Exact:
    """An optimal plan and the proof: potentials with f_i + g_j <= C_ij, whose value bounds every plan's from below.

    value (*batch): Σ P C, to be differentiated. gap (*batch): (value − Σ a f − Σ b g)/|value|, of float64 potentials.
    f (*batch, n), g (*batch, m): Kantorovich potentials, Σ a f = Σ b g. The plan as edges: mass (*batch, edges) at
    (rows, columns). steps: rounds of pricing (host), of bidding or of PDHG (jit). converged: gap <= tolerance.
    """

    value: Float[Array, "..."]
    gap: Float[Array, "..."]
    f: Float[Array, "... n"]
    g: Float[Array, "... m"]
    steps: Int[Array, "..."]
    converged: Bool[Array, "..."]
    rows: Int[Array, "... edges"]
    columns: Int[Array, "... edges"]
    mass: Float[Array, "... edges"]

    def plan(self) -> Float[Array, "*batch n m"]:
        """The plan as a matrix with row sums a and column sums b."""
        shape = (self.f.shape[-1], self.g.shape[-1])
        dense = lambda i, j, mass: jnp.zeros(shape, mass.dtype).at[i, j].add(mass)
        for _ in self.value.shape:
            dense = jax.vmap(dense)
        return dense(self.rows, self.columns, self.mass)


def exact(
    x: Points,
    y: Points,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    cost: Any = costs.SquaredEuclidean(),  # noqa: B008  a frozen record
    tolerance: float = 1e-6,
    max_steps: int | None = None,
) -> Exact:
    """min Σ P_ij C_ij over plans P >= 0 with marginals a and b: W_p^p where the cost is a p-th power of a distance.

    x (*batch, n, *event), y (*batch, m, *event); a, b uniform if None, else of equal totals; `cost` a record of `costs`
    or a function of two points. tolerance: of the relative duality gap, a bound on the relative error of `value`.

    Outside jit, on the host in float64: SciPy's assignment on costs reduced by entropic potentials if n = m with
    uniform weights, its simplex method (HiGHS) on few edges for other weights; then every edge is priced, and those
    that improve are added, until none does: the gap ends at rounding, 1e-14. max_steps (50) bounds these rounds.
    Under jit, vmap or with traced arguments: an auction with falling ε if n = m and no weights are given, else a
    primal-dual gradient method, whose plan is rounded to the marginals; max_steps (100 000) bounds the rounds.

    Derivatives of `value` by the envelope theorem, in points, arrays of the cost and weights (up to a constant, as the
    totals stay equal): exact where the plan is unique. The other fields are constants.
    Raises TypeError and ValueError that name the argument; under jit, bad values give `converged` False.
    """
    if isinstance(cost, costs.Grid) and x is None and y is None:
        cost = costs.Precomputed(cost())
    problem, batch = _validate.problem(x, y, a, b, cost, jnp.ones(()), None)  # ε is not used
    uniform = a is None and b is None and problem.a.shape[-1] == problem.b.shape[-1]
    fixed = jax.lax.stop_gradient(problem)
    if _inputs.concrete(fixed):
        plan = _on_host(fixed, batch, float(tolerance), 50 if max_steps is None else max_steps)
    else:
        steps = jnp.asarray(100_000 if max_steps is None else max_steps, jnp.int32)
        plan = _traced(fixed, jnp.asarray(tolerance, problem.a.dtype), steps, uniform=uniform, axes=len(batch))
    value, f, g, gap, steps, converged, rows, columns, mass = plan
    value = value + _change(problem, f, g, rows, columns, mass, axes=len(batch))
    return Exact(value, gap, f, g, steps, converged, rows, columns, mass)


def _on_host(problem: _pairs.Pairs, batch: tuple[int, ...], tolerance: float, max_rounds: int) -> tuple:
    dtype = problem.a.dtype
    found = [_solve_one(_at(problem, index), tolerance, max_rounds) for index in np.ndindex(*batch)]
    edges = max(len(one[-1]) for one in found)
    found = [(*one[:-3], *(np.pad(e, (0, edges - len(e))) for e in one[-3:])) for one in found]
    types = (dtype, dtype, dtype, dtype, jnp.int32, bool, jnp.int32, jnp.int32, dtype)
    stacked = (np.stack(field).reshape((*batch, *np.shape(field[0]))) for field in zip(*found, strict=True))
    return tuple(jnp.asarray(field, kind) for field, kind in zip(stacked, types, strict=True))


def _solve_one(problem: _pairs.Pairs, tolerance: float, max_rounds: int) -> tuple:
    with jax.enable_x64(True):
        C = np.asarray(_wide_matrix(problem))
    if not np.isfinite(C).all():
        raise ValueError("cost: expected finite costs, got NaN or infinity for some pair of points x and y")
    a, b = (np.asarray(weights, np.float64) for weights in (problem.a, problem.b))
    plan = _matching.solve(C, a, b, max_rounds)
    shift = (a @ plan.f - b @ plan.g) / (a.sum() + b.sum())
    rounding = 1e-14 * np.abs(C).mean() * a.sum()
    gap = 0.0 if abs(plan.gap) <= rounding else plan.gap / max(abs(plan.value), rounding)
    return (plan.value, plan.f - shift, plan.g + shift, gap, plan.rounds, gap <= tolerance, plan.i, plan.j, plan.mass)


@jax.jit
def _wide_matrix(problem: _pairs.Pairs) -> Array:
    return problem.wide().matrix()


def _at(problem: _pairs.Pairs, index: tuple[int, ...]) -> _pairs.Pairs:
    """One problem of a batch."""
    if not index:
        return problem
    shared = _shared(problem)
    take = lambda path, leaf: leaf if path[0] in shared else leaf[index]
    return jax.tree_util.tree_map_with_path(take, problem)


def _shared(problem: _pairs.Pairs) -> list[Any]:
    """What all problems of a batch have in common: a cost's arrays, or indices into a matrix of each problem's own."""
    names = ["x", "y"] if isinstance(problem.cost, costs.Precomputed) else ["cost"]
    return [jax.tree_util.GetAttrKey(name) for name in names]


@partial(jax.jit, static_argnames=("uniform", "axes"))
def _traced(problem, tolerance, max_steps, uniform, axes):
    in_doubles = _doubles.inside(partial(_traced_one, uniform))
    return _over_batch(lambda problem: in_doubles(problem, tolerance, max_steps), axes, problem)(problem)


def _traced_one(uniform: bool, problem: _pairs.Pairs, tolerance: Array, max_steps: Array) -> tuple:
    dtype = problem.a.dtype
    wide = problem.wide()
    C, (a, b) = wide.matrix(), (wide.a, wide.b)
    tolerance = tolerance.astype(jnp.float64)
    if uniform:
        partner, g, done, steps = _auction.assign(C, tolerance, max_steps)
        rows, columns, mass = jnp.arange(len(a), dtype=jnp.int32), partner, a
    else:
        rows, columns = (jnp.asarray(e.ravel(), jnp.int32) for e in np.indices(C.shape))
        mass, g, done, steps = _by_gradients(C, a, b, tolerance, max_steps)
    f = jnp.min(C - g, axis=1)
    value = jnp.sum(mass * C[rows, columns])
    excess = value - jnp.sum(a * f) - jnp.sum(b * g)
    rounding = 1e-14 * jnp.mean(jnp.abs(C)) * jnp.sum(a)
    gap = jnp.where(jnp.abs(excess) <= rounding, 0, smooth.divide(excess, jnp.abs(value), jnp.inf))
    gap = jnp.where(jnp.isfinite(value), gap, jnp.inf)
    meets = jnp.isclose(jnp.sum(a), jnp.sum(b), rtol=1e-5) & jnp.all(a >= 0) & jnp.all(b >= 0)
    shift = smooth.divide(jnp.sum(a * f) - jnp.sum(b * g), jnp.sum(a) + jnp.sum(b))
    converged = done & meets & (gap <= tolerance)
    value, f, g, gap, mass = (v.astype(dtype) for v in (value, f - shift, g + shift, gap, mass))
    return value, f, g, gap, steps.astype(jnp.int32), converged, rows, columns.astype(jnp.int32), mass


def _by_gradients(C: Array, a: Array, b: Array, tolerance: Array, max_steps: Array) -> tuple[Array, ...]:
    """(mass of all edges, g, finite, steps) by PDHG on the transport program in units where C and the masses are 1."""
    n, m = C.shape
    size = jnp.mean(jnp.abs(C))
    size = jnp.where(size > 0, size, 1)
    total = jnp.sum(a)
    program = _primal_dual.Problem(
        lambda P: jnp.concatenate([jnp.sum(P, axis=1), jnp.sum(P, axis=0)]),
        lambda y: y[:n, None] + y[n:],
        jnp.sqrt(jnp.asarray(n + m, C.dtype)),
        C / size,
        jnp.concatenate([a, b * (total / jnp.sum(b))]) / total,
        jnp.zeros(n + m, bool),
        jnp.zeros_like(C),
        jnp.full_like(C, jnp.inf),
    )
    steps = jnp.where(jnp.isfinite(size) & (total > 0), max_steps, 0)
    start = program.q[:n, None] * program.q[n:]
    P, y, steps = _primal_dual.minimise(program, start, jnp.zeros(n + m, C.dtype), tolerance / 8, steps)
    target_a, target_b = program.q[:n], program.q[n:]
    P = P * jnp.minimum(1, smooth.divide(target_a, jnp.sum(P, axis=1), 1.0))[:, None]
    P = P * jnp.minimum(1, smooth.divide(target_b, jnp.sum(P, axis=0), 1.0))
    left_a, left_b = target_a - jnp.sum(P, axis=1), target_b - jnp.sum(P, axis=0)
    P = P + smooth.divide(left_a[:, None] * left_b, jnp.sum(left_a))  # Altschuler et al. 2017, algorithm 2
    f = jnp.min(C - size * y[n:], axis=1)
    return total * P.ravel(), jnp.min(C - f[:, None], axis=0), jnp.isfinite(size), steps


@partial(jax.jit, static_argnames="axes")
def _change(problem, f, g, rows, columns, mass, axes):
    """0, with the derivatives of Σ P C on the plan's edges and the potentials as those in the weights: all constants.

    The value itself was summed in float64, which derivatives cannot pass where the caller has x64 switched off.
    """

    def one(problem, f, g, rows, columns, mass):
        change = jnp.sum(mass * _since(_edge_costs(problem, rows, columns)))
        return change + jnp.sum(f * _since(problem.a)) + jnp.sum(g * _since(problem.b))

    return _over_batch(one, axes, problem)(problem, f, g, rows, columns, mass)


def _since(x: Array) -> Array:
    return x - jax.lax.stop_gradient(x)


def _edge_costs(problem: _pairs.Pairs, i: Array, j: Array) -> Array:
    """C_ij for each edge, without the matrix."""
    if isinstance(problem.cost, costs.Precomputed):
        rows, columns = (k if at is None else jnp.asarray(at)[k] for at, k in ((problem.x, i), (problem.y, j)))
        return problem.cost.C[rows, columns]
    x, y = jax.tree.map(lambda leaf: leaf[i], problem.x), jax.tree.map(lambda leaf: leaf[j], problem.y)
    cloud = lambda point: jax.tree.map(lambda leaf: leaf[None], point)
    return jax.vmap(lambda x, y: problem.cost(cloud(x), cloud(y))[0, 0])(x, y)


def _over_batch(function: Any, axes: int, problem: _pairs.Pairs) -> Any:
    """`function(problem, ...)` over the leading axes of what is not shared."""
    shared = _shared(problem)
    mapped = jax.tree_util.tree_map_with_path(lambda path, _: None if path[0] in shared else 0, problem)
    for _ in range(axes):
        function = _mapped(function, mapped)
    return function


def _mapped(function: Any, mapped: Any) -> Any:
    return lambda problem, *rest: jax.vmap(function, (mapped, *(0 for _ in rest)))(problem, *rest)
