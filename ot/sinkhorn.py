"""Entropic transport: min over plans P of <C, P> + ε KL(P | a b^T), by one call that picks its own method.

The plan is P_ij = a_i b_j exp((f_i + g_j − C_ij)/ε). The solver keeps a float32 kernel with exponents formed in
float64, lets ε fall to its value, thins large clouds first, and takes truncated Newton steps near the solution; above
2^27 pairs the kernel is never stored. Derivatives come from the solution (`_implicit`), not from the iteration.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lie import record
from ot import _guard, _implicit, _kernel, _pairs, _shards, _validate, costs


@record.register("f", "g", "f_low", "g_low", "value", "error", "steps", "converged", "pairs")
@dataclass(frozen=True)
class Potentials:
    """The solution of one problem, or of a batch of them, and the plan that it stands for.

    f (*batch, n), g (*batch, m): potentials in the unit of the cost, as sums f + f_low of two numbers: at ε = 0.001 of
    the mean cost, potentials rounded to float32 alone move the marginals by 1.5e-5. With both marginals hard they are
    unique up to a constant (f + t, g − t). value: the dual objective, a lower bound of the least
    <C, P> + ε KL(P | a b^T) (+ ρ_a KL(P 1 | a) + ρ_b KL(P^T 1 | b)), and equal to it at convergence. error: the L1
    violation of both marginals, summed, relative to the mass of the plan (of the optimality conditions, where marginals
    are soft). steps: products of the kernel with a vector; two are one iteration of Sinkhorn's. converged: whether
    error <= tolerance.
    """

    f: Float[Array, "*batch n"]
    g: Float[Array, "*batch m"]
    f_low: Float[Array, "*batch n"]
    g_low: Float[Array, "*batch m"]
    value: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]
    pairs: _pairs.Pairs

    def plan(self) -> Float[Array, "*batch n m"]:
        """P as a matrix."""
        return self._each(_plan)

    def apply(self, v: Float[Array, "..."]) -> Float[Array, "..."]:
        """P v for v (*batch, m) or (*batch, m, k), by blocks of rows: no n x m matrix is stored for large clouds."""
        v = jnp.asarray(v)
        batch = self.value.shape
        if v.ndim not in (1, 2) if not batch else v.ndim - len(batch) not in (1, 2):
            raise ValueError(f"v: expected shape (*batch, m) or (*batch, m, k) with batch {batch}, got {v.shape}")
        if v.shape[len(batch)] != self.g.shape[-1]:
            raise ValueError(f"v: expected {self.g.shape[-1]} rows, one for each point of y, got shape {v.shape}")
        return self._each(_apply, v)

    def transport_cost(self) -> Float[Array, "*batch"]:
        """<C, P>, without the entropy."""
        return self._each(_transport_cost)

    def barycentric_map(self) -> Float[Array, "*batch n d"]:
        """The mean of y under each row of the plan, Σ_j P_ij y_j / Σ_j P_ij: where x_i goes. Points of R^d only."""
        y = self.pairs.y
        if not isinstance(y, jax.Array) or self.pairs.cost.event_dimensions != 1:
            raise TypeError("barycentric_map: expected points that are vectors of R^d; others have no such mean")
        ones = jnp.ones_like(self.g)
        return self.apply(y) / self.apply(ones)[..., None]

    def sample_pairs(self, count: int, *, key: Array) -> tuple[Int[Array, "*batch count"], Int[Array, "*batch count"]]:
        """Indices (i, j) of `count` independent draws from the plan."""
        batch = self.value.shape
        keys = jax.random.split(key, batch) if batch else key
        return self._each(partial(_sample_pairs, count), keys)

    def _dual(self) -> _implicit.Dual:
        return _implicit.Dual(self.f, self.g, self.f_low, self.g_low)

    def _each(self, function: Any, *arguments: Any) -> Any:
        return self.pairs.over_batch(function, self.value.ndim)(self.pairs, self._dual(), *arguments)


def solve(
    x: Any,
    y: Any,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    cost: Any = costs.SquaredEuclidean(),  # noqa: B008 a frozen record
    epsilon: ArrayLike,
    tolerance: ArrayLike = 1e-3,
    max_steps: int = 100_000,
    mass_penalty: tuple[ArrayLike | None, ArrayLike | None] | None = None,
    initial: Potentials | tuple[ArrayLike, ArrayLike] | None = None,
) -> Potentials:
    """Entropic transport between weighted clouds x (*batch, n, *event) and y (*batch, m, *event).

    a (*batch, n), b (*batch, m): weights >= 0 with equal totals, uniform if None; zero is allowed, so clouds may be
    padded. cost: a record of `costs` or a function of two points. epsilon > 0, in the unit of the cost, may differ
    between the problems of a batch. tolerance: of `error`; a converged record holds it when the error is recomputed in
    float64 from f + f_low and g + g_low. mass_penalty=(ρ_a, ρ_b): soft marginals, ρ_a KL(P 1 | a) + ρ_b KL(P^T 1 | b)
    in place of constraints (Chizat et al. 2018); None or infinity for a hard one. initial: potentials to start from.

    A batch, of leading axes or by `jax.vmap`, is solved one problem after the other on CPU (jax >= 0.12, one device),
    in step elsewhere; each stops by itself. A cloud x whose rows lie on several devices (`jax.sharding`) is solved
    where it lies: each device keeps its rows of the kernel, and only vectors over y are summed between them. y is then
    needed whole on each.

    Differentiable in points, weights, arrays of the cost, ε and ρ to any order in both modes, by the optimality
    conditions; finite at coincident points, identical clouds and zero weights. Raises TypeError and ValueError that
    name the argument. Under jit, values cannot be looked at: then bad ones give `converged` False.
    """
    pairs, batch = _validate.problem(x, y, a, b, cost, epsilon, mass_penalty)
    if not batch and not isinstance(pairs.cost, costs.Precomputed | costs.Grid):
        pairs = replace(pairs, rows=_shards.of_rows(pairs.x, pairs.cost.event_dimensions))
    level, budget, fine = _validate.effort(tolerance, max_steps, pairs.a.dtype)
    method = _implicit.Method(fine, symmetric=False, weighted=a is not None or b is not None)
    solved = _implicit.solutions(method, len(batch), pairs, _start(initial, pairs), level, budget)
    f, g, f_low, g_low = solved.dual
    return Potentials(f, g, f_low, g_low, solved.value, solved.error, solved.steps, solved.converged, pairs)


def _start(initial: Any, pairs: _pairs.Pairs) -> tuple[Array, Array] | None:
    """(f, g) of `initial` for every problem of the batch."""
    if initial is None:
        return None
    if isinstance(initial, Potentials):
        initial = initial.f, initial.g
    if not isinstance(initial, tuple) or len(initial) != 2:
        raise TypeError(f"initial: expected Potentials or a pair (f, g), got {type(initial).__name__}")
    f, g = (jnp.asarray(p, pairs.a.dtype) for p in initial)
    for name, potential, weights in (("f", f, pairs.a), ("g", g, pairs.b)):
        if potential.shape[-1:] != weights.shape[-1:]:
            raise ValueError(f"initial: expected {name} of shape {weights.shape}, got {potential.shape}")
    return jnp.broadcast_to(f, pairs.a.shape), jnp.broadcast_to(g, pairs.b.shape)


def _plan(pairs, dual):
    kernel = jnp.exp(_implicit.exponent(pairs.x, pairs.y, pairs.cost, pairs.epsilon, dual))
    return pairs.a[:, None] * kernel * pairs.b


def _apply(pairs, dual, v):
    if isinstance(pairs.cost, costs.Grid):
        product = lambda v: pairs.a * _implicit.along_axes(pairs, dual, pairs.b * v)
        return product(v) if v.ndim == 1 else jax.vmap(product, 1, 1)(v)

    def of_block(x, a, f, f_low):
        block = _implicit.Dual(f, dual.g, f_low, dual.g_low)
        kernel = jnp.exp(_implicit.exponent(x, pairs.y, pairs.cost, pairs.epsilon, block))
        weighted = pairs.b.reshape(-1, *[1] * (v.ndim - 1)) * v
        rows = jnp.dot(kernel, weighted, precision=_kernel.HIGHEST)
        return a.reshape(-1, *[1] * (v.ndim - 1)) * rows, jnp.zeros((), a.dtype)

    return _implicit.over_rows(of_block, pairs, dual.f, dual.f_low)[0]


def _transport_cost(pairs, dual):
    if isinstance(pairs.cost, costs.Grid):  # <C, P> = −ε d/dt of the mass of exp((f + g − t C)/ε) at t = 1
        mass = lambda cost: jnp.sum(pairs.a * _implicit.along_axes(replace(pairs, cost=cost), dual, pairs.b))
        return -pairs.epsilon * jax.jvp(mass, (pairs.cost,), (pairs.cost,))[1]

    def of_block(x, a, f, f_low):
        block = _implicit.Dual(f, dual.g, f_low, dual.g_low)
        kernel = jnp.exp(_implicit.exponent(x, pairs.y, pairs.cost, pairs.epsilon, block))
        costs_of_rows = jnp.sum(kernel * pairs.cost(x, pairs.y) * pairs.b, axis=1)
        return a * costs_of_rows, jnp.zeros((), a.dtype)

    return jnp.sum(_implicit.over_rows(of_block, pairs, dual.f, dual.f_low)[0])


def _sample_pairs(count, pairs, dual, key):
    key_rows, key_columns = jax.random.split(key)
    of_rows = jnp.log(_apply(pairs, dual, jnp.ones_like(dual.g)))
    i = jax.random.categorical(key_rows, of_rows, shape=(count,))
    x = i if pairs.x is None else jax.tree.map(lambda leaf: leaf[i], pairs.x)
    chosen = _implicit.Dual(dual.f[i], dual.g, dual.f_low[i], dual.g_low)
    scores = _implicit.exponent(x, pairs.y, pairs.cost, pairs.epsilon, chosen) + jnp.log(pairs.b)
    return i, jax.random.categorical(key_columns, scores)


sys.modules[__name__].__class__ = _guard.FunctionInPOT
