"""Ordinary differential equations on a group: explicit one-step methods whose every stage is a group element.

Ẋ = X ∘ f(t, X): the field f is a tangent vector of the body frame, and increments act on the right, X exp(h f). One
`lax.scan` runs all steps, so the program has the same size for ten steps and for ten thousand.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lie import check, elementwise
from lie import group as groups

Field = Callable[[Float[Array, ""], groups.Element], Float[Array, "*batch dimension"]]
Row = tuple[float | int, ...]  # weights of the slopes k_1, k_2, ... inside one exponential


class Path(NamedTuple):
    """Where a process ends and, if stored, where it was: `path` has the axis of `times` in front of every leaf."""

    final: groups.Element
    path: groups.Element | None


class _CommutatorFree(NamedTuple):
    """Stage i starts at X and multiplies exp(h Σ_j w_j k_j) for each of its rows, in order; so does the step."""

    nodes: Row
    stages: tuple[tuple[Row, ...], ...]
    step: tuple[Row, ...]


class _MuntheKaas(NamedTuple):
    """A Runge-Kutta tableau for u in X exp(u), where u̇ = J_r(u)⁻¹ f with the exact inverse Jacobian."""

    nodes: Row
    stages: tuple[Row, ...]
    step: Row


_METHODS: dict[str, _CommutatorFree | _MuntheKaas] = {
    "euler": _CommutatorFree(nodes=(0,), stages=((),), step=((1,),)),
    "munthe_kaas_2": _MuntheKaas(nodes=(0, 1 / 2), stages=((), (1 / 2,)), step=(0, 1)),
    "commutator_free_3": _CommutatorFree(
        nodes=(0, 1 / 3, 2 / 3),
        stages=((), ((1 / 3,),), ((0, 2 / 3),)),
        step=((1 / 3,), (-1 / 12, 0, 3 / 4)),
    ),
    "munthe_kaas_4": _MuntheKaas(
        nodes=(0, 1 / 2, 1 / 2, 1),
        stages=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)),
        step=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
    ),
    "commutator_free_4": _CommutatorFree(
        nodes=(0, 1 / 2, 1 / 2, 1),
        stages=((), ((1 / 2,),), ((0, 1 / 2),), ((1 / 2,), (-1 / 2, 0, 1))),
        step=((1 / 4, 1 / 6, 1 / 6, -1 / 12), (-1 / 12, 1 / 6, 1 / 6, 1 / 4)),
    ),
}
METHODS = tuple(_METHODS)


def ode(
    group: groups.Group,
    field: Field,
    start: groups.Element,
    times: ArrayLike,
    *,
    method: str = "commutator_free_4",
    store: bool = False,
) -> Path:
    """The solution of Ẋ = X ∘ f(t, X), X(times[0]) = start, by one step between consecutive `times`.

    field(time, X) -> body-frame tangent `(*batch, dimension)`; times `(steps + 1,)`, increasing or decreasing.
    Methods and their orders: "euler" 1 (geodesic), "munthe_kaas_2" 2, "commutator_free_3" 3, "munthe_kaas_4" 4,
    "commutator_free_4" 4 (no Jacobian, five exponentials a step, one of them shared; the default). Every iterate is a
    product of exponentials; in matrix form it leaves the group by rounding alone, about eps √steps. A Munthe-Kaas step
    needs h |f| < 2π. Returns `Path(final, path)`; `path` has the leading axis of `times` and is None unless `store`.
    Raises ValueError for an unknown method, and for a field whose shape or dtype is not the tangent's.
    Sources: Munthe-Kaas 1998, BIT 38:92; Celledoni, Marthinsen, Owren 2003, FGCS 19:341 (mirrored to the body frame).
    """
    if method not in _METHODS:
        raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    tangent = tangent_of(group, start)
    advance = _advance(_METHODS[method], group, lambda time, state: as_tangent("field", field(time, state), tangent))

    def step(state, interval):
        begin, end = interval
        after = advance(begin, end - begin, state)
        return after, after if store else None

    times = as_times(times, tangent.dtype)
    final, path = jax.lax.scan(step, start, (times[:-1], times[1:]))
    return Path(final, prepend(start, path) if store else None)


def _advance(method: _CommutatorFree | _MuntheKaas, group: groups.Group, field: Field) -> Callable:
    if isinstance(method, _CommutatorFree):
        return _commutator_free(method, group, field)
    return _munthe_kaas(method, group, field)


def _commutator_free(method: _CommutatorFree, group: groups.Group, field: Field) -> Callable:
    def advance(time, h, state):
        slopes = []

        def move(rows):
            stage = state
            for row in rows:  # equal leading rows of several stages are one computation after XLA's CSE
                stage = group.retract(stage, h * _combine(row, slopes))
            return stage

        for node, rows in zip(method.nodes, method.stages, strict=True):
            slopes.append(field(time + node * h, move(rows)))
        return move(method.step)

    return advance


def _munthe_kaas(method: _MuntheKaas, group: groups.Group, field: Field) -> Callable:
    def advance(time, h, state):
        slopes = []
        for node, row in zip(method.nodes, method.stages, strict=True):
            if not row:  # u = 0: the stage is the state and J_r(0) = I
                slopes.append(field(time + node * h, state))
                continue
            u = h * _combine(row, slopes)
            slope = field(time + node * h, group.retract(state, u))
            slopes.append(elementwise.matvec(group.right_jacobian_inverse(u), slope))
        return group.retract(state, h * _combine(method.step, slopes))

    return advance


def _combine(row: Row, slopes: list[Array]) -> Array:
    terms = [weight * slope for weight, slope in zip(row, slopes, strict=False) if weight != 0]
    return sum(terms[1:], start=terms[0])


def tangent_of(group: groups.Group, element: groups.Element) -> jax.ShapeDtypeStruct:
    """Shape and dtype of the tangent vectors at `element`, without computing one."""
    return jax.eval_shape(group.local, element, element)


def as_tangent(name: str, value: ArrayLike, tangent: jax.ShapeDtypeStruct) -> Array:
    """`value` of a caller's function, checked against the tangent space; raises ValueError or TypeError."""
    value = check.array(name, value, tangent.shape[-1])
    if value.shape != tangent.shape:
        raise ValueError(f"{name}: expected tangent vectors of shape {tangent.shape}, got {value.shape}")
    if value.dtype != tangent.dtype:
        raise TypeError(f"{name}: expected tangent vectors of dtype {tangent.dtype}, got {value.dtype}")
    return value


def as_times(times: ArrayLike, dtype: Any) -> Array:
    """The points of time as a vector in the dtype of the state."""
    times = check.array("times", times, None)
    if times.ndim != 1 or times.shape[0] == 0:
        raise ValueError(f"times: expected shape (steps + 1,), got {times.shape}")
    return times.astype(dtype)


def prepend(start: groups.Element, path: groups.Element) -> groups.Element:
    """The path with its starting point in front."""
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, path)
