"""Functions that compute in float64 whatever the caller's setting is, under every order of vmap, jit and checkpoint."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
from jax import custom_batching

from ot import _batch


def inside(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, traced and batched where float64 is enabled. Its arguments are arrays, and its results narrow.

    A vmap around `jax.checkpoint` applies its rules long after the call, where float64 may be off: they would mix the
    two types. So the function brings its own rule, which enables float64 again. Not to be differentiated: the callers
    have rules of their own.
    """

    @wraps(function)
    def traced(*arguments: Any) -> Any:
        with jax.enable_x64(True):
            return function(*arguments)

    call = custom_batching.custom_vmap(traced)

    @call.def_vmap
    def _(size: int, batched: Any, *arguments: Any) -> tuple[Any, Any]:
        found = inside(_batch.each(function, tuple(batched)))(*arguments)
        return found, jax.tree.map(lambda _: True, found)

    return call
