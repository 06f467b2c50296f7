"""Squared distances between all pairs of points, (*batch, n, m): on R^d, on spheres and on the groups of `lie`.

One number per pair and per coordinate, accumulated in a fused loop: nothing larger than (*batch, n, m) is stored.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lie import charts, check, elementwise, euclidean, group, se2, se3, smooth, so2, so3, su2

_RIGID = (se2, se3)
_EVENTS: dict[Any, Any] = {so2: 2, so3: 2, su2: 1, se2: se2.Pose(2, 1), se3: se3.Pose(2, 1), euclidean: 1}  # pyright: ignore


def squared_euclidean(
    x: Float[Array, "... n d"], y: Float[Array, "... m d"], differences_up_to: int = 8
) -> Float[Array, "... n m"]:
    """|x_i − y_j|²: a fused sum of squared differences for small d, else one matrix product of centred clouds."""
    if x.shape[-1] <= differences_up_to:
        return _sum_of_squares(x, y)
    if 0 in (*x.shape, *y.shape):
        return jnp.zeros((*jnp.broadcast_shapes(x.shape[:-2], y.shape[:-2]), x.shape[-2], y.shape[-2]), x.dtype)
    centre = jax.lax.stop_gradient(jnp.mean(y, axis=-2, keepdims=True))  # the value does not depend on it
    x, y = x - centre, y - centre
    inner = elementwise.einsum("...id,...jd->...ij", x, y)
    squares = jnp.sum(x * x, axis=-1)[..., :, None] + jnp.sum(y * y, axis=-1)[..., None, :] - 2 * inner
    below = jax.lax.stop_gradient(jnp.minimum(squares, 0))  # subtracted as a constant: the derivative stays 2 (x − y)
    return squares - below


def squared_arc(x: Float[Array, "... n d"], y: Float[Array, "... m d"]) -> Float[Array, "... n m"]:
    """∠(x_i, y_j)² of unit vectors: 4 arcsin²(|x − y|/2), beyond a right angle (π − 2 arcsin(|x + y|/2))²."""
    near, far = _sum_of_squares(x, y), _sum_of_squares(x, -y)
    is_near = near <= far  # not minimum(): where both are equal it would average two opposite derivatives
    folded = 4 * smooth.arcsin_squared(jnp.where(is_near, near, far) / 4)
    return jnp.where(is_near, folded, (jnp.pi - smooth.sqrt(folded)) ** 2)


def squared_line_arc(x: Float[Array, "... n d"], y: Float[Array, "... m d"]) -> Float[Array, "... n m"]:
    """The squared angle between the lines of unit vectors, 0..π/2: that of x and the closer of y and −y."""
    near, far = _sum_of_squares(x, y), _sum_of_squares(x, -y)
    return 4 * smooth.arcsin_squared(jnp.where(near <= far, near, far) / 4)


def squared(space: group.Group, x: Any, y: Any, length: float) -> Float[Array, "... n m"]:
    """d(x_i, y_j)² in the group, the translations of rigid motions divided by `length`."""
    if isinstance(space, group.Product):
        parts = [_factors(name, space, points) for name, points in (("x", x), ("y", y))]
        terms = [squared(factor, a, b, length) for factor, a, b in zip(space.factors, *parts, strict=True)]
        return sum(terms[1:], start=terms[0])
    if space in _RIGID:
        (R1, t1), (R2, t2) = _pose("x", space, x), _pose("y", space, y)
        check.same_dtype(x=t1, y=t2)
        rotations = so3 if space is se3 else so2
        return squared_euclidean(t1 / length, t2 / length) + squared(rotations, R1, R2, length)
    if space not in _EVENTS and not isinstance(space, euclidean.Space):
        return _by_broadcast(space, x, y)
    axes = (2,) if space is so2 else (3,) if space is so3 else (4,) if space is su2 else (None,)
    axes = axes * 2 if space in (so2, so3) else axes
    x, y = check.array("x", x, None, *axes), check.array("y", y, None, *axes)
    check.same_dtype(x=x, y=y)
    if space is so3:  # q and −q are one rotation, and the angle between rotations is twice that between quaternions
        return 4 * squared_line_arc(*_checked(charts.quaternion_from_matrix, x=x, y=y))
    if space is so2:
        return squared_arc(*_checked(_complex, x=x, y=y))
    if space is su2:
        require_unit(x=x, y=y)
        return 4 * squared_arc(x, y)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x and y: expected points of one dimension (..., d), got x {x.shape} and y {y.shape}")
    return squared_euclidean(x, y)


def event_dimensions(space: group.Group) -> Any:
    """How many trailing axes make one element of the group, in the group's own pytree."""
    if isinstance(space, group.Product):
        return tuple(event_dimensions(factor) for factor in space.factors)
    if isinstance(space, euclidean.Space):
        return 1
    if space in _EVENTS:
        return _EVENTS[space]
    return jax.tree.map(lambda leaf: leaf.ndim, jax.eval_shape(space.identity))


