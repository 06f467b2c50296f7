"""Singular value decomposition of 3x3 matrices with rotations on both sides: elementwise, so it exports everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lie import check, elementwise, smooth

_SWEEPS = 6  # each squares the off-diagonal part; float64 is done after five


def svd(F: Float[ArrayLike, "*batch 3 3"]) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
    """U, s, V with F = U diag(s) Vᵀ, det U = det V = +1 and s1 >= s2 >= |s3|: the sign of det F is that of s3.

    One-sided Jacobi: a diagonal F comes back without rounding, |F − U diag(s) Vᵀ| <= 10 eps s1, and U and V are
    orthogonal to 10 eps. They are not functions of F where singular values repeat: differentiating raises
    NotImplementedError; differentiate functions of F that do not depend on the choice by their own rules.
    """
    return _svd(check.array("F", F, 3, 3))


@jax.custom_jvp
def _svd(F: Array) -> tuple[Array, Array, Array]:
    largest = jnp.max(jnp.abs(F), axis=(-2, -1))
    scale = jnp.ldexp(jnp.ones_like(largest), jnp.frexp(largest)[1])  # a power of two: scaling rounds nothing
    A = elementwise.transpose(F / scale[..., None, None])  # rows are the columns of F
    V = jnp.broadcast_to(jnp.eye(3, dtype=F.dtype), A.shape)

    def sweep(_, state):
        A, V = state
        for i, j in ((0, 1), (0, 2), (1, 2)):
            A, V = _rotate(A, V, i, j)
        return A, V

    A, V = jax.lax.fori_loop(0, _SWEEPS, sweep, (A, V))
    order = jnp.argsort(-elementwise.dot(A, A), axis=-1)[..., None]
    A, V = jnp.take_along_axis(A, order, axis=-2), jnp.take_along_axis(V, order, axis=-2)
    v1, v2 = V[..., 0, :], V[..., 1, :]
    v3 = elementwise.cross(v1, v2)
    third = A[..., 2, :] * jnp.sign(elementwise.dot(v3, V[..., 2, :]))[..., None]
    s1 = smooth.norm(A[..., 0, :])
    s2 = jnp.minimum(smooth.norm(A[..., 1, :]), s1)
    first_axis = jnp.broadcast_to(np.array([1, 0, 0]).astype(F.dtype), v1.shape)
    u1 = _unit(A[..., 0, :], first_axis)
    least = jax.nn.one_hot(jnp.argmin(jnp.abs(u1), axis=-1), 3, dtype=F.dtype)
    u2 = _unit(A[..., 1, :], _unit(elementwise.cross(u1, least), first_axis))
    u3 = elementwise.cross(u1, u2)
    s3 = jnp.clip(elementwise.dot(u3, third), -s2, s2)
    U, V = jnp.stack([u1, u2, u3], axis=-1), jnp.stack([v1, v2, v3], axis=-1)
    return U, scale[..., None] * jnp.stack([s1, s2, s3], axis=-1), V


@_svd.defjvp
def _svd_jvp(primals, tangents):
    raise NotImplementedError("U and V of svd3.svd have no derivative where singular values repeat")


def _rotate(A: Array, V: Array, i: int, j: int) -> tuple[Array, Array]:
    """The plane rotation that makes rows i and j of A orthogonal."""
    a, b = A[..., i, :], A[..., j, :]
    product = elementwise.dot(a, b)
    zeta = smooth.divide(elementwise.dot(b, b) - elementwise.dot(a, a), 2 * product)
    tangent = jnp.where(zeta >= 0, 1, -1) / (jnp.abs(zeta) + jnp.hypot(jnp.ones_like(zeta), zeta))
    tangent = jnp.where(product == 0, 0, tangent)
    cosine = jax.lax.rsqrt(1 + tangent * tangent)[..., None]
    sine = cosine * tangent[..., None]

    def turned(M):
        x, y = M[..., i, :], M[..., j, :]
        return M.at[..., i, :].set(cosine * x - sine * y).at[..., j, :].set(sine * x + cosine * y)

    return turned(A), turned(V)


def _unit(x: Array, otherwise: Array) -> Array:
    length = smooth.norm(x, keepdims=True)
    return jnp.where(length > 0, x / jnp.where(length > 0, length, 1), otherwise)
