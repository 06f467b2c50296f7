"""Letting a loop's operations run on all cores of a CPU, or be compiled into one function.

From jax 0.12 on, XLA compiles a loop into one function, on one core, unless something in it cannot be: a sort, or a
maximum or sum along an axis of a matrix by itself, which it takes from a library. For small problems one function saves
most of the time, which would go into starting operations (256 problems of 64 x 64 in a row: 7.7 to 5.9 ms); large ones
lose the other cores.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_IN_ONE_FUNCTION = 2**16  # entries, up to which a matrix is reduced without the library; from 2^19 on that costs time


@jax.custom_jvp
def shared_out(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x itself, at least one entry, the first by way of a sort: a loop with it is compiled operation by operation."""
    if jax.default_backend() != "cpu":
        return x
    first, others = x.reshape(-1)[:1], x.reshape(-1)[1:]
    return jnp.concatenate([jnp.sort(jnp.concatenate([first, first]))[:1], others]).reshape(x.shape)


shared_out.defjvp(lambda primals, tangents: (shared_out(*primals), tangents[0]))


def largest(x: Float[Array, "n m"], axis: int) -> Float[Array, "..."]:
    """The maxima along an axis, in the function of the loop around where x is small; NaN counts for nothing there.

    Several devices can share out a maximum, but no reduction of ours.
    """
    if x.size > _IN_ONE_FUNCTION or jax.default_backend() != "cpu" or jax.device_count() > 1:
        return jnp.max(x, axis=axis)
    return jax.lax.reduce(x, jnp.array(-jnp.inf, x.dtype), lambda a, b: jnp.where(a > b, a, b), (axis,))


def total(x: Float[Array, "n m"], axis: int) -> Float[Array, "..."]:
    """The sums along an axis, likewise."""
    if x.size > _IN_ONE_FUNCTION:
        return jnp.sum(x, axis=axis)
    ones = jnp.ones(x.shape[axis], x.dtype)
    return jnp.tensordot(x, ones, (axis, 0), precision=jax.lax.Precision.HIGHEST)
