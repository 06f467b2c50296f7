"""Letting a loop's operations run on all cores of a CPU.

From jax 0.12 on, XLA compiles a loop into one function, on one core, unless something in it cannot be: a sort, say. For
small problems that saves most of the time, which would go into starting operations; large ones lose the other cores.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_jvp
def shared_out(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x itself, at least one entry, the first by way of a sort: a loop with it is compiled operation by operation."""
    if jax.default_backend() != "cpu":
        return x
    first, others = x.reshape(-1)[:1], x.reshape(-1)[1:]
    return jnp.concatenate([jnp.sort(jnp.concatenate([first, first]))[:1], others]).reshape(x.shape)


shared_out.defjvp(lambda primals, tangents: (shared_out(*primals), tangents[0]))
