"""R^n under addition: elements and tangent vectors are arrays (*batch, n), x acts by translation.

The module takes arrays of any n, so its `dimension` is None; `identity` and `sample` take the whole shape, n included.
`Space(n)` is the same group with n fixed: it has the vocabulary of every other group.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, elementwise, smooth

dimension = None


def identity(shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """Zeros of the given shape."""
    return jnp.zeros(shape, dtype)


def hat(v: Float[ArrayLike, "*batch n"]) -> Float[Array, "*batch n+1 n+1"]:
    """The matrix [[0, v], [0, 0]], whose matrix exponential is the translation by v."""
    v = check.array("v", v, None)
    return elementwise.bordered(jnp.zeros((*v.shape, v.shape[-1]), v.dtype), v, 0)


def vee(matrix: Float[ArrayLike, "*batch m m"]) -> Float[Array, "*batch m-1"]:
    """The v of a matrix [[0, v], [0, 0]]: the inverse of `hat`."""
    return check.array("matrix", matrix, None, None)[..., :-1, -1]


def exp(v: Float[ArrayLike, "*batch n"]) -> Float[Array, "*batch n"]:
    """v itself."""
    return check.array("v", v, None)


def log(x: Float[ArrayLike, "*batch n"]) -> Float[Array, "*batch n"]:
    """x itself."""
    return check.array("x", x, None)


def compose(x1: Float[ArrayLike, "*#batch n"], x2: Float[ArrayLike, "*#batch n"]) -> Float[Array, "... n"]:
    """x1 + x2."""
    x1 = check.array("x1", x1, None)
    x2 = check.array("x2", x2, x1.shape[-1])
    check.same_dtype(x1=x1, x2=x2)
    return x1 + x2


def inverse(x: Float[ArrayLike, "*batch n"]) -> Float[Array, "*batch n"]:
    """−x."""
    return -check.array("x", x, None)


act = compose


def adjoint(x: Float[ArrayLike, "*batch n"]) -> Float[Array, "*batch n n"]:
    """The identity matrix: the group is commutative."""
    x = check.array("x", x, None)
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), (*x.shape, x.shape[-1]))


left_jacobian = adjoint
right_jacobian = adjoint
left_jacobian_inverse = adjoint
right_jacobian_inverse = adjoint
retract = compose


def local(x1: Float[ArrayLike, "*#batch n"], x2: Float[ArrayLike, "*#batch n"]) -> Float[Array, "... n"]:
    """x2 − x1: the step from x1 to x2, the inverse of `retract`."""
    return compose(x2, inverse(x1))


def distance(x1: Float[ArrayLike, "*#batch n"], x2: Float[ArrayLike, "*#batch n"]) -> Float[Array, "..."]:
    """|x2 − x1|; at x1 = x2 the gradient is 0 by choice. Use `squared_distance` for second derivatives there."""
    return smooth.norm(local(x1, x2))


def squared_distance(x1: Float[ArrayLike, "*#batch n"], x2: Float[ArrayLike, "*#batch n"]) -> Float[Array, "..."]:
    """|x2 − x1|²."""
    step = local(x1, x2)
    return jnp.sum(step * step, axis=-1)


def interpolate(
    x1: Float[ArrayLike, "*#batch n"], x2: Float[ArrayLike, "*#batch n"], t: Float[ArrayLike, "*#batch"]
) -> Float[Array, "... n"]:
    """x1 + t (x2 − x1): a straight line from x1 (t = 0) to x2 (t = 1); any real t."""
    step = local(x1, x2)
    t = jnp.asarray(t, step.dtype)
    return compose(x1, t[..., None] * step)


def sample(shape: tuple[int, ...] = (), dtype: Any = jnp.float32, *, key: PRNGKeyArray) -> Float[Array, "..."]:
    """Standard normal vectors of the given shape (the group has no uniform probability)."""
    return jax.random.normal(key, shape, dtype)


def project(x: Float[ArrayLike, "*batch n"]) -> Float[Array, "*batch n"]:
    """x itself."""
    return check.array("x", x, None)


@dataclass(frozen=True)
class Space:
    """R^n for one n: `identity(shape)` and `sample(shape)` have shape (*shape, n). Raises ValueError for n < 1."""

    dimension: int

    hat = staticmethod(hat)
    vee = staticmethod(vee)
    exp = staticmethod(exp)
    log = staticmethod(log)
    compose = staticmethod(compose)
    inverse = staticmethod(inverse)
    act = staticmethod(act)
    adjoint = staticmethod(adjoint)
    left_jacobian = staticmethod(left_jacobian)
    right_jacobian = staticmethod(right_jacobian)
    left_jacobian_inverse = staticmethod(left_jacobian_inverse)
    right_jacobian_inverse = staticmethod(right_jacobian_inverse)
    retract = staticmethod(retract)
    local = staticmethod(local)
    distance = staticmethod(distance)
    squared_distance = staticmethod(squared_distance)
    interpolate = staticmethod(interpolate)
    project = staticmethod(project)

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise ValueError(f"dimension: expected an integer >= 1, got {self.dimension}")

    def identity(self, shape: tuple[int, ...] = (), dtype: Any = jnp.float32) -> Float[Array, "..."]:
        """Zeros (*shape, n)."""
        return identity((*shape, self.dimension), dtype)

    def sample(
        self, shape: tuple[int, ...] = (), dtype: Any = jnp.float32, *, key: PRNGKeyArray
    ) -> Float[Array, "..."]:
        """Standard normal vectors (*shape, n)."""
        return sample((*shape, self.dimension), dtype, key=key)
