"""General linear programs by the restarted primal-dual hybrid gradient method, with residuals that prove the result."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lie import check, elementwise, smooth
from ot import _inputs
from ot.wasserstein import _primal_dual

_RESCALINGS = 10  # rounds of Ruiz's scaling; the norms of rows and columns then agree to a few per cent
_SQUARINGS = 60  # steps of the power iteration for |K|


class LinearProgram(NamedTuple):
    """A solution with its KKT residuals, each relative to one plus the size of its terms.

    x minimises c·x; `multipliers` of A x = b and `at_least_multipliers` >= 0 of G x >= h: c − Aᵀ y − Gᵀ z is the
    reduced cost, >= 0 where x is at its lower bound. error: the largest of primal_residual, dual_residual and gap.
    """

    x: Float[Array, "n"]
    multipliers: Float[Array, "equations"]
    at_least_multipliers: Float[Array, "inequalities"]
    value: Float[Array, ""]
    primal_residual: Float[Array, ""]
    dual_residual: Float[Array, ""]
    gap: Float[Array, ""]
    error: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


def linear_program(
    c: Float[ArrayLike, "n"],
    A: Float[ArrayLike, "equations n"] | None = None,
    b: Float[ArrayLike, "equations"] | None = None,
    G: Float[ArrayLike, "inequalities n"] | None = None,
    h: Float[ArrayLike, "inequalities"] | None = None,
    *,
    lower: ArrayLike = 0.0,
    upper: ArrayLike = jnp.inf,
    tolerance: float = 1e-6,
    max_steps: int = 200_000,
) -> LinearProgram:
    """min c·x over A x = b, G x >= h and lower <= x <= upper (numbers or (n,), infinite where there is no bound).

    PDHG with averaging, adaptive restarts and primal weight (PDLP), after Ruiz and Pock-Chambolle scaling, in float64
    whatever the dtype; works under jit and vmap. The residuals are those of the program as given. An infeasible or
    unbounded program ends with `converged` False. Not differentiable: x jumps between vertices.
    Raises TypeError and ValueError that name the argument for shapes, dtypes and, outside jit, values.
    Source: Applegate et al. 2021, Practical large-scale linear programming using primal-dual hybrid gradient.
    """
    c = check.array("c", c, None)
    n, dtype = c.shape[0], c.dtype
    A, b = _constraints("A", A, "b", b, n, dtype)
    G, h = _constraints("G", G, "h", h, n, dtype)
    bounds = []
    for name, bound in (("lower", lower), ("upper", upper)):
        bound = jnp.asarray(bound, dtype)
        if bound.shape not in ((), (n,)):
            raise ValueError(f"{name}: expected a number or shape ({n},), got {bound.shape}")
        bounds.append(jnp.broadcast_to(bound, (n,)))
    for name, value in (("c", c), ("A", A), ("b", b), ("G", G), ("h", h)):
        if _inputs.concrete(value) and not np.isfinite(np.asarray(value)).all():
            raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if _inputs.concrete(*bounds) and not (np.asarray(bounds[0]) <= np.asarray(bounds[1])).all():
        raise ValueError("lower and upper: expected lower <= upper, and no NaN")
    return _solve(c, A, b, G, h, *bounds, jnp.asarray(tolerance, dtype), jnp.asarray(max_steps, jnp.int32))


def _constraints(
    name: str, matrix: ArrayLike | None, side: str, right: ArrayLike | None, n: int, dtype: jnp.dtype
) -> tuple[Array, Array]:
    if (matrix is None) != (right is None):
        raise ValueError(f"{name} and {side}: expected both or neither")
    if matrix is None or right is None:
        return jnp.zeros((0, n), dtype), jnp.zeros(0, dtype)
    matrix = check.array(name, matrix, None, n)
    right = check.array(side, right, matrix.shape[0])
    check.same_dtype(c=jnp.zeros(0, dtype), **{name: matrix, side: right})
    return matrix, right


@jax.jit
def _solve(c, A, b, G, h, lower, upper, tolerance, max_steps):
    dtype, equations = c.dtype, b.shape[0]
    with jax.enable_x64(True):
        c, A, b, G, h, lower, upper, tolerance = (
            v.astype(jnp.float64) for v in (c, A, b, G, h, lower, upper, tolerance)
        )
        K, q = jnp.concatenate([A, G]), jnp.concatenate([b, h])
        at_least = jnp.concatenate([jnp.zeros(equations, bool), jnp.ones(h.shape[0], bool)])
        rows, columns = _scaling(K)
        size_c, size_q = (jnp.where(s > 0, s, 1) for s in (_largest(c * columns), _largest(q * rows)))
        scaled = rows[:, None] * K * columns
        units = columns * size_q  # x = units x', so that c' and q' are of order one too
        program = _program(
            scaled, c * columns / size_c, q * rows / size_q, at_least, lower / units, upper / units, _norm_of(scaled)
        )
        given = _program(K, c, q, at_least, lower, upper, jnp.ones(()))
        x, y = jnp.clip(jnp.zeros_like(c), program.lower, program.upper), jnp.zeros_like(q)
        steps = jnp.where(jnp.all(jnp.isfinite(scaled)), max_steps, 0)

        def tighter(state):
            x, y, level, used, _ = state
            x, y, more = _primal_dual.minimise(program, x, y, level, steps - used)
            return x, y, level / 8, used + more, _primal_dual.residuals(given, units * x, rows * size_c * y).largest()

        def unsettled(state):
            return ~(state[4] <= tolerance) & (state[3] < steps)

        start = (x, y, tolerance, jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, jnp.float64))
        x, y, _, used, error = jax.lax.while_loop(unsettled, tighter, start)
        x, y = units * x, rows * size_c * y
        found = _primal_dual.residuals(given, x, y)
        value = jnp.sum(c * x)
        converged = error <= tolerance
        x, y, value, error, *parts = (v.astype(dtype) for v in (x, y, value, error, *found))
    return LinearProgram(x, y[:equations], y[equations:], value, *parts, error, used, converged)


def _program(K, c, q, at_least, lower, upper, norm) -> _primal_dual.Problem:
    product, transposed = partial(elementwise.einsum, "ij,j->i", K), partial(elementwise.einsum, "ij,i->j", K)
    return _primal_dual.Problem(product, transposed, norm, c, q, at_least, lower, upper)


def _scaling(K: Array) -> tuple[Array, Array]:
    """Positive (rows, columns) that bring the entries of every row and column of K to order one; 1 where all are 0."""
    rows, columns = jnp.ones(K.shape[0], K.dtype), jnp.ones(K.shape[1], K.dtype)
    size = jnp.abs(K)
    for _ in range(_RESCALINGS):
        scaled = rows[:, None] * size * columns
        rows, columns = rows * _root(jnp.max(scaled, axis=1, initial=0)), columns * _root(jnp.max(scaled, 0, initial=0))
    scaled = rows[:, None] * size * columns
    return rows * _root(jnp.sum(scaled, axis=1)), columns * _root(jnp.sum(scaled, axis=0))


def _root(x: Array) -> Array:
    return 1 / jnp.sqrt(jnp.where(x > 0, x, 1))


def _norm_of(K: Array) -> Array:
    """|K| to a few per mille from above: after this scaling it is at most 1, and the power iteration seldom needed.

    Rows and columns whose absolute sums are all 1 would give |K| <= 1; the iteration finds what the scaling left.
    """
    v = jnp.ones(K.shape[1], K.dtype)

    def step(_, v):
        w = elementwise.einsum("ij,i->j", K, elementwise.einsum("ij,j->i", K, v))
        return smooth.divide(w, jnp.sqrt(jnp.sum(w * w)))

    v = jax.lax.fori_loop(0, _SQUARINGS, step, v)
    image = elementwise.einsum("ij,j->i", K, v)
    bound = jnp.sqrt(jnp.max(jnp.sum(jnp.abs(K), 0), initial=0) * jnp.max(jnp.sum(jnp.abs(K), 1), initial=0))
    found = 1.05 * jnp.sqrt(jnp.sum(image * image))
    norm = jnp.where(found > 0, jnp.minimum(found, bound), bound)
    return jnp.where(norm > 0, norm, 1)


def _largest(x: Array) -> Array:
    return jnp.max(jnp.abs(x), initial=0)
