"""Displacement interpolation: where mass is at time t, when each pair of a coupling travels along its geodesic."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, elementwise, euclidean, smooth, sphere

Points = Any
"""An array of points, or the elements of a group (a Pose, a tuple of a product); the leading axes are a batch."""


def interpolate(x: Points, y: Points, t: Float[ArrayLike, "..."], *, group: Any = None) -> Points:
    """The point at time t on the geodesic from x (t = 0) to y (t = 1), pair by pair; any real t.

    x, y: paired points (*batch, *event); t broadcasts against batch. `group` is a group of `lie`, a product of groups
    or the module `lie.sphere`; None is R^n, where it is x + t (y − x). On an optimal coupling's pairs this is McCann's
    interpolation, a geodesic of W_2: W_2(μ_s, μ_t) = |t − s| W_2(μ_0, μ_1). Raises TypeError for what is no such space.
    Source: McCann 1997, Adv. Math. 128:153.
    """
    return _space(group).interpolate(x, y, check.array("t", t))


def velocity(x: Points, y: Points, t: Float[ArrayLike, "..."], *, group: Any = None) -> Float[Array, "..."]:
    """d/dt of `interpolate`, pair by pair: what flow matching regresses on.

    On R^n it is y − x; on a group the body-frame tangent log(x⁻¹ y), the same at every t; on the sphere, with
    v = log_x(y), it is cos(t|v|) v − |v| sin(t|v|) x: tangent at the point of time t, in the coordinates of R^(n+1).
    """
    space, t = _space(group), check.array("t", t)
    step = space.local(x, y)
    t = t.astype(step.dtype)[..., None]
    if space is sphere:
        squared = elementwise.dot(step, step)[..., None]
        angle_squared = t * t * squared
        return smooth.cos(angle_squared) * step - t * squared * smooth.sinc(angle_squared) * jnp.asarray(x)
    return jnp.broadcast_to(step, jnp.broadcast_shapes(step.shape, t.shape))


def displacement(
    potentials: Any, t: Float[ArrayLike, "..."], *, size: int, group: Any = None, key: PRNGKeyArray
) -> Points:
    """`size` points at time t of the interpolation along an entropic plan, the record of `sinkhorn.solve`.

    Pairs (i, j) are drawn from the plan and travel along geodesics of `group`; t is one time or `size` of them. As
    epsilon -> 0 the law is McCann's; at t = 0 and t = 1 it is that of x and of y, up to the record's `error`.
    Raises ValueError for a record with batch axes: use `jax.vmap`.
    """
    if potentials.f.ndim != 1:
        raise ValueError(f"potentials: expected those of one problem, (n,), got {potentials.f.shape}; use jax.vmap")
    i, j = potentials.sample_pairs(size, key=key)
    x, y = (
        jax.tree.map(lambda leaf: leaf[i], potentials.pairs.x),
        jax.tree.map(lambda leaf: leaf[j], potentials.pairs.y),
    )
    return interpolate(x, y, t, group=group)


def _space(group: Any) -> Any:
    space = euclidean if group is None else group
    if not (hasattr(space, "interpolate") and hasattr(space, "local")):
        raise TypeError(f"group: expected None, a group of lie, a product or lie.sphere, got {group!r}")
    return space
