"""Sliced Wasserstein distances: the mean over directions of exact one-dimensional ones, on R^d, spheres and SO(3)."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import charts, check, elementwise, smooth, so3, sphere
from ot import _inputs
from ot.wasserstein import line


def sliced(
    x: Float[ArrayLike, "..."],
    y: Float[ArrayLike, "..."],
    a: ArrayLike | None = None,
    b: ArrayLike | None = None,
    *,
    p: float | int = 2,
    directions: int | ArrayLike = 128,
    space: Any = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "..."]:
    """The mean over random directions of W_p^p between projections; x (*batch, n, *event), y (*batch, m, *event).

    space None: points of R^d projected on unit vectors θ, to θ·x (`one_dimensional`).
    space `lie.sphere`: unit vectors of S^d projected to the closest point of a random great circle, at the angle of
    Uᵀx for an orthonormal frame U (d + 1, 2); W_p^p on that circle of length 2π (`circle`), costs arc^p in radians.
    Bonet et al. 2023, Spherical sliced-Wasserstein, measure the circle's length as 1: theirs is (2π)^-p times this.
    space `lie.so3`: rotations projected to the closest point of a random closed geodesic {R : R u = v}, of length 2π
    like any full turn: the spherical slice of quaternions on S³ with q and −q made one, angle 2 ∠(Uᵀq); invariant under
    multiplication on either side.

    directions: how many to draw with `key`, or an array of them, (k, d), (k, d + 1, 2) or (k, 4, 2); the same for all
    of a batch. Differentiable as `one_dimensional` is. Raises TypeError and ValueError that name the argument.
    """
    if space not in (None, sphere, so3):
        raise ValueError(f"space: expected None (R^d), lie.sphere or lie.so3, got {space!r}")
    x, y = _points(x, y, space)
    size = x.shape[-1]
    U = _directions(directions, (size,) if space is None else (size, 2), x.dtype, key)
    a, b = (None if w is None else jnp.asarray(w)[..., None, :] for w in (a, b))
    if space is None:
        return jnp.mean(line.one_dimensional(_projected(x, U), _projected(y, U), a, b, p=p), axis=-1)
    turns = 1 if space is sphere else 2  # q and −q are half a turn apart in the plane of U, and one rotation
    at_x, at_y = (turns * smooth.angle(_projected(v, U[..., 1]), _projected(v, U[..., 0])) for v in (x, y))
    return jnp.mean(line.circle(at_x, at_y, a, b, p=p, period=2 * np.pi), axis=-1)


def _points(x: ArrayLike, y: ArrayLike, space: Any) -> tuple[Array, Array]:
    axes = (None, 3, 3) if space is so3 else (None, None)
    x, y = check.array("x", x, *axes), check.array("y", y, *axes)
    check.same_dtype(x=x, y=y)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y: expected points of one dimension (..., d), got x {x.shape} and y {y.shape}")
    for name, points in (("x", x), ("y", y)):
        if points.size == 0:
            raise ValueError(f"{name}: expected at least one point, got shape {points.shape}")
        if _inputs.concrete(points) and not np.isfinite(np.asarray(points)).all():
            raise ValueError(f"{name}: expected finite points, got NaN or infinity")
        if space is so3:
            check.rotation(name, points)
        elif space is sphere:
            allowed = 64 * float(jnp.finfo(points.dtype).eps)
            check.require(name, jnp.abs(smooth.norm(points) - 1) <= allowed, f"unit vectors (to {allowed:.3g})")
    return (charts.quaternion_from_matrix(x), charts.quaternion_from_matrix(y)) if space is so3 else (x, y)


def _directions(directions: int | ArrayLike, shape: tuple[int, ...], dtype: Any, key: PRNGKeyArray | None) -> Array:
    if not isinstance(directions, int):
        U = check.array("directions", directions, None, *shape)
        check.same_dtype(x=jnp.zeros(0, dtype), directions=U)
        return U
    if directions < 1:
        raise ValueError(f"directions: expected at least one, got {directions}")
    if key is None:
        raise ValueError("key: expected a key to draw the directions with, or an array of directions")
    U = sphere.sample((directions, *shape[1:]), dtype, shape[0] - 1, key=key) if shape[0] > 1 else None
    if U is None:
        return jnp.ones((directions, *shape), dtype)
    if len(shape) == 1:
        return U
    first, second = U[..., 0, :], U[..., 1, :]
    second = sphere.normalize(second - elementwise.dot(first, second)[..., None] * first)
    return jnp.stack([first, second], axis=-1)


def _projected(x: Array, U: Array) -> Array:
    """U·x, (*batch, k, n): by NumPy where the values are at hand, as their sort will be."""
    if isinstance(x, Tracer) or isinstance(U, Tracer):
        return elementwise.einsum("kd,...nd->...kn", U, x)
    return jnp.asarray(np.asarray(U) @ np.swapaxes(np.asarray(x), -1, -2))
