"""The Wasserstein distance of Gaussians (Bures); its derivatives stay finite at equal and at singular matrices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lie import check, elementwise, smooth
from ot import _inputs


def gaussian(
    m1: Float[ArrayLike, "... d"],
    S1: Float[ArrayLike, "... d d"],
    m2: Float[ArrayLike, "... d"],
    S2: Float[ArrayLike, "... d d"],
) -> Float[Array, "..."]:
    """W_2² of N(m1, S1) and N(m2, S2): |m1 − m2|² + tr S1 + tr S2 − 2 tr (S1^½ S2 S1^½)^½.

    Means (*batch, d), covariances (*batch, d, d), symmetric and positive semidefinite; singular ones too, of which the
    symmetric part is read. The derivative in S1 is I − T, T the matrix of the optimal map from S1 to S2 (and likewise
    in S2); on the null space of S1, where it is infinite unless S2 vanishes there too, T is 0 by choice. Derivatives of
    every order solve Lyapunov equations, so equal eigenvalues and S1 = S2 divide by nothing. Absolute error
    <= 8 d eps (tr S1 + tr S2); for singular covariances √eps in place of eps.
    Raises TypeError and ValueError that name the argument: for shapes, dtypes and, outside jit, for values.
    Source: Dowson and Landau 1982; Bhatia, Jain and Lim 2019, On the Bures-Wasserstein distance.
    """
    m1, m2 = check.array("m1", m1, None), check.array("m2", m2, None)
    d = m1.shape[-1]
    S1, S2 = check.array("S1", S1, d, d), check.array("S2", S2, d, d)
    check.same_dtype(m1=m1, S1=S1, m2=m2, S2=S2)
    if m2.shape[-1] != d:
        raise ValueError(f"m1 and m2: expected means of one dimension, got {m1.shape} and {m2.shape}")
    for name, value in (("m1", m1), ("S1", S1), ("m2", m2), ("S2", S2)):
        if _inputs.concrete(value):
            _require_values(name, np.asarray(value, np.float64), float(jnp.finfo(m1.dtype).eps))
    difference = m1 - m2
    traces = jnp.trace(S1, axis1=-2, axis2=-1) + jnp.trace(S2, axis1=-2, axis2=-1)
    return jnp.sum(difference * difference, axis=-1) + traces - 2 * _fidelity(_symmetric(S1), _symmetric(S2))


def _require_values(name: str, value: np.ndarray, eps: float) -> None:
    if not np.isfinite(value).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")
    if name.startswith("S") and value.size:
        turned = np.swapaxes(value, -1, -2)
        allowed = 64 * eps * np.abs(value).max(axis=(-2, -1))
        if (np.abs(value - turned).max(axis=(-2, -1)) > allowed).any():
            raise ValueError(f"{name}: expected a symmetric matrix")
        least = np.linalg.eigvalsh((value + turned) / 2).min(axis=-1)
        if (least < -value.shape[-1] * allowed).any():
            raise ValueError(f"{name}: expected a positive semidefinite matrix, got the eigenvalue {least.min():.3g}")


@jax.custom_jvp
def _fidelity(S1: Array, S2: Array) -> Array:
    """tr (S1^½ S2 S1^½)^½, symmetric in its arguments."""
    root = _root(S1)
    return jnp.trace(_root(_product(root, S2, root)), axis1=-2, axis2=-1)


@_fidelity.defjvp
def _fidelity_jvp(primals, tangents):
    (S1, S2), (S1_dot, S2_dot) = primals, tangents
    value = _fidelity(S1, S2)
    # d tr = tr(T12 dS1)/2 + tr(T21 dS2)/2 with the optimal maps T12 = S1^-½ (S1^½ S2 S1^½)^½ S1^-½ and its inverse T21.
    return value, (_inner(_optimal_map(S1, S2), S1_dot) + _inner(_optimal_map(S2, S1), S2_dot)) / 2


def _optimal_map(S1: Array, S2: Array) -> Array:
    """T with T S1 T = S2: the solution of the Lyapunov-like equation by S1's root and its pseudo-inverse."""
    root = _root(S1)
    inverse = _pseudo_inverse(root)
    return _product(inverse, _root(_product(root, S2, root)), inverse)


@jax.custom_jvp
def _root(S: Array) -> Array:
    """The positive semidefinite square root; eigenvalues within d eps of the largest count as 0."""
    values, vectors = jnp.linalg.eigh(S)
    return _with_values(vectors, smooth.sqrt(jnp.where(values > _rounding(values), values, 0)))


@_root.defjvp
def _root_jvp(primals, tangents):
    root = _root(*primals)
    return root, _lyapunov(root, _symmetric(tangents[0]))


@jax.custom_jvp
def _lyapunov(B: Array, X: Array) -> Array:
    """Y with B Y + Y B = X for B >= 0, and Y = 0 on the null space of B, which singles one out."""
    values, vectors = jnp.linalg.eigh(B)
    turned = _product(jnp.swapaxes(vectors, -1, -2), X, vectors)
    sums = values[..., :, None] + values[..., None, :]
    floor = _floor(values)[..., None]
    return _product(vectors, smooth.divide(turned, jnp.where(sums > floor, sums, 0)), jnp.swapaxes(vectors, -1, -2))


@_lyapunov.defjvp
def _lyapunov_jvp(primals, tangents):
    (B, X), (B_dot, X_dot) = primals, tangents
    Y = _lyapunov(B, X)
    moved = _symmetric_product(Y, B_dot)
    return Y, _lyapunov(B, X_dot - moved)


@jax.custom_jvp
def _pseudo_inverse(B: Array) -> Array:
    """B⁺ of B >= 0."""
    values, vectors = jnp.linalg.eigh(B)
    return _with_values(vectors, smooth.divide(jnp.ones_like(values), jnp.where(values > _floor(values), values, 0)))


@_pseudo_inverse.defjvp
def _pseudo_inverse_jvp(primals, tangents):
    inverse = _pseudo_inverse(*primals)
    return inverse, -_product(inverse, tangents[0], inverse)


def _rounding(values: Array) -> Array:
    """What rounding makes of an eigenvalue 0."""
    return values.shape[-1] * float(jnp.finfo(values.dtype).eps) * jnp.max(jnp.abs(values), axis=-1, keepdims=True)


def _floor(values: Array) -> Array:
    """What rounding makes of an eigenvalue 0 of a root: √eps of the largest, as its square is known to eps."""
    return (values.shape[-1] * float(jnp.finfo(values.dtype).eps)) ** 0.5 * jnp.max(
        jnp.abs(values), axis=-1, keepdims=True
    )


def _with_values(vectors: Array, values: Array) -> Array:
    return _matmul(vectors * values[..., None, :], jnp.swapaxes(vectors, -1, -2))


_matmul = partial(elementwise.einsum, "...ij,...jk->...ik")


def _product(A: Array, B: Array, C: Array) -> Array:
    return _matmul(_matmul(A, B), C)


def _symmetric_product(A: Array, B: Array) -> Array:
    return _matmul(A, B) + _matmul(B, A)


def _symmetric(S: Array) -> Array:
    return (S + jnp.swapaxes(S, -1, -2)) / 2


def _inner(A: Array, B: Array) -> Array:
    return jnp.sum(A * B, axis=(-2, -1))
