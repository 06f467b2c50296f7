"""Cholesky factors of small symmetric matrices, unrolled: elementwise, so they batch and export everywhere."""

import jax.numpy as jnp
from jaxtyping import Array


def factor(A: Array) -> Array:
    """The lower triangular L with A = L Lᵀ, A (..., n, n); NaN where A is not positive definite."""
    n = A.shape[-1]
    rows: list[list[Array]] = []
    for i in range(n):
        row: list[Array] = []
        for j in range(i + 1):
            rest = A[..., i, j]
            for k in range(j):
                rest = rest - row[k] * (rows[j][k] if j < i else row[k])
            row.append(jnp.sqrt(rest) if i == j else rest / rows[j][j])
        rows.append(row)
    zero = jnp.zeros_like(A[..., 0, 0])
    return jnp.stack([jnp.stack(row + [zero] * (n - len(row)), axis=-1) for row in rows], axis=-2)


def solve(L: Array, x: Array) -> Array:
    """L⁻¹ x by forward substitution, L (..., n, n), x (..., n)."""
    solution: list[Array] = []
    for i in range(L.shape[-1]):
        rest = x[..., i]
        for j in range(i):
            rest = rest - L[..., i, j] * solution[j]
        solution.append(rest / L[..., i, i])
    return jnp.stack(solution, axis=-1)


def half_log_determinant(L: Array) -> Array:
    """½ log det A = Σ log L_ii."""
    return jnp.sum(jnp.log(jnp.diagonal(L, axis1=-2, axis2=-1)), axis=-1)
