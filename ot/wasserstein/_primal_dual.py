"""Restarted primal-dual hybrid gradient (PDLP) for min c·x, K x = q or >= q, lower <= x <= upper; K by its products."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

_CHECK = 40  # steps between two looks at the residuals, which cost two products


class Problem(NamedTuple):
    """A linear program; `at_least` marks the rows K x >= q, the others are equations. `norm` is at least |K|."""

    product: Callable[[Array], Array]
    transposed: Callable[[Array], Array]
    norm: Array
    c: Array
    q: Array
    at_least: Array
    lower: Array
    upper: Array


class Residuals(NamedTuple):
    """Primal and dual infeasibility and duality gap, each relative to one plus the size of its terms."""

    primal: Array
    dual: Array
    gap: Array

    def largest(self) -> Array:
        """The KKT error: the one number that must be small."""
        return jnp.maximum(jnp.maximum(self.primal, self.dual), self.gap)


def residuals(problem: Problem, x: Array, y: Array) -> Residuals:
    """The three parts of the optimality conditions at (x, y)."""
    short = problem.q - problem.product(x)
    short = jnp.where(problem.at_least, jnp.maximum(short, 0), short)
    reduced = problem.c - problem.transposed(y)
    up, down = jnp.maximum(reduced, 0), jnp.minimum(reduced, 0)
    bounded_below, bounded_above = jnp.isfinite(problem.lower), jnp.isfinite(problem.upper)
    excess = jnp.where(bounded_below, 0, up) + jnp.where(bounded_above, 0, down)
    primal_value = jnp.sum(problem.c * x)
    dual_value = jnp.sum(problem.q * y)
    dual_value += jnp.sum(jnp.where(bounded_below, problem.lower, 0) * up)
    dual_value += jnp.sum(jnp.where(bounded_above, problem.upper, 0) * down)
    return Residuals(
        _norm(short) / (1 + _norm(problem.q)),
        _norm(excess) / (1 + _norm(problem.c)),
        jnp.abs(primal_value - dual_value) / (1 + jnp.abs(primal_value) + jnp.abs(dual_value)),
    )


def minimise(problem: Problem, x: Array, y: Array, tolerance: Array, max_steps: Array) -> tuple[Array, Array, Array]:
    """(x, y, steps) with a KKT error of at most `tolerance`, or after max_steps: average, restart, balance the steps.

    At each look the better of the iterate and the average since the last restart may become the new start: when its
    error has fallen to a fifth, or to four fifths and no longer falls, or the run is long. The primal weight follows
    the distances that x and y moved. Source: Applegate et al. 2021, Practical large-scale linear programming using
    primal-dual hybrid gradient, without its adaptive step and presolve.
    """
    size = 0.998 / problem.norm

    def step(_, state):
        x, y, sum_x, sum_y, weight = state
        moved = jnp.clip(x - size / weight * (problem.c - problem.transposed(y)), problem.lower, problem.upper)
        y = y + size * weight * (problem.q - problem.product(2 * moved - x))
        y = jnp.where(problem.at_least, jnp.maximum(y, 0), y)
        return moved, y, sum_x + moved, sum_y + y, weight

    def error(x, y):
        return residuals(problem, x, y).largest()

    def look(state):
        x, y, sum_x, sum_y, start_x, start_y, weight, count, start_error, last_error, _, steps = state
        x, y, sum_x, sum_y, _ = jax.lax.fori_loop(0, _CHECK, step, (x, y, sum_x, sum_y, weight))
        count = count + _CHECK
        steps = steps + _CHECK
        mean_x, mean_y = sum_x / count, sum_y / count
        of_iterate, of_mean = error(x, y), error(mean_x, mean_y)
        take_mean = of_mean < of_iterate
        best_x, best_y = jnp.where(take_mean, mean_x, x), jnp.where(take_mean, mean_y, y)
        best = jnp.minimum(of_iterate, of_mean)
        enough = best <= 0.2 * start_error
        stalled = (best <= 0.8 * start_error) & (best > last_error)
        restart = enough | stalled | (count >= 0.36 * steps) | (best <= tolerance)
        moved_x, moved_y = _norm(best_x - start_x), _norm(best_y - start_y)
        usable = (moved_x > 0) & (moved_y > 0)
        ratio = jnp.where(usable, moved_y, 1) / jnp.where(usable, moved_x, 1)
        balanced = jnp.where(usable, jnp.sqrt(ratio * weight), weight)
        pick = lambda new, old: jnp.where(restart, new, old)
        x, y = pick(best_x, x), pick(best_y, y)
        zero_x, zero_y = pick(0, sum_x), pick(0, sum_y)
        return (x, y, zero_x, zero_y, pick(best_x, start_x), pick(best_y, start_y), pick(balanced, weight),
                pick(0, count), pick(best, start_error), best, best, steps)  # fmt: skip

    def unsettled(state):
        return ~(state[-2] <= tolerance) & (state[-1] < max_steps.astype(x.dtype))

    size_c, size_q = _norm(problem.c), _norm(problem.q)
    weight = jnp.where((size_c > 0) & (size_q > 0), size_c / jnp.where(size_q > 0, size_q, 1), 1)
    first = error(x, y)
    zero = jnp.zeros((), x.dtype)
    start = (x, y, 0 * x, 0 * y, x, y, weight, zero, first, first, first, zero)
    final = jax.lax.while_loop(unsettled, look, start)
    return final[0], final[1], final[-1].astype(jnp.int32)


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x * x))
