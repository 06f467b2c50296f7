"""The unit sphere S^n in R^(n+1), in particular S² = SO(3)/SO(2): geodesics, logarithms, transport, at any dimension n.

Points are unit vectors (*batch, n + 1), tangent vectors at x are vectors orthogonal to x in the same coordinates.
Rotations act by `so3.act`. Antipodal points have no shortest geodesic: what is chosen there is stated at each function.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, elementwise, smooth


def exp(x: Float[ArrayLike, "*#batch n"], v: Float[ArrayLike, "*#batch n"]) -> Float[Array, "... n"]:
    """cos|v| x + (sin|v|/|v|) v: where the geodesic from x with velocity v is after unit time; any |v|.

    Error <= 1.4 eps for |v| <= π, float32 and float64.
    """
    x, v = _pair("x", x, "v", v)
    squared = elementwise.dot(v, v)[..., None]
    return smooth.cos(squared) * x + smooth.sinc(squared) * v


def log(x: Float[ArrayLike, "*#batch n"], y: Float[ArrayLike, "*#batch n"]) -> Float[Array, "... n"]:
    """The tangent vector at x of length θ = ∠(x, y) towards y: the inverse of exp for |v| < π.

    Exact to every order of differentiation at y = x. Relative error <= 1.3 eps θ/sin θ, as y is given to eps. At y = −x
    it is π along the coordinate axis furthest from x, made tangent, by choice, with the derivatives of that choice.
    """
    x, y = _points(x, y)
    difference, total = y - x, y + x
    tangent = difference - elementwise.dot(x, difference)[..., None] * x
    sine_squared = elementwise.dot(difference, difference) / 4  # of θ/2
    near = sine_squared <= 0.25
    factor = smooth.angle_over_sine(jnp.where(near, sine_squared, 0))[..., None]
    theta = 2 * smooth.angle(smooth.norm(difference), smooth.norm(total))
    # Far from x the tangent part of x + y is the same vector, and loses no digits as y approaches −x.
    far = total - elementwise.dot(x, total)[..., None] * x
    far = far - elementwise.dot(x, far)[..., None] * x
    floor = float(jnp.finfo(x.dtype).eps)
    return jnp.where(near[..., None], factor * tangent, theta[..., None] * smooth.direction(far, _beside(x), floor))


def distance(x: Float[ArrayLike, "*#batch n"], y: Float[ArrayLike, "*#batch n"]) -> Float[Array, "..."]:
    """The angle ∠(x, y) = 2 atan2(|x − y|, |x + y|) in radians, 0..π; relative error <= 1.3 eps, at both ends too.

    The gradient is 0 by choice at y = x and at y = −x. For a smooth function at y = x use `squared_distance`.
    """
    x, y = _points(x, y)
    return 2 * smooth.angle(smooth.norm(y - x), smooth.norm(y + x))


def squared_distance(x: Float[ArrayLike, "*#batch n"], y: Float[ArrayLike, "*#batch n"]) -> Float[Array, "..."]:
    """The squared angle: smooth at y = x, where its gradient is 0 and its Hessian twice the tangent projection."""
    v = log(x, y)
    return elementwise.dot(v, v)


def project(x: Float[ArrayLike, "*#batch n"], v: Float[ArrayLike, "*#batch n"]) -> Float[Array, "... n"]:
    """v − (x·v) x: the tangent part at x of any vector, such as a gradient in R^(n+1)."""
    x, v = _pair("x", x, "v", v)
    return v - elementwise.dot(x, v)[..., None] * x


def normalize(x: Float[ArrayLike, "*batch n"]) -> Float[Array, "*batch n"]:
    """x/|x|, the closest point of the sphere; at x = 0 the first coordinate axis, with zero derivatives, by choice."""
    x = _vectors("x", x)
    return smooth.direction(x, jnp.asarray(np.eye(x.shape[-1])[0], x.dtype))


def transport(
    x: Float[ArrayLike, "*#batch n"], y: Float[ArrayLike, "*#batch n"], v: Float[ArrayLike, "*#batch n"]
) -> Float[Array, "... n"]:
    """v moved parallel along the geodesic from x to y: v − 2 (y·v)/|x + y|² (x + y), for v tangent at x.

    Keeps lengths and angles. At y = −x, where the geodesic is not unique, v itself by choice: it is tangent there too.
    """
    x, y = _points(x, y)
    _, v = _pair("x", x, "v", v)
    total = x + y
    squared = elementwise.dot(total, total)
    factor = smooth.divide(2 * elementwise.dot(y - x, v), squared)  # y·v without what x·v left over
    return v - factor[..., None] * total


def retract(x: Float[ArrayLike, "*#batch n"], v: Float[ArrayLike, "*#batch n"]) -> Float[Array, "... n"]:
    """exp(x, v), brought back to length 1: a step that may be repeated for ever."""
    return normalize(exp(x, v))


def local(x: Float[ArrayLike, "*#batch n"], y: Float[ArrayLike, "*#batch n"]) -> Float[Array, "... n"]:
    """log(x, y): the step from x to y, the inverse of `retract`."""
    return log(x, y)


def interpolate(
    x: Float[ArrayLike, "*#batch n"], y: Float[ArrayLike, "*#batch n"], t: Float[ArrayLike, "*#batch"]
) -> Float[Array, "... n"]:
    """exp(x, t log(x, y)): the geodesic from x (t = 0) to y (t = 1) at constant speed (slerp); any real t."""
    v = log(x, y)
    return exp(x, jnp.asarray(t, v.dtype)[..., None] * v)


def sample(
    shape: tuple[int, ...] = (), dtype: Any = jnp.float32, dimension: int = 2, *, key: PRNGKeyArray
) -> Float[Array, "..."]:
    """Points of the uniform distribution on S^dimension: (*shape, dimension + 1)."""
    return normalize(jax.random.normal(key, (*shape, dimension + 1), dtype))


def _beside(x: Array) -> Array:
    """A vector orthogonal to x: the tangent part of the coordinate axis furthest from x. Not of unit length."""
    furthest = jnp.argmin(jnp.abs(jax.lax.stop_gradient(x)), axis=-1)
    axis = jax.nn.one_hot(furthest, x.shape[-1], dtype=x.dtype)
    return axis - elementwise.dot(x, axis)[..., None] * x


def _vectors(name: str, x: Float[ArrayLike, "*batch n"]) -> Array:
    x = check.array(name, x, None)
    if x.shape[-1] < 2:
        raise ValueError(f"{name}: expected shape (..., n + 1) with n >= 1, got {x.shape}")
    return x


def _pair(point: str, x: ArrayLike, name: str, v: ArrayLike) -> tuple[Array, Array]:
    """The two as arrays of one dtype and size; `x` a point of the sphere."""
    x, v = _vectors(point, x), _vectors(name, v)
    check.same_dtype(**{point: x, name: v})
    if x.shape[-1] != v.shape[-1]:
        raise ValueError(f"{name}: expected shape (..., {x.shape[-1]}) as {point}, got {v.shape}")
    _check_unit(point, x)
    return x, v


def _points(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    x, y = _pair("x", x, "y", y)
    _check_unit("y", y)
    return x, y


def _check_unit(name: str, x: Array) -> None:
    if check.values_are_checked():
        allowed = 32 * float(jnp.finfo(x.dtype).eps)
        check.require(name, jnp.abs(smooth.norm(x) - 1) <= allowed, f"unit vectors (to {allowed:.3g})")
