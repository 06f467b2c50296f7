"""The solution of one problem with its derivatives, which come from the optimality conditions, not from the iteration.

The value: at the optimum its derivative is the partial one of the dual objective, since the potentials' own motion
counts for nothing. An error δ of the potentials enters the gradient to first order, so they first take one Newton step,
which squares it; the step is a constant to further derivatives. The potentials: their derivative solves the linearised
conditions, one symmetric system by conjugate gradients. Both rules call the solution again, so they hold to any order,
forward and reverse. Memory is that of blocks of rows, not n x m, where the cloud is large.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lie import smooth
from ot import _ascent, _continuation, _cores, _doubles, _grid, _kernel, _pairs, _shards, _symmetric, _validate, costs

_BLOCK_ENTRIES = 2**19
_REFINING_PRODUCTS = 100
_SYSTEM_PRODUCTS = 1000


class Dual(NamedTuple):
    """Potentials as sums of two numbers of the input's type: f + f_low is the potential."""

    f: Float[Array, "n"]
    g: Float[Array, "m"]
    f_low: Float[Array, "n"]
    g_low: Float[Array, "m"]


class Solution(NamedTuple):
    """What the solver returns for one problem."""

    dual: Dual
    value: Float[Array, ""]
    error: Float[Array, ""]
    steps: Int[Array, ""]
    converged: Bool[Array, ""]


class Method(NamedTuple):
    """What is known of the problem before it runs."""

    fine: bool  # the tolerance asks for float64 kernels at the end
    symmetric: bool  # a cloud against itself
    weighted: bool  # some points may have no weight


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def solution(
    method: Method, pairs: _pairs.Pairs, initial: tuple[Array, Array] | None, tolerance: Array, max_steps: Array
) -> Solution:
    """Solve from `initial` potentials, or cold."""
    return _doubles.inside(partial(_solution, method))(pairs, initial, tolerance, max_steps)


def _solution(
    method: Method, pairs: _pairs.Pairs, initial: tuple[Array, Array] | None, tolerance: Array, max_steps: Array
) -> Solution:
    dtype = pairs.a.dtype
    descend = _symmetric.descend if method.symmetric else _continuation.descend
    narrow = _kernel.tolerated(pairs, jnp.float32, tolerance) is not None  # most rounds then cost little to start
    problem, tolerance, budget = pairs if narrow else pairs.kept(), tolerance.astype(jnp.float64), max_steps // 2
    if initial is not None:
        f, g = _pairs.astype(initial, jnp.float64)
        state = _continuation.start(f, g, problem.wide().epsilon)
    elif method.symmetric:
        nothing = jnp.zeros_like(problem.wide().a)
        state = _continuation.start(nothing, nothing, problem.wide().epsilon)
    else:
        state, _ = _continuation.cold(problem, budget, jnp.float32)
    state = descend(
        problem, state, jnp.maximum(tolerance, _validate.FINE) if method.fine else tolerance, budget, jnp.float32
    )
    if method.fine:
        state = descend(problem, _continuation.renewed(state), tolerance, budget, jnp.float64)
    if method.weighted:
        state = _continuation.completed(problem, state)
    value = _continuation.value(problem, state)
    error, value = state.error.astype(dtype), value.astype(dtype)
    return Solution(split(state.f, state.g, dtype), value, error, 2 * state.sweeps, state.done)


@solution.defjvp
def _solution_jvp(method, primals, tangents):
    pairs, motion = primals[0], tangents[0]
    solved = solution(method, *primals)
    near = jax.tree.map(jnp.add, solved.dual, _constant(_newton_step(pairs, solved.dual)))
    _, value_dot = jax.jvp(lambda pairs: objective(pairs, near), (pairs,), (motion,))
    f_dot, g_dot = _potentials_dot(pairs, near, motion)
    still = jnp.zeros_like
    dual_dot = Dual(f_dot, g_dot, still(f_dot), still(g_dot))
    discrete: Any = np.zeros(solved.steps.shape, jax.dtypes.float0)
    return solved, Solution(dual_dot, value_dot, still(solved.error), discrete, discrete)


def solutions(
    method: Method, axes: int, pairs: _pairs.Pairs, initial: Any, tolerance: ArrayLike, max_steps: ArrayLike
) -> Solution:
    """`solution` of each problem in a batch with `axes` leading axes."""
    with jax.enable_x64(True):  # here too: a caller's vmap applies its rules to the program while it is called
        return _compiled(method, axes, pairs, initial, tolerance, max_steps)


@partial(jax.jit, static_argnames=("method", "axes"))
def _compiled(method, axes, pairs, initial, tolerance, max_steps):
    one = lambda pairs, initial: solution(method, pairs, initial, tolerance, max_steps)
    return pairs.over_batch(one, axes)(pairs, initial)


