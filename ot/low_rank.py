"""Transport whose plan has low rank, Q diag(1/g) Rᵀ: time and memory linear in the number of points."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lie import check, elementwise, record, smooth
from ot import _batch, _inputs

_FIRST_STEP, _GROW = 10.0, 1.1  # in units of 1/(largest slope); a step that fails is halved
_WINDOW = 10  # steps between two looks at the progress
_INNER_STEPS = 50
_FIRST_DAMPING = 0.001


@record.register("q", "r", "g", "value", "error", "steps", "converged")
@dataclass(frozen=True)
class LowRank:
    """The plan Q diag(1/g) Rᵀ, Q (*batch, n, rank), R (*batch, m, rank), g (*batch, rank), and how the descent ended.

    value: <C, P>, without entropy. error: the true L1 violation of both marginals of P. steps: mirror descent steps.
    converged: error <= tolerance, and the last steps lowered the objective by less than the tolerance, relatively.
    """

    q: Float[Array, "*batch n rank"]
    r: Float[Array, "*batch m rank"]
    g: Float[Array, "*batch rank"]
    value: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]

    def plan(self) -> Float[Array, "*batch n m"]:
        """The dense plan."""
        return elementwise.einsum("...ik,...jk->...ij", _conditional(self.q, self.g), self.r)

    def apply(self, v: Float[ArrayLike, "*#batch m"]) -> Float[Array, "... n"]:
        """P v without the dense plan."""
        inner = elementwise.einsum("...jk,...j->...k", self.r, check.array("v", v, self.r.shape[-2]))
        return elementwise.einsum("...ik,...k->...i", _conditional(self.q, self.g), inner)

    def barycentric_map(self, y: Float[ArrayLike, "*#batch m d"]) -> Float[Array, "... n d"]:
        """Σ_j P_ij y_j / Σ_j P_ij: where the plan sends each x_i on average."""
        y = check.array("y", y, self.r.shape[-2], None)
        inner = smooth.divide(elementwise.einsum("...jk,...jd->...kd", self.r, y), self.g[..., None])
        mass = jnp.sum(self.q, axis=-1, keepdims=True)
        return smooth.divide(elementwise.einsum("...ik,...kd->...id", self.q, inner), mass)


class _State(NamedTuple):
    """log(Q/a)ᵀ (rank, n), log(R/b)ᵀ (rank, m), log g, and what the descent needs to know."""

    q: Array
    r: Array
    g: Array
    objective: Array
    error: Array
    step: Array
    reference: Array  # the objective at the last check of progress
    steps: Array
    stalled: Array


def solve(
    x: Any,
    y: Any,
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    rank: int,
    factors: tuple[ArrayLike, ArrayLike] | None = None,
    epsilon: ArrayLike = 0.0,
    tolerance: float = 1e-3,
    max_steps: int = 1000,
) -> LowRank:
    """min <C, P> + ε (KL(Q | a 1ᵀ) + KL(R | b 1ᵀ) + Σ g log g) over P = Q diag(1/g) Rᵀ, by mirror descent.

    Q has marginals a and g, R has b and g, so P has a and b. C is squared Euclidean on clouds x (*batch, n, d) and
    y (*batch, m, d), never stored, or A Bᵀ by `factors` = (A (*batch, n, k), B (*batch, m, k)), x and y then None.
    A step costs O((n + m) rank (d + inner iterations)). Weights (*batch, n), (*batch, m), uniform where None. The start
    is a partition by `rank` landmarks of y; the problem is not convex. Steps that would raise the objective are halved,
    so it falls monotonically. Everything is in logarithms: parts whose weight g_k vanishes divide nothing by zero.
    `value` differentiates in points and factors with the plan held fixed. `rank` <= min(n, m).
    Raises ValueError and TypeError that name the argument.
    Sources: Scetbon, Cuturi, Peyré 2021, ICML (descent, factored costs); without their lower bound on g
    all constraints are affine, and the projections need no Dykstra corrections.
    """
    A, B = _factors(x, y) if factors is None else _given(factors)
    n, m = A.shape[-2], B.shape[-2]
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= min(n, m):
        raise ValueError(f"rank: expected an integer in 1..min(n, m) = {min(n, m)}, got {rank}")
    a, b = _inputs.weights("a", a, n, A.dtype), _inputs.weights("b", b, m, A.dtype)
    epsilon = jnp.asarray(epsilon).astype(A.dtype)
    _inputs.require("epsilon", (epsilon >= 0) & jnp.isfinite(epsilon), f"a finite number >= 0, got {epsilon}")
    return _solve(A, B, a, b, epsilon, rank, tolerance, max_steps)


@partial(jax.jit, static_argnames="rank")
def _solve(A, B, a, b, epsilon, rank: int, tolerance: Any, max_steps: Any) -> LowRank:
    solver = partial(_solve_one, rank=rank, tolerance=tolerance, max_steps=max_steps)
    return _batch.over(solver, [A, B, a, b, epsilon], [2, 2, 1, 1, 0])


def _solve_one(
    A: Array, B: Array, a: Array, b: Array, epsilon: Array, *, rank: int, tolerance: Any, max_steps: Any
) -> LowRank:
    live = A, B
    A, B, a, b, epsilon = jax.lax.stop_gradient((A, B, a, b, epsilon))
    gradients = partial(_gradients, A, B, a, b)
    objective = partial(_objective, a=a, b=b, epsilon=epsilon)
    project = partial(_project, a=a, b=b, tolerance=tolerance / 10)

    def advance(state):
        of_q, of_r, of_g = gradients(state.q, state.r, state.g)
        gamma = state.step / jnp.maximum(jnp.max(jnp.abs(of_q)), jnp.max(jnp.abs(of_r)))
        shrink = 1 / (1 + gamma * epsilon)  # the entropy is taken implicitly: stable for any step
        kernels = (shrink * (log - gamma * slope) for log, slope in zip(state[:3], (of_q, of_r, of_g), strict=True))
        q, r, g, error = project(*kernels)
        value = objective(q, r, g, gradients(q, r, g)[0])
        better = (value <= state.objective) & (error <= tolerance)
        kept = [jnp.where(better, new, old) for new, old in zip((q, r, g, value, error), state[:5], strict=True)]
        steps = state.steps + 1
        checked = steps % _WINDOW == 0
        gain = state.reference - kept[3]
        stalled = checked & (gain <= 0.01 * tolerance * jnp.abs(state.reference))
        reference = jnp.where(checked, kept[3], state.reference)
        step = state.step * jnp.where(better, _GROW, 0.5)
        return _State._make((*kept, step, reference, steps, stalled))

    def unfinished(state):
        return ~state.stalled & (state.steps < max_steps)

    q, r, g, error = _start(A, B, rank, gradients, project)
    value = objective(q, r, g, gradients(q, r, g)[0])
    first = _State(q, r, g, value, error, jnp.asarray(_FIRST_STEP, A.dtype), value, jnp.int32(0), jnp.bool_(False))
    found = jax.lax.while_loop(unfinished, advance, first)
    Q, R, g = (a * jnp.exp(found.q)).T, (b * jnp.exp(found.r)).T, jnp.exp(found.g)
    inner = elementwise.einsum("jd,jk->dk", live[1], _conditional(R, g))
    value = jnp.sum(elementwise.einsum("id,ik->dk", live[0], Q) * inner)  # <A Bᵀ, P>, the plan held fixed
    converged = found.stalled & (found.error <= tolerance)
    return LowRank(Q, R, g, value, found.error, found.steps, converged)


def _conditional(r: Array, g: Array) -> Array:
    """R diag(1/g): a probability over the points for each part; 0 for a part without weight."""
    return smooth.divide(r, jnp.broadcast_to(g[..., None, :], r.shape))


def _gradients(A: Array, B: Array, a: Array, b: Array, q: Array, r: Array, g: Array) -> tuple[Array, Array, Array]:
    """Derivatives of <C, P> in Q (rank, n), R (rank, m) and g: C R/g, CᵀQ/g and −ω/g², ω = diag QᵀCR."""
    share_q, share_r = a * jnp.exp(q - g[:, None]), b * jnp.exp(r - g[:, None])
    of_q = elementwise.einsum("kd,id->ki", elementwise.einsum("kj,jd->kd", share_r, B), A)
    of_r = elementwise.einsum("kd,jd->kj", elementwise.einsum("ki,id->kd", share_q, A), B)
    return of_q, of_r, -jnp.sum(share_q * of_q, axis=-1)


def _objective(q: Array, r: Array, g: Array, of_q: Array, *, a: Array, b: Array, epsilon: Array) -> Array:
    Q, R = a * jnp.exp(q), b * jnp.exp(r)
    return jnp.sum(Q * of_q) + epsilon * (jnp.sum(Q * q) + jnp.sum(R * r) + jnp.sum(jnp.exp(g) * g))


class _Dual(NamedTuple):
    """Multipliers v (2, rank) of Qᵀ1 = g and Rᵀ1 = g, and what they give: Q/a and R/b (transposed), g, sums, value."""

    v: Array
    Q: Array
    R: Array
    rows_q: Array
    rows_r: Array
    g: Array
    sums: Array
    value: Array


def _project(q: Array, r: Array, g: Array, *, a: Array, b: Array, tolerance: Any) -> tuple[Array, Array, Array, Array]:
    """The closest Q, R, g in the sense of KL with Q1 = a, R1 = b and Qᵀ1 = Rᵀ1 = g, and the L1 error of a and b.

    With the rows eliminated in closed form the dual is convex in 2 rank numbers, and damped Newton steps solve it in
    about ten rounds of O((n + m) rank²), where alternating projections take thousands once the parts hardly overlap.
    """
    rank, resolution = g.shape[0], 16 * float(jnp.finfo(g.dtype).eps)

    def at(v):
        (Q, rows_q), (R, rows_r) = _softmax(q + v[0][:, None]), _softmax(r + v[1][:, None])
        G = jnp.exp(g - v[0] - v[1])
        sums = jnp.stack([jnp.sum(a * Q, axis=-1), jnp.sum(b * R, axis=-1)])
        value = jnp.sum(a * rows_q) + jnp.sum(b * rows_r) + jnp.sum(G)
        return _Dual(v, Q, R, rows_q, rows_r, G, sums, value)

    def newton_step(point, damping):
        G, diagonal = point.g, jnp.diag(point.g)
        curvature_q = jnp.diag(point.sums[0] + G) - elementwise.einsum("ki,li->kl", a * point.Q, point.Q)
        curvature_r = jnp.diag(point.sums[1] + G) - elementwise.einsum("kj,lj->kl", b * point.R, point.R)
        curvature = jnp.block([[curvature_q, diagonal], [diagonal, curvature_r]])
        size = (point.sums + G).reshape(-1)
        gauge = jnp.repeat(jnp.array([1, -1], g.dtype), rank) / rank  # v_q + c, v_r − c is the same point
        regular = jnp.diag(jnp.where(size == 0, 1, damping * size)) + gauge[:, None] * gauge
        return jnp.linalg.solve(curvature + regular, (G - point.sums).reshape(-1)).reshape(2, rank)

    def advance(state):
        point, damping, steps = state
        ahead = at(point.v + newton_step(point, damping))
        better = ahead.value <= point.value + resolution * jnp.abs(point.value)
        point = jax.tree.map(lambda new, old: jnp.where(better, new, old), ahead, point)
        return point, jnp.where(better, damping / 8, 8 * damping), steps + 1

    def unfinished(state):
        point, _, steps = state
        return ~(jnp.sum(jnp.abs(point.sums - point.g)) <= tolerance) & (steps < _INNER_STEPS)

    damping = jnp.asarray(_FIRST_DAMPING, g.dtype)
    first = at(jnp.zeros((2, rank), g.dtype)), damping, jnp.int32(0)
    found, _, _ = jax.lax.while_loop(unfinished, advance, first)
    v = found.v
    # The columns last, in closed form: Qᵀ1 = Rᵀ1 = g to rounding, so that the plan's error is that of the rows.
    q, r = q + v[0][:, None] - found.rows_q, r + v[1][:, None] - found.rows_r
    columns_q, columns_r = logsumexp(q + smooth.log(a), axis=-1), logsumexp(r + smooth.log(b), axis=-1)
    total = (g - v[0] - v[1] + columns_q + columns_r) / 3
    q, r = q + (total - columns_q)[:, None], r + (total - columns_r)[:, None]
    error_q = jnp.sum(a * jnp.abs(jnp.sum(jnp.exp(q), axis=0) - 1))
    return q, r, total, error_q + jnp.sum(b * jnp.abs(jnp.sum(jnp.exp(r), axis=0) - 1))


def _softmax(x: Array) -> tuple[Array, Array]:
    """exp(x) scaled to sum 1 over the first axis, and the logarithm of what it summed to."""
    largest = jnp.max(x, axis=0)
    raised = jnp.exp(x - largest)
    total = jnp.sum(raised, axis=0)
    return raised / total, largest + jnp.log(total)


def _start(A: Array, B: Array, rank: int, gradients: Any, project: Any) -> tuple[Array, Array, Array, Array]:
    """x partitioned by `rank` of the y, then y partitioned by the parts of x: both softly, at a tenth of the spread."""
    m = B.shape[0]
    landmarks = B[(jnp.arange(rank) * m + m // 2) // rank]
    even = jnp.full((rank,), -jnp.log(rank), A.dtype)

    def soft(costs):
        spread = jnp.max(costs) - jnp.min(costs)
        return -10 * smooth.divide(costs, jnp.broadcast_to(spread, costs.shape))

    q = soft(elementwise.einsum("kd,id->ki", landmarks, A))
    blank = jnp.zeros((rank, m), A.dtype)
    q, _, g, _ = project(q, blank, even)
    return project(q, soft(gradients(q, blank, g)[1]), g)


def _factors(x: Any, y: Any) -> tuple[Array, Array]:
    """|x − y|² = (|x|², 1, −2x)·(1, |y|², y), for clouds moved to the mean of y: no digits are lost far from 0."""
    x, y = check.array("x", x, None, None), check.array("y", y, None, None)
    check.same_dtype(x=x, y=y)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y: expected points of one dimension, got x {x.shape}, y {y.shape}")
    _inputs.points("x", x)
    _inputs.points("y", y)
    centre = jax.lax.stop_gradient(jnp.mean(y, axis=-2, keepdims=True))
    x, y = x - centre, y - centre
    squares_x, squares_y = (jnp.sum(p * p, axis=-1, keepdims=True) for p in (x, y))
    ones_x, ones_y = jnp.ones_like(squares_x), jnp.ones_like(squares_y)
    return jnp.concatenate([squares_x, ones_x, -2 * x], axis=-1), jnp.concatenate([ones_y, squares_y, y], axis=-1)


def _given(factors: tuple[ArrayLike, ArrayLike]) -> tuple[Array, Array]:
    if not isinstance(factors, tuple) or len(factors) != 2:
        raise TypeError("factors: expected a tuple (A, B) of arrays (*batch, n, k) and (*batch, m, k)")
    A = check.array("factors[0]", factors[0], None, None)
    B = check.array("factors[1]", factors[1], None, A.shape[-1])
    check.same_dtype(**{"factors[0]": A, "factors[1]": B})
    return _inputs.points("factors[0]", A), _inputs.points("factors[1]", B)
