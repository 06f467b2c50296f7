"""Single arguments of the solvers: errors name the argument, for values too where arrays are concrete."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float

from lie import check


def concrete(*arguments: Any) -> bool:
    """Whether all values can be looked at: no array among the arguments is traced."""
    return not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments))


def require(name: str, holds: Array, expectation: str) -> None:
    """Raises ValueError if any entry of the concrete boolean array `holds` is false; nothing for a traced one."""
    if concrete(holds) and not bool(np.asarray(holds).all()):
        raise ValueError(f"{name}: expected {expectation}")


def scalar(name: str, value: ArrayLike | None, dtype: Any, positive: bool = True) -> Array:
    """A number, or one for each problem of a batch. Raises ValueError unless finite and > 0 (>= 0)."""
    return jnp.asarray(number(name, value, dtype, positive))


def number(name: str, value: ArrayLike | None, dtype: Any, positive: bool = True) -> Array | np.ndarray:
    """The same, left to NumPy where JAX does not hold it yet: one operation costs as much as a small solve."""
    on_host = isinstance(value, bool | int | float | np.ndarray | np.generic)
    try:
        found = np.asarray(value, dtype) if on_host else jnp.asarray(value, dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from error
    if concrete(found):
        held = np.asarray(found, np.float64)
        if not (np.isfinite(held) & ((held > 0) if positive else (held >= 0))).all():
            raise ValueError(f"{name}: expected a finite number {'> 0' if positive else '>= 0'}, got {value}")
    return found


def weights(name: str, a: ArrayLike | None, size: int, dtype: Any) -> Float[Array, "..."]:
    """Probabilities (*batch, size); None: uniform. Raises TypeError and ValueError for what is no such array."""
    if size == 0:
        raise ValueError(f"{name}: expected a cloud of at least one point, got none")
    if a is None:
        return jnp.full((size,), 1 / size, dtype)
    a = check.array(name, a, size)
    if a.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype} of the cost, got {a.dtype}")
    require(name, jnp.isfinite(a) & (a >= 0), "finite weights >= 0")
    total = jnp.sum(a, axis=-1)
    require(name, jnp.abs(total - 1) <= 64 * float(jnp.finfo(dtype).eps) * size**0.5, f"a sum of 1, got {total}")
    return a


def points(name: str, x: Any) -> Any:
    """x itself, an array of points or a pytree of them. Raises ValueError for a NaN or an infinity."""
    for leaf in jax.tree.leaves(x):
        if jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
            require(name, jnp.isfinite(leaf), "finite points; some are NaN or infinite")
    return x


def cost(name: str, C: Array) -> Array:
    """C itself. Raises ValueError for NaN and infinity, which points that hold them or overflow give."""
    require(name, jnp.isfinite(C), "points whose cost is finite; it has NaN or infinite entries")
    return C
