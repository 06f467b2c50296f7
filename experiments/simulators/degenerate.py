"""How derivatives of three projections onto SO(3) behave near matrices where singular values meet or columns align."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lie import charts, so3

GAPS = (1.0, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 0.0)
KINDS = {
    "repeated": "s₁ − s₂",
    "flat": "s₂ + s₃",
    "parallel": "angle of columns 1, 2 (rad)",
}  # with what the gap is


def gram_schmidt(M: Array) -> Array:
    """The rotation by Gram-Schmidt on the first two columns."""
    return charts.matrix_from_6d(jnp.concatenate([M[..., :, 0], M[..., :, 1]], axis=-1))


def textbook_svd(M: Array) -> Array:
    """U diag(1, 1, det UVᵀ) Vᵀ by the library's SVD: its derivative divides by s_i² − s_j²."""
    U, _, Vt = jnp.linalg.svd(M)
    sign = jnp.linalg.det(U) * jnp.linalg.det(Vt)
    return (U * jnp.stack([jnp.ones_like(sign), jnp.ones_like(sign), sign], axis=-1)[..., None, :]) @ Vt


PROJECTIONS = {"textbook": textbook_svd, "ours": so3.project, "gram_schmidt": gram_schmidt}


def matrices(kind: str, gap: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """Matrices (count, 3, 3) at distance `gap` from one with equal singular values, none unique, parallel columns."""
    if kind == "parallel":
        q, _ = np.linalg.qr(rng.standard_normal((count, 3, 3)))
        a, b, c = np.moveaxis(q, -1, 0)
        c = c * np.linalg.det(q)[:, None]
        return np.stack([a, math.cos(gap) * a + math.sin(gap) * b, c], axis=-1)
    s = np.array([2.0, 2.0 - gap, 0.4]) if kind == "repeated" else np.array([1.0, 0.7, gap - 0.7])
    U, V = (np.linalg.qr(rng.standard_normal((count, 3, 3)))[0] for _ in range(2))
    U, V = (A * np.linalg.det(A)[:, None, None] for A in (U, V))
    return (U * s) @ np.swapaxes(V, -1, -2)


def exact_jacobian(M: np.ndarray) -> np.ndarray:
    """∂ project(M)_ij/∂M_kl in float64: U Ω Vᵀ with Ω_ij = (A_ij − A_ji)/(s_i + s_j), A = UᵀdM V, signed s."""
    U, s, Vt = np.linalg.svd(M.astype(np.float64))
    sign = np.sign(np.linalg.det(U) * np.linalg.det(Vt))
    U[..., 2] *= sign[..., None]
    s[..., 2] *= sign
    A = np.einsum("...ki,...jl->...klij", U, Vt)  # A_ij of dM = E_kl
    sums = s[..., :, None] + s[..., None, :] + np.eye(3)
    omega = (A - np.swapaxes(A, -1, -2)) / sums[..., None, None, :, :]
    return np.einsum("...ai,...klij,...jb->...abkl", U, omega, Vt)


def measure(count: int, rng: np.random.Generator) -> dict[str, Any]:
    """Largest norm and largest relative error of float32 Jacobians, by kind of degeneracy and gap.

    Errors against `exact_jacobian`, infinite where something is not finite; at the identity, what share is finite.
    """
    cases = [(kind, gap) for kind in KINDS for gap in GAPS]
    M = np.concatenate([matrices(kind, gap, count, rng) for kind, gap in cases]).astype(np.float32)
    every = jnp.asarray(np.concatenate([M, np.eye(3, dtype=np.float32)[None]]))
    found = jax.jit(lambda M: {name: jax.vmap(jax.jacfwd(p))(M) for name, p in PROJECTIONS.items()})(every)
    exact = exact_jacobian(M)
    size = lambda J: np.sqrt(np.sum(J * J, axis=(-4, -3, -2, -1)))
    worst = lambda x: np.nan_to_num(x, nan=np.inf).reshape(len(KINDS), len(GAPS), count).max(axis=-1)
    metrics: dict[str, Any] = {}
    for name in PROJECTIONS:
        J = np.asarray(found[name], np.float64)
        metrics[f"{name}_jacobian_norm"] = worst(size(J[:-1]))
        metrics[f"{name}_finite_at_identity"] = np.isfinite(J[-1]).mean()
        if name != "gram_schmidt":
            metrics[f"{name}_jacobian_error"] = worst(size(J[:-1] - exact) / size(exact))
    return metrics
