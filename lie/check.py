"""What a caller handed in: shape and dtype are always checked, values where HAAR_CHECK=1 and the array is concrete.

Under jit the checks of shape and dtype run while tracing, so they cost nothing. Each error names the argument, what it
was and what was expected.
"""

import os

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike


def values_are_checked() -> bool:
    """True if the environment asks for value checks: HAAR_CHECK=1."""
    return os.environ.get("HAAR_CHECK") == "1"


def array(name: str, x: ArrayLike, *trailing: int | None) -> Array:
    """`x` as a floating-point array whose last axes have the sizes `trailing` (None: any size).

    Raises TypeError for what is not a real floating-point array, ValueError for a wrong shape and, under HAAR_CHECK=1,
    for a NaN or an infinity.
    """
    try:
        x = jnp.asarray(x)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name}: expected an array of floats with shape {_spell(trailing)}, got {type(x).__name__}"
        ) from error
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name}: expected a floating-point array with shape {_spell(trailing)}, got {x.dtype} with shape {x.shape}"
            f"; convert it, for example {name}.astype(jnp.float32)"
        )
    sizes = x.shape[x.ndim - len(trailing) :] if x.ndim >= len(trailing) else None
    if sizes is None or any(want is not None and have != want for have, want in zip(sizes, trailing, strict=True)):
        raise ValueError(f"{name}: expected shape {_spell(trailing)}, got {x.shape}")
    if values_are_checked():
        require(name, jnp.isfinite(x), "only finite values")
    return x


def same_dtype(**arrays: Array) -> None:
    """Raises TypeError unless all named arrays have one dtype: silent promotion would break dtype out = dtype in."""
    if len({x.dtype for x in arrays.values()}) > 1:
        found = ", ".join(f"{name} {x.dtype}" for name, x in arrays.items())
        raise TypeError(f"expected one dtype for all arguments, got {found}")


def rotation(name: str, R: Array) -> None:
    """Under HAAR_CHECK=1: raises ValueError unless R^T R = I and det R = +1 to 64 eps (orthogonal, right-handed)."""
    if values_are_checked() and not isinstance(R, Tracer):
        wide, tolerance = np.asarray(R, np.float64), 64 * float(jnp.finfo(R.dtype).eps)
        defect = np.abs(np.swapaxes(wide, -1, -2) @ wide - np.eye(wide.shape[-1])).max(initial=0.0)
        if not defect <= tolerance:
            raise ValueError(
                f"{name}: expected rotation matrices, but R^T R differs from the identity by {defect:.3g} "
                f"(allowed {tolerance:.3g} for {R.dtype}); project it first"
            )
        if not (np.linalg.det(wide) > 0).all():
            raise ValueError(f"{name}: expected rotation matrices (determinant +1), got a reflection (determinant -1)")


def degree(name: str, value: int) -> int:
    """A degree l of a representation: TypeError unless an int, ValueError if negative."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < 0:
        raise ValueError(f"{name}: expected a degree >= 0, got {value}")
    return int(value)


def require(name: str, holds: Array, expectation: str) -> None:
    """Under HAAR_CHECK=1: raises ValueError if any entry of the concrete boolean array `holds` is false."""
    if values_are_checked() and not isinstance(holds, Tracer) and not bool(np.asarray(holds).all()):
        bad = np.argwhere(~np.atleast_1d(np.asarray(holds)))
        raise ValueError(
            f"{name}: expected {expectation}; {len(bad)} entries are not, the first at index {tuple(bad[0].tolist())}"
        )


def _spell(trailing: tuple[int | None, ...]) -> str:
    return "(" + ", ".join(["...", *("any" if size is None else str(size) for size in trailing)]) + ")"
