"""From a cold start to the potentials at ε: a falling sequence of regularisations, first on a thinned problem.

Each round makes the kernel afresh from the potentials, so that all scalings start at one, and climbs. The next ε is a
sixth of the last, and g is extrapolated in ε along its last change. Large clouds do the large ε on every eighth point
(or on 4096 of them, and those again on every eighth), whose potentials the full problem continues: its first rounds
would cost the most.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from lie import smooth
from ot import _ascent, _batch, _kernel, _pairs

_FACTOR = 6.0
_LOOSE = 0.03  # the error at which ε falls on; 0.1 costs up to ten times as much at ε = 0.001, 0.01 a tenth more
_WARMEST = 0.5  # the first ε, in units of the spread of the cost
_DIRECT_FROM = 0.2
"""The ε, likewise, which is begun with itself: a quarter to a third of the time; from 0.1 a tenth is lost. Not for
problems in step, whose Newton steps fall together after common rounds alone: 64 x 64 at 0.2 takes 17 ms so for 10."""
_FULL_FROM = 0.1  # the ε, in the same unit, from which on all points take part
_STRIDE = 8
_THINNEST = 200
_LARGEST_THINNED = 4096
_SAFE = 0.95  # of the tolerance: what rounding may add to the error of scaled float32 kernels
ROUGH = 0.1  # of the tolerance: what the worst exponent of a rough kernel may be off by; sums average it out
_ROUNDS = 200
_RESCUES = 3


class State(NamedTuple):
    """Potentials in the wide type and how far they are."""

    f: Float[Array, "n"]
    g: Float[Array, "m"]
    epsilon: Float[Array, ""]
    g_before: Float[Array, "m"]
    epsilon_before: Float[Array, ""]  # 0: none
    error: Float[Array, ""]
    mass: Float[Array, ""]
    sweeps: Int[Array, ""]
    rounds: Int[Array, ""]
    rescues: Int[Array, ""]
    lost: Bool[Array, ""]  # the last round met an overflow or an empty row: the next one starts in logarithms
    done: Bool[Array, ""]


def start(f: Float[Array, "n"], g: Float[Array, "m"], epsilon: Float[Array, ""]) -> State:
    """Before the first round."""
    zero, none, no = jnp.zeros_like(epsilon), jnp.int32(0), jnp.asarray(False)
    return State(f, g, epsilon, g, zero, zero + jnp.inf, zero, none, none, none, no, no)


def cold(pairs: _pairs.Pairs, budget: Int[Array, ""], working: Any) -> tuple[State, Float[Array, ""]]:
    """A start without potentials: from the thinned problem, or from the means of the cost where it is small.

    Also the spread of the cost, which the smallest problem is asked for.
    """
    size = min(len(pairs.a), len(pairs.b))
    stride = max(_STRIDE, math.ceil(size / _LARGEST_THINNED))
    if size // stride < _THINNEST:
        enough = max(jnp.dtype(working), pairs.a.dtype, key=lambda d: d.itemsize)  # float32 overflows first
        f, g, spread = (x.astype(jnp.float64) for x in means(pairs.cast(enough)))
        epsilon = pairs.wide().epsilon
        direct = epsilon >= _DIRECT_FROM * spread
        first = jnp.where(direct & _batch.is_alone(direct), epsilon, jnp.maximum(epsilon, _WARMEST * spread))
        return start(f, g, first), spread
    few = pairs.every(stride)
    begun, spread = cold(few, budget, working)
    end = jnp.maximum(few.wide().epsilon, _FULL_FROM * spread)
    begun = begun._replace(epsilon=jnp.maximum(begun.epsilon, end))
    reached = descend(few.at(end), begun, jnp.full_like(end, _LOOSE), budget, working, begin=True)
    enough = jnp.float64 if _kernel.tolerated(pairs, working, end) is None else working  # where to start is not where
    few_f, few_g, at = (p.astype(enough) for p in (reached.f, reached.g, end))  # to arrive
    f = _kernel.row_answer(pairs.against(few).cast(enough), few_g, at, working)
    g = _kernel.column_answer(few.against(pairs).cast(enough), few_f, at, working)
    return start(f.astype(jnp.float64), g.astype(jnp.float64), end), spread


def means(pairs: _pairs.Pairs) -> tuple[Float[Array, "n"], Float[Array, "m"], Float[Array, ""]]:
    """Means of the cost's rows and columns, which absorb what does not matter, and the spread of what is left."""
    C = _kernel.turned(pairs).matrix()
    product = partial(jnp.dot, precision=_kernel.HIGHEST)  # sums of a matrix times a vector take five times as long
    a, b = pairs.a / jnp.sum(pairs.a), pairs.b / jnp.sum(pairs.b)
    rows, columns = product(C, b), product(a, C)
    middle = jnp.sum(a * rows) / 2
    f, g = rows - middle, columns - middle
    spread = jnp.sum(a * product(jnp.abs(C - f[:, None] - g), b))
    return f, g, spread