def split(f: Array, g: Array, dtype: Any) -> Dual:
    """Potentials in float64 as two numbers each."""
    high = f.astype(dtype), g.astype(dtype)
    low = ((p - h.astype(p.dtype)).astype(dtype) for p, h in zip((f, g), high, strict=True))
    return Dual(*high, *low)


def joined(dual: Dual) -> tuple[Array, Array]:
    """Potentials in float64; call it where float64 is enabled."""
    f, g, f_low, g_low = _pairs.astype(dual, jnp.float64)
    return f + f_low, g + g_low


def objective(pairs: _pairs.Pairs, dual: Dual) -> Float[Array, ""]:
    """The dual objective Σ a φ(f) + Σ b φ(g) − ε (Σ P − Σ a Σ b)."""
    rows, _ = sums(pairs, dual)
    mass = jnp.sum(pairs.a * rows)
    return pairs.gain(dual.f, dual.g) - pairs.epsilon * (mass - jnp.sum(pairs.a) * jnp.sum(pairs.b))


def sums(pairs: _pairs.Pairs, dual: Dual) -> tuple[Float[Array, "n"], Float[Array, "m"]]:
    """Σ_j b_j e^E_ij and Σ_i a_i e^E_ij, E = (f_i + g_j − C_ij)/ε: each is one at the optimum of a balanced problem."""
    if isinstance(pairs.cost, costs.Grid):
        return along_axes(pairs, dual, pairs.b), along_axes(pairs, dual, pairs.a, back=True)

    def of_block(x, a, f, f_low):
        kernel = jnp.exp(exponent(x, pairs.y, pairs.cost, pairs.epsilon, Dual(f, dual.g, f_low, dual.g_low)))
        rows = jnp.dot(kernel, pairs.b, precision=_kernel.HIGHEST)
        return rows, jnp.dot(a, kernel, precision=_kernel.HIGHEST)

    return over_rows(of_block, pairs, dual.f, dual.f_low)


def along_axes(pairs: _pairs.Pairs, dual: Dual, v: Float[Array, "..."], back: bool = False) -> Float[Array, "..."]:
    """Σ_j e^E_ij v_j, or with `back` Σ_i v_i e^E_ij, of a grid."""
    f, g = (dual.f, dual.f_low), (dual.g, dual.g_low)
    return _grid.product(_grid.matrices(pairs), f, g, pairs.epsilon, v, back)


def over_rows(of_block: Any, pairs: _pairs.Pairs, *rows: Array) -> tuple[Array, Array]:
    """of_block(x, a, *rows) -> (an array over its rows, an array that is summed over blocks), in blocks of rows.

    The last block is filled up with copies of the last row, which have no weight.
    """
    m = len(pairs.b)
    if len(pairs.a) * m <= _BLOCK_ENTRIES or pairs.x is None:
        return of_block(pairs.x, pairs.a, *rows)

    @jax.checkpoint
    def visit(total, block):
        kept, added = of_block(*block)
        return total + _cores.shared_out(added), kept

    def part(x, a, *rows):
        n = len(a)
        x, *split_rows = _kernel.blocked((x, *rows), n, m, "edge", _BLOCK_ENTRIES)
        blocks = x, _kernel.blocked(a, n, m, "zero", _BLOCK_ENTRIES), *split_rows
        shape = jax.eval_shape(of_block, *jax.tree.map(lambda leaf: leaf[0], blocks))[1]
        total, kept = jax.lax.scan(visit, jnp.zeros(shape.shape, shape.dtype), blocks)
        return kept.reshape(-1, *kept.shape[2:])[:n], total

    return _shards.each(pairs.rows, part, pairs.x, pairs.a, *rows)


@jax.custom_jvp
def exponent(x: Any, y: Any, cost: Any, epsilon: Float[Array, ""], dual: Dual) -> Float[Array, "n m"]:
    """(f_i + g_j − C_ij)/ε, formed in float64, in the input's type; derivatives are formed in that type."""
    return _exponent(x, y, cost, epsilon, dual)


@_doubles.inside
def _exponent(x: Any, y: Any, cost: Any, epsilon: Array, dual: Dual) -> Array:
    f, g = joined(dual)
    x, y, cost, epsilon = _pairs.astype((x, y, cost, epsilon), jnp.float64)
    return jnp.minimum(_kernel.exponent(cost(x, y), f, g, epsilon), _grid.LARGEST_EXPONENT).astype(dual.f.dtype)


@exponent.defjvp
def _exponent_jvp(primals, tangents):
    x, y, cost, epsilon, _ = primals
    *motion, epsilon_dot, dual_dot = tangents
    _, C_dot = jax.jvp(lambda x, y, cost: cost(x, y), (x, y, cost), tuple(motion))
    E = exponent(*primals)
    moved = (dual_dot.f + dual_dot.f_low)[:, None] + (dual_dot.g + dual_dot.g_low)
    return E, (moved - C_dot - E * epsilon_dot) / epsilon


