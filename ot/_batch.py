"""One problem's solver over leading batch axes: each element stops on its own and sees no neighbour."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def over(solver: Callable, arrays: Sequence[Array], event_axes: Sequence[int]) -> Any:
    """solver(*arrays) for each element of the batch that leading axes broadcast to; array k has event_axes[k] others.

    A `lax.while_loop` within runs until the last element is done and leaves those that are done as they are.
    """
    events = [x.shape[x.ndim - axes :] for x, axes in zip(arrays, event_axes, strict=True)]
    batch = jnp.broadcast_shapes(*(x.shape[: x.ndim - len(event)] for x, event in zip(arrays, events, strict=True)))
    for _ in batch:
        solver = jax.vmap(solver)
    return solver(*(jnp.broadcast_to(x, (*batch, *event)) for x, event in zip(arrays, events, strict=True)))