def descend(
    pairs: _pairs.Pairs,
    state: State,
    tolerance: Array,
    budget: Int[Array, ""],
    working: Any,
    begin: bool = False,
) -> State:
    """Rounds until the error at pairs.epsilon is at most `tolerance`, or sweeps run out.

    To `begin` a larger problem, by Sinkhorn's iteration alone and without rescues: half the program.
    """
    make = _kernel.choose(pairs)
    target = pairs.wide().epsilon

    def unfinished(state: State) -> Bool[Array, ""]:
        lively = (state.rounds < _ROUNDS) & (state.sweeps < budget) & (state.rescues <= _RESCUES)
        return ~state.done & lively

    def round_of(state: State) -> State:
        if not begin:
            state = jax.lax.while_loop(lambda s: s.lost, lambda s: _rescue(pairs, s, working), state)
        epsilon, last = state.epsilon, state.epsilon <= target
        problem = pairs.wide(epsilon).at(epsilon)
        present_f = jnp.where(problem.a > 0, state.f, -jnp.inf)  # no weight: no row, whatever its potential would be
        present_g = jnp.where(problem.b > 0, state.g, -jnp.inf)
        goal = jnp.where(last, _SAFE * tolerance, jnp.maximum(_LOOSE, tolerance))
        allowed = _kernel.tolerated(pairs, working, ROUGH * goal)
        kernel = make(problem, present_f, present_g, epsilon, working, allowed)
        marginals = _ascent.marginals(problem, state.f, state.g, working)
        aim, left = goal.astype(working), budget - state.sweeps
        if begin:
            point, sweeps = _ascent.settle(kernel, marginals, aim, left)
        else:
            sample = _kernel.sample(problem, present_f, present_g, epsilon, working, allowed is not None)
            point, sweeps = _ascent.climb(kernel, marginals, aim, left, sample)
        lost = ~(jnp.all(jnp.isfinite(point.phi)) & jnp.all(jnp.isfinite(point.gamma)) & jnp.isfinite(point.error))
        reached = point.error <= aim
        f = state.f + epsilon * point.phi.astype(epsilon.dtype)
        g = state.g + epsilon * point.gamma.astype(epsilon.dtype)
        fall = reached & ~last
        following = jnp.where(fall, jnp.maximum(epsilon / _FACTOR, target), epsilon)
        pace = smooth.divide(following - epsilon, epsilon - state.epsilon_before)
        ahead = jnp.where(fall & (state.epsilon_before > 0), g + pace * (g - state.g_before), g)
        keep = lambda new, old: jnp.where(lost, old, new)
        return State(
            keep(f, state.f),
            keep(ahead, state.g),
            keep(following, epsilon),
            keep(jnp.where(fall, g, state.g_before), state.g_before),
            keep(jnp.where(fall, epsilon, state.epsilon_before), state.epsilon_before),
            jnp.where(last & ~lost, point.error.astype(epsilon.dtype), jnp.inf),
            keep(jnp.sum(point.c).astype(epsilon.dtype), state.mass),
            state.sweeps + sweeps,
            state.rounds + 1,
            state.rescues + lost.astype(jnp.int32),
            lost,
            last & reached & ~lost,
        )

    return jax.lax.while_loop(unfinished, round_of, state)


def renewed(state: State) -> State:
    """To be taken further by finer arithmetic."""
    none = jnp.zeros_like(state.rounds)
    return state._replace(done=jnp.zeros_like(state.done), rounds=none, rescues=none)


def completed(pairs: _pairs.Pairs, state: State) -> State:
    """With the potentials of points that have no weight, to float32: the ascent leaves them alone, the plan too."""
    problem = pairs.wide()
    kappa_a, kappa_b = problem.softness()
    absent = (jnp.any(problem.a == 0) | jnp.any(problem.b == 0)) & jnp.isfinite(state.error)

    def extend(carried):
        f, g, _ = carried
        there = problem.wide(f)
        f_all = _kernel.row_answer(there, g, problem.epsilon, jnp.float32) / (1 + kappa_a)
        g_all = _kernel.column_answer(there, f, problem.epsilon, jnp.float32) / (1 + kappa_b)
        return jnp.where(problem.a > 0, f, f_all), jnp.where(problem.b > 0, g, g_all), jnp.asarray(False)

    f, g, _ = jax.lax.while_loop(lambda carried: carried[2], extend, (state.f, state.g, absent))
    return state._replace(f=f, g=g)


def value(pairs: _pairs.Pairs, state: State) -> Float[Array, ""]:
    """The dual objective at the potentials of the last round."""
    problem = pairs.wide()
    return problem.gain(state.f, state.g) - problem.epsilon * (state.mass - jnp.sum(problem.a) * jnp.sum(problem.b))


def _rescue(pairs: _pairs.Pairs, state: State, working: Any) -> State:
    """One Sinkhorn iteration in logarithms, after which no row or column of the kernel is empty or overflows."""
    pairs = pairs.wide(state.f).at(state.epsilon)  # f: what the loop changes
    kappa_a, kappa_b = pairs.softness()
    f = _kernel.row_answer(pairs, state.g, state.epsilon, working) / (1 + kappa_a)
    g = _kernel.column_answer(pairs, f, state.epsilon, working) / (1 + kappa_b)
    return state._replace(f=f, g=g, lost=jnp.asarray(False), sweeps=state.sweeps + 2)