def _constant(tree: Any) -> Any:
    return jax.tree.map(jax.lax.stop_gradient, tree)


def _newton_step(pairs: _pairs.Pairs, dual: Dual) -> Dual:
    """What one Newton step adds to the potentials; nothing where it would not lessen the error."""
    return _step(_constant(pairs), _constant(dual))


@_doubles.inside
def _step(pairs: _pairs.Pairs, dual: Dual) -> Dual:
    dtype = dual.f.dtype
    problem = pairs.wide()
    f, g = joined(dual)
    working = jnp.float32 if dtype.itemsize < 8 else dtype
    kernel = _kernel.choose(pairs)(problem, f, g, problem.epsilon, working)
    marginals = _ascent.marginals(problem, f, g, working)
    here = _ascent.visit(kernel, marginals, jnp.zeros_like(marginals.b))
    w, _ = _ascent.newton_direction(kernel, marginals, here, 0.05, jnp.int32(_REFINING_PRODUCTS))
    there = _ascent.visit(kernel, marginals, w)
    better = there.error < here.error
    phi, gamma = (jnp.where(better, x, 0).astype(f.dtype) for x in (there.phi, there.gamma))
    f_new, g_new = f + problem.epsilon * phi, g + problem.epsilon * gamma
    moved = split(f_new, g_new, dtype)
    return jax.tree.map(jnp.subtract, moved, dual)


def _potentials_dot(pairs: _pairs.Pairs, dual: Dual, motion: Any) -> tuple[Float[Array, "n"], Float[Array, "m"]]:
    """The motion of the potentials that keeps log Σ_j b_j e^E_ij + f_i/ρ_a = 0 and its twin, where Σ c_j dg_j = 0.

    With u = df/ε, w = dg/ε and the rates A', B' of the two conditions at fixed potentials,
    u = −(A' + K b w/r)/(1 + κ_a) for the row sums r, and S w = P^T A'/(1 + κ_a) − c B'.
    """

    def conditions(pairs):
        rows, columns = sums(pairs, dual)
        soft_a = 0 if pairs.rho_a is None else dual.f / pairs.rho_a
        soft_b = 0 if pairs.rho_b is None else dual.g / pairs.rho_b
        return (smooth.log(rows) + soft_a, smooth.log(columns) + soft_b), (rows, columns)

    _, (rate_a, rate_b), (rows, columns) = jax.jvp(conditions, (pairs,), (motion,), has_aux=True)
    kappa_a, kappa_b = pairs.softness()
    hard = pairs.rho_a is None and pairs.rho_b is None
    c = pairs.b * columns

    def answer(w, rate):  # (A' + K b w/r)/(1 + κ_a) of each row, and its product with a, K from the left
        def of_block(x, a, f, f_low, row, rate):
            kernel = jnp.exp(exponent(x, pairs.y, pairs.cost, pairs.epsilon, Dual(f, dual.g, f_low, dual.g_low)))
            pulled = smooth.divide(jnp.dot(kernel, pairs.b * w, precision=_kernel.HIGHEST), row)
            u = (rate + pulled) / (1 + kappa_a)
            return u, jnp.dot(a * u, kernel, precision=_kernel.HIGHEST)

        if isinstance(pairs.cost, costs.Grid):
            u = (rate + smooth.divide(along_axes(pairs, dual, pairs.b * w), rows)) / (1 + kappa_a)
            return u, along_axes(pairs, dual, pairs.a * u, back=True)
        return over_rows(of_block, pairs, dual.f, dual.f_low, rows, rate)

    def system(w):
        _, returned = answer(w, jnp.zeros_like(rate_a))
        return c * (1 + kappa_b) * w - pairs.b * returned

    def solve(_, target):
        forcing = 16 * float(jnp.finfo(target.dtype).eps)
        if hard:
            target = target - c * smooth.divide(jnp.sum(target), jnp.sum(c))
        w, _ = _ascent.conjugate_gradients(system, c * (1 + kappa_b), target, forcing, jnp.int32(_SYSTEM_PRODUCTS))
        return w - smooth.divide(jnp.sum(c * w), jnp.sum(c)) if hard else w

    _, returned = answer(jnp.zeros_like(rate_b), rate_a)
    w = jax.lax.custom_linear_solve(system, pairs.b * returned - c * rate_b, solve, symmetric=True)
    u, returned = answer(w, rate_a)
    w = (smooth.divide(returned, columns) - rate_b) / (1 + kappa_b)  # as w, and for the columns without weight too
    return -pairs.epsilon * u, pairs.epsilon * w
