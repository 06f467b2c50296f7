"""Infinitesimal turns of features, and the torque: by them messages depend on the frame of their edge (`turns`).

A function of r/|r| changes with r as it does under the shortest turn ω that follows r. So whatever is made of an edge's
direction is held constant, and a `spin`, 0 in value, stands for ω: what it turns changes by Σ_k ω_k G_k x, at most two
products a row and axis, elementwise over channels. The transpose of that is the torque. Each is the other's derivative,
so that derivatives of every order are exact.
"""

import operator
from collections.abc import Iterable
from functools import partial, reduce
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lie import smooth

Row = tuple[tuple[int, float], ...]  # the rows that one row takes, each with its coefficient
Generators = tuple[tuple[Row, ...], ...]  # [axis][row], antisymmetric; hashable, because it is static


@jax.custom_jvp
def spin(r: Float[Array, "edges 3"]) -> Float[Array, "edges 3"]:
    """0, with the derivative r × ṙ/|r|²: the shortest turn that follows r, in the fixed frame; none at r = 0."""
    return jnp.zeros_like(r)


@spin.defjvp
def _spin_jvp(primals, tangents):
    (r,), (r_dot,) = primals, tangents
    length = smooth.norm(r, axis=-1)[:, None]
    return spin(r), jnp.cross(smooth.divide(r, length), smooth.divide(r_dot, length))


def generators(matrices: np.ndarray) -> Generators:
    """The rows of (axes, rows, rows), without zeros."""
    return tuple(tuple(tuple((int(j), float(row[j])) for j in np.flatnonzero(row)) for row in G) for G in matrices)


def torque(
    G: Generators, x: Float[Array, "edges *parts rows channels"], y: Float[Array, "edges *parts rows_y channels"]
) -> Float[Array, "edges axes channels"]:
    """Σ y G_k x over parts and rows, for every axis k; x and y may lack the last rows of each other."""
    return cast(Array, _torque(G, x, y))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _torque(G: Generators, x: Array, y: Array) -> Array:
    found = []
    for of_axis in G:
        met = [(i, [(j, v) for j, v in row if j < x.shape[-2]]) for i, row in enumerate(of_axis[: y.shape[-2]])]
        parts = [y[..., i, :] * _combined(x, row) for i, row in met if row]
        found.append(total(parts) if parts else jnp.zeros_like(x[..., 0, :]))
    by_axis = jnp.stack(found, axis=1)
    while by_axis.ndim > 3:
        by_axis = total(by_axis[:, :, part] for part in range(by_axis.shape[2]))
    return by_axis


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _swing(G: Generators, rows: int, omega: Array, x: Array) -> Array:
    """Σ_k ω_k G_k x, the first `rows` rows."""
    omega = omega.reshape(*omega.shape[:2], *(1,) * (x.ndim - 3), omega.shape[2])
    found = []
    for i in range(rows):
        rows_of = [(axis, [(j, v) for j, v in of_axis[i] if j < x.shape[-2]]) for axis, of_axis in enumerate(G)]
        parts = [omega[:, axis] * _combined(x, row) for axis, row in rows_of if row]
        found.append(total(parts) if parts else jnp.zeros_like(x[..., 0, :]))
    return jnp.stack(found, axis=-2)


_torque.defvjp(
    lambda G, x, y: (_torque(G, x, y), (x, y)),
    lambda G, saved, omega: (
        -cast(Array, _swing(G, saved[0].shape[-2], omega, saved[1])),
        _swing(G, saved[1].shape[-2], omega, saved[0]),
    ),
)
_swing.defvjp(
    lambda G, rows, omega, x: (_swing(G, rows, omega, x), (omega, x)),
    lambda G, rows, saved, y: (
        _torque(G, saved[1], y),
        -cast(Array, _swing(G, saved[1].shape[-2], saved[0], y)),
    ),
)


def _combined(x: Array, row: Iterable[tuple[int, float]]) -> Array:
    return total(x[..., j, :] * np.asarray(value, x.dtype) for j, value in row)


@jax.custom_vjp
def over_channels(x: Float[Array, "edges axes channels"]) -> Float[Array, "edges axes"]:
    """Σ over channels, halves first: elementwise, where a sum along a vector is none on CPU."""
    while x.shape[-1] > 8 and x.shape[-1] % 2 == 0:
        half = x.shape[-1] // 2
        x = x[..., :half] + x[..., half:]
    return jnp.sum(x, axis=-1)


over_channels.defvjp(
    lambda x: (over_channels(x), x),
    lambda x, y: (jnp.broadcast_to(y[:, :, None], x.shape),),
)


def total(parts: Iterable[Array]) -> Array:
    """Σ of at least one array, one after the other."""
    return reduce(operator.add, parts)
