"""How samples and weights are laid out: the sample axis comes first, batch axes follow, then the axes of the element.

`density.sample((n,), key=key)` has this form, and it needs no knowledge of how many axes an element has, so it serves
matrices, poses and products alike. Weights are `(n,)` or `(n, *batch)`, non-negative; their scale does not matter.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from lie import check, smooth
from lie import group as groups


def tangent_of(group: groups.Group, samples: groups.Element) -> jax.ShapeDtypeStruct:
    """Shape (n, *batch, dimension) and dtype of the tangent vectors of samples; raises ValueError without samples."""
    tangent = jax.eval_shape(group.local, samples, samples)
    if len(tangent.shape) < 2 or tangent.shape[0] == 0:
        raise ValueError(f"samples: expected shape (n >= 1, *batch, *element), got tangent vectors {tangent.shape}")
    return tangent


def normalised(weights: ArrayLike | None, tangent: jax.ShapeDtypeStruct) -> Float[Array, "n *batch"]:
    """Weights that sum to 1 over the samples, one axis for each batch axis of the samples or more; None: equal."""
    count, batch_axes = tangent.shape[0], len(tangent.shape) - 2
    if weights is None:
        return jnp.full((count, *(1,) * batch_axes), 1 / count, tangent.dtype)
    weights = check.array("weights", weights)
    if weights.ndim == 0 or weights.shape[0] != count:
        raise ValueError(f"weights: expected shape ({count},) or ({count}, *batch), got {weights.shape}")
    if weights.dtype != tangent.dtype:
        raise TypeError(f"weights: expected dtype {tangent.dtype} of the samples, got {weights.dtype}")
    check.require("weights", weights >= 0, "weights >= 0")
    weights = weights.reshape(count, *(1,) * (batch_axes - weights.ndim + 1), *weights.shape[1:])
    return smooth.divide(weights, jnp.sum(weights, axis=0))


def align(samples: groups.Element, tangent: jax.ShapeDtypeStruct, batch_axes: int) -> groups.Element:
    """Samples with axes of length 1 behind the sample axis, until they have `batch_axes` batch axes."""
    extra = batch_axes - (len(tangent.shape) - 2)
    return jax.tree.map(lambda x: x.reshape(x.shape[0], *(1,) * extra, *x.shape[1:]), samples) if extra > 0 else samples


def weighted_sum(weights: Float[Array, "n *batch"], values: Float[Array, "..."]) -> Float[Array, "..."]:
    """Σ_i w_i v_i over the first axis, for values (n, *batch, ...) of any number of trailing axes."""
    return jnp.sum(weights.reshape(*weights.shape, *(1,) * (values.ndim - weights.ndim)) * values, axis=0)


def covariance(weights: Float[Array, "n *#batch"], tangents: Float[Array, "n *#batch d"]) -> Float[Array, "... d d"]:
    """Σ_i w_i v_i v_iᵀ: the second moment about the base point of the tangents."""
    return weighted_sum(weights, tangents[..., :, None] * tangents[..., None, :])


def tangents(group: groups.Group, mean: groups.Element, samples: groups.Element) -> Float[Array, "n *batch d"]:
    """log(m⁻¹ x_i), for a mean (*batch, *element) and samples (n, *batch, *element) whose batches broadcast."""

    def widen(element: groups.Element, other: groups.Element) -> groups.Element:
        return jax.tree.map(lambda a, b: jnp.broadcast_to(a, jnp.broadcast_shapes(a.shape, b.shape)), element, other)

    return group.local(widen(mean, samples), widen(samples, mean))