def known_group(space: Any) -> group.Group:
    """The group itself. Raises TypeError for what lacks the shared vocabulary of `lie.group.Group`."""
    if not isinstance(space, group.Group):
        raise TypeError(f"group: expected a group of lie (so3, se3, ...) or a group.product, got {space!r}")
    return space


def uses_length(space: group.Group) -> bool:
    """Whether the distance weighs rotation against translation."""
    return any(map(uses_length, space.factors)) if isinstance(space, group.Product) else space in _RIGID


def require_unit(**clouds: Array) -> None:
    """Under HAAR_CHECK=1: raises ValueError naming the cloud whose vectors are not of length 1 to 64 eps."""
    for name, x in clouds.items():
        if check.values_are_checked():
            allowed = 64 * float(jnp.finfo(x.dtype).eps)
            check.require(name, jnp.abs(smooth.norm(x) - 1) <= allowed, f"unit vectors (to {allowed:.3g})")


def _sum_of_squares(x: Array, y: Array) -> Array:
    total = (x[..., :, None, 0] - y[..., None, :, 0]) ** 2
    for k in range(1, x.shape[-1]):
        total = total + (x[..., :, None, k] - y[..., None, :, k]) ** 2
    return total


def _complex(R: Array) -> Array:
    """(cos, sin) of plane rotations, those of the closest one where R is rounded."""
    return elementwise.stored(so2.project(R)[..., :, 0])


def _checked(represent: Any, **clouds: Array) -> list[Array]:
    for name, R in clouds.items():
        check.rotation(name, R)
    return [represent(R) for R in clouds.values()]


def _by_broadcast(space: group.Group, x: Any, y: Any) -> Array:
    """For a group not of `lie`: its own `squared_distance` on elements that broadcast."""
    events = event_dimensions(space)
    rows = jax.tree.map(lambda e, leaf: jnp.expand_dims(leaf, leaf.ndim - e), events, x)
    columns = jax.tree.map(lambda e, leaf: jnp.expand_dims(leaf, leaf.ndim - e - 1), events, y)
    return space.squared_distance(rows, columns)


def _pose(name: str, space: Any, T: Any) -> tuple[Array, Array]:
    if not isinstance(T, space.Pose):
        short = space.__name__.split(".")[-1]
        raise TypeError(f"{name}: expected a {short}.Pose(rotation, translation), got {type(T).__name__}")
    size = 3 if space is se3 else 2
    R = check.array(f"{name}.rotation", T.rotation, None, size, size)
    t = check.array(f"{name}.translation", T.translation, None, size)
    check.same_dtype(**{f"{name}.rotation": R, f"{name}.translation": t})
    if R.shape[:-2] != t.shape[:-1]:
        raise ValueError(
            f"{name}: expected rotation and translation with the same leading axes, got {R.shape}, {t.shape}"
        )
    return R, t


def _factors(name: str, space: group.Product, points: Any) -> tuple:
    if not isinstance(points, tuple) or len(points) != len(space.factors):
        found = f"{len(points)} entries" if isinstance(points, tuple) else type(points).__name__
        raise ValueError(f"{name}: expected a tuple of {len(space.factors)} entries, one per factor, got {found}")
    return points
