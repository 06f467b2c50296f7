"""Frame averaging: any network made invariant or equivariant by a mean over the few frames of a cloud's principal axes.

The cheap alternative to layers that commute by themselves: 4 calls of an ordinary network for rotations, 8 for O(3).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from lie import check, elementwise, smooth

_SWEEPS = 6  # Jacobi's method on 3 x 3 matrices: quadratic convergence, 5 sweeps leave nothing in float64


class Frames(NamedTuple):
    """`axes` (*batch, frames, 3, 3), columns the axes; `center` (*batch, 3); `gap` (*batch,), see `frames`."""

    axes: Array
    center: Array
    gap: Array


def frames(
    x: Float[ArrayLike, "*batch n 3"], *, group: str = "SO(3)", mask: Bool[ArrayLike, "*batch n"] | None = None
) -> Frames:
    """The principal axes of the points with every choice of signs: 4 frames of determinant +1, for "O(3)" all 8.

    Turning the points by g turns the set of frames by g; the center, their mean, moves along. `gap` is the least
    difference of neighbouring eigenvalues of the covariance, over the largest: an axis is known to about eps/gap.
    Where the gap is 0 the axes of a repeated eigenvalue are no function of the points (no choice is: Dym et al. 2024);
    some orthonormal axes come out, finite, with derivatives 0 among the repeated ones, but means over them are not
    equivariant unless the points themselves have the symmetry, as points on a line do. Look at `gap`.
    `mask` is False for points that do not count. An orthogonal matrix to 4 eps. Source: Puny et al. 2022, section 2.
    """
    x = check.array("x", x, None, 3)
    if group not in _SIGNS:
        raise ValueError(f"group: expected one of {list(_SIGNS)}, got {group!r}")
    weight = jnp.ones(x.shape[:-1], x.dtype) if mask is None else jnp.asarray(mask).astype(x.dtype)
    if weight.shape != x.shape[:-1]:
        raise ValueError(f"mask: expected shape {x.shape[:-1]}, got {weight.shape}")
    count = jnp.maximum(jnp.sum(weight, axis=-1), 1)[..., None]
    kept = jnp.where(weight[..., None] > 0, x, 0)
    center = jnp.sum(kept, axis=-2) / count
    offset = (kept - center[..., None, :]) * weight[..., None]
    covariance = jnp.stack([jnp.sum(offset[..., i, None] * offset, axis=-2) / count for i in range(3)], axis=-2)
    values, axes = principal_axes(covariance)
    signs = jnp.asarray(_SIGNS[group], x.dtype)
    if group == "SO(3)":
        first, second, third = (axes[..., k] for k in range(3))
        handed = jax.lax.stop_gradient(jnp.sign(elementwise.dot(elementwise.cross(first, second), third)))
        axes = jnp.stack([first, second, third * handed[..., None]], axis=-1)
    gap = smooth.divide(jnp.min(values[..., 1:] - values[..., :-1], axis=-1), values[..., 2])
    return Frames(axes[..., None, :, :] * signs[:, None, :], center, gap)


_SIGNS = {
    "SO(3)": np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]),
    "O(3)": np.array([[a, b, c] for a in (1, -1) for b in (1, -1) for c in (1, -1)]),
}


def average(
    function: Callable[[Array], Array],
    x: Float[ArrayLike, "*batch n 3"],
    *,
    group: str = "SO(3)",
    output: str = "scalars",
    mask: Bool[ArrayLike, "*batch n"] | None = None,
) -> Array:
    """The mean over frames A of function((x − center) A), its result turned back if it is made of vectors.

    output "scalars": invariant under rotations (reflections, too, for "O(3)") and shifts. "vectors": the last axis of
    the result has size 3 and turns with the points; "points": it moves with them, too; the leading axes of the result
    then begin with *batch. `function` takes (*batch, n, 3) and is called under vmap. Exact to eps/gap, and
    discontinuous where the gap of the principal axes vanishes: see `frames`.
    Source: Puny et al. 2022, eq. 2 and 3.
    """
    x = check.array("x", x, None, 3)
    if output not in ("scalars", "vectors", "points"):
        raise ValueError(f"output: expected 'scalars', 'vectors' or 'points', got {output!r}")
    found = frames(x, group=group, mask=mask)
    axes = jnp.moveaxis(found.axes, -3, 0)
    y = jax.vmap(lambda A: function(elementwise.matmul(x - found.center[..., None, :], A)))(axes)
    if output == "scalars":
        return jnp.mean(y, axis=0)
    if y.shape[-1] != 3 or y.shape[1 : x.ndim - 1] != x.shape[:-2]:
        raise ValueError(f"function: expected a result of shape {(*x.shape[:-2], '...', 3)}, got {y.shape[1:]}")
    between = y.ndim - x.ndim  # axes of the result between *batch and the last
    spread = lambda a, trailing: a.reshape(*a.shape[: a.ndim - trailing], *[1] * between, *a.shape[a.ndim - trailing :])
    mean = jnp.mean(elementwise.matvec(spread(axes, 2), y), axis=0)
    return mean + spread(found.center, 1) if output == "points" else mean


@jax.custom_jvp
def principal_axes(A: Float[Array, "*batch 3 3"]) -> tuple[Float[Array, "*batch 3"], Float[Array, "*batch 3 3"]]:
    """Eigenvalues, ascending, and eigenvectors (columns) of symmetric A, by Jacobi's method: exports to any platform.

    Absolute error of the values <= 4 eps of the largest; A V = V Λ to the same. Derivatives are exact where eigenvalues
    differ; between equal ones the vectors' are 0 by choice.
    """
    scale = jnp.max(jnp.abs(A), axis=(-2, -1), keepdims=True)
    scale = jnp.where(scale > 0, scale, 1)
    M, V = A / scale, jnp.broadcast_to(jnp.eye(3, dtype=A.dtype), A.shape)

    def sweep(_, state: tuple[Array, Array]) -> tuple[Array, Array]:
        M, V = state
        for p, q in ((0, 1), (0, 2), (1, 2)):
            a, d = M[..., p, q], M[..., q, q] - M[..., p, p]
            # tan of the angle that makes M_pq vanish, the smaller of two: no difference of nearly equal numbers.
            t = smooth.divide(2 * a * jnp.where(d < 0, -1, 1), jnp.abs(d) + jnp.sqrt(d * d + 4 * a * a))
            c = 1 / jnp.sqrt(1 + t * t)
            J = jnp.broadcast_to(jnp.eye(3, dtype=A.dtype), A.shape)
            J = J.at[..., p, p].set(c).at[..., q, q].set(c).at[..., p, q].set(t * c).at[..., q, p].set(-t * c)
            M = elementwise.matmul(jnp.swapaxes(J, -1, -2), elementwise.matmul(M, J))
            V = elementwise.matmul(V, J)
        return M, V

    M, V = jax.lax.fori_loop(0, _SWEEPS, sweep, (M, V))
    values = jnp.stack([M[..., k, k] for k in range(3)], axis=-1)
    order = jnp.argsort(values, axis=-1)
    values = jnp.take_along_axis(values, order, axis=-1) * scale[..., 0]
    return values, jnp.take_along_axis(V, order[..., None, :], axis=-1)


@principal_axes.defjvp
def _principal_axes_jvp(primals, tangents):
    (A,), (A_dot,) = primals, tangents
    values, V = principal_axes(A)
    moved = elementwise.matmul(
        jnp.swapaxes(V, -1, -2), elementwise.matmul((A_dot + jnp.swapaxes(A_dot, -1, -2)) / 2, V)
    )
    apart = values[..., None, :] - values[..., :, None]
    values_dot = jnp.stack([moved[..., k, k] for k in range(3)], axis=-1)
    return (values, V), (values_dot, elementwise.matmul(V, smooth.divide(moved, apart)))
