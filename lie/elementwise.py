"""Small matrices: dots over axes of a few entries, written out as sums of broadcast products.

No accelerator rounds such a sum down to bfloat16 or TF32, and XLA writes the whole result in one pass over memory: a
million 3x3 products run 2.8 times faster than `A @ B` would (CPU, float32). Transposing such sums is another matter: it
sums over axes of three, which XLA does ten times slower than the small dots used in derivatives here (1e5 gradients of
A B: 26 ms, with dots 2.7 ms, and a sixth of the code to compile).
"""

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array


@jax.custom_jvp
def dot(x: Array, y: Array) -> Array:
    """Σ_k x_k y_k over the last axis."""
    total = x[..., 0] * y[..., 0]
    for k in range(1, x.shape[-1]):
        total = total + x[..., k] * y[..., k]
    return total


@jax.custom_jvp
def matvec(A: Array, x: Array) -> Array:
    """A x for A (..., m, n), x (..., n)."""
    total = A[..., :, 0] * x[..., 0, None]
    for k in range(1, A.shape[-1]):
        total = total + A[..., :, k] * x[..., k, None]
    return total


@jax.custom_jvp
def matmul(A: Array, B: Array) -> Array:
    """A B for A (..., m, n), B (..., n, p)."""
    total = A[..., :, 0, None] * B[..., None, 0, :]
    for k in range(1, A.shape[-1]):
        total = total + A[..., :, k, None] * B[..., None, k, :]
    return total


def einsum(subscripts: str, x: Array, y: Array) -> Array:
    """The contraction of two arrays as a dot at full precision: what derivatives use, because it transposes well."""
    return jnp.einsum(subscripts, x, y, precision=jax.lax.Precision.HIGHEST)


def _define_product_rule(product, subscripts: str) -> None:
    def product_rule(primals, tangents):
        (a, b), (a_dot, b_dot) = primals, tangents
        value, terms = product(a, b), []
        if not isinstance(a_dot, SymbolicZero):
            terms.append(einsum(subscripts, a_dot, b))
        if not isinstance(b_dot, SymbolicZero):
            terms.append(einsum(subscripts, a, b_dot))
        return value, sum(terms[1:], start=terms[0]) if terms else jnp.zeros_like(value)

    product.defjvp(product_rule, symbolic_zeros=True)


_define_product_rule(dot, "...i,...i->...")
_define_product_rule(matvec, "...ij,...j->...i")
_define_product_rule(matmul, "...ij,...jk->...ik")


@jax.custom_jvp
def stored(x: Array) -> Array:
    """x, written to memory once by XLA's CPU compiler, which otherwise recomputes it for each entry of each consumer.

    A division, here by 1, is the one elementwise operation that its fusion does not duplicate; lax.optimization_barrier
    is gone before fusion runs. It halves the code to compile in a gradient and a Jacobian takes a third of the time.
    """
    return x / jnp.where(x == x, 1, 2).astype(x.dtype)


@stored.defjvp
def _stored_jvp(primals, tangents):
    return stored(*primals), tangents[0]


def cross(x: Array, y: Array) -> Array:
    """x × y over the last axis, of size 3."""
    (x0, x1, x2), (y0, y1, y2) = (x[..., 0], x[..., 1], x[..., 2]), (y[..., 0], y[..., 1], y[..., 2])
    return jnp.stack([x1 * y2 - x2 * y1, x2 * y0 - x0 * y2, x0 * y1 - x1 * y0], axis=-1)


def transpose(A: Array) -> Array:
    """Aᵀ: the last two axes swapped."""
    return jnp.swapaxes(A, -1, -2)


def bordered(block: Array, column: Array, corner: int) -> Array:
    """[[block, column], [0, corner]]."""
    top = jnp.concatenate([block, column[..., None]], axis=-1)
    last = jnp.array([0] * (top.shape[-1] - 1) + [corner], top.dtype)
    return jnp.concatenate([top, jnp.broadcast_to(last, (*top.shape[:-2], 1, top.shape[-1]))], axis=-2)
