"""The matrix Fisher law on SO(3), exp(tr(FᵀR))/c(F): the exponential family whose sufficient statistic is R itself."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import charts, check, elementwise, record, so3, svd3
from lie.densities import bingham_sampler, fisher_normalizer


@record.register("parameter")
@dataclass(frozen=True)
class MatrixFisher:
    """Density exp(tr(FᵀR))/c(F) against Haar, F = `parameter` (*batch, 3, 3), any real matrix.

    F = U diag(s) Vᵀ with rotations U, V and s1 >= s2 >= |s3|: the mode is U Vᵀ, and s_i + s_j the concentration about
    the k-th axis, both in the frames U and V. For s to 1e4. The value, gradient and Hessian of the log density are
    exact in F too, repeated singular values included; third derivatives in F raise NotImplementedError.
    """

    parameter: Float[Array, "... 3 3"]

    def __init__(self, parameter: ArrayLike):
        object.__setattr__(self, "parameter", check.array("parameter", parameter, 3, 3))

    @property
    def mode(self) -> Float[Array, "... 3 3"]:
        """U Vᵀ, the rotation where the density is largest; one of them where s2 + s3 = 0."""
        return so3.project(_wide(self.parameter)).astype(self.parameter.dtype)

    @property
    def mean(self) -> Float[Array, "... 3 3"]:
        """E[R] = ∂ log c/∂F = U diag(E[Q_ii]) Vᵀ, a matrix inside the convex hull of the rotations."""
        return _mean(_wide(self.parameter)).astype(self.parameter.dtype)

    def log_normalizer(self) -> Float[Array, "..."]:
        """log c(F), with gradient `mean`."""
        return _log_normalizer(_wide(self.parameter)).astype(self.parameter.dtype)

    def scaled_log_normalizer(self) -> Float[Array, "..."]:
        """log c(F) − tr S = −log density at the mode: keeps its digits in float32 where log c does not."""
        return _scaled_log_normalizer(_wide(self.parameter)).astype(self.parameter.dtype)

    def expected_deviation(self) -> Float[Array, "... 3"]:
        """1 − E[Q_ii] = 1 − ∂ log c/∂s_i, Q = UᵀRV, to its last digits; not differentiable in F."""
        _, s, _ = svd3.svd(_wide(self.parameter))
        return fisher_normalizer.expected_deviation(s).astype(self.parameter.dtype)

    def log_prob(self, R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "..."]:
        """tr(FᵀR) − log c(F), computed as tr(Fᵀ(R − mode)) − (log c − tr S)."""
        return _log_prob(_wide(self.parameter), _wide(self._rotation(R))).astype(self.parameter.dtype)

    def score(self, R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "... 3"]:
        """∂ log p(R exp(u))/∂u at u = 0: −2 vee(FᵀR), in the body frame."""
        R, F = _wide(self._rotation(R)), _wide(self.parameter)
        return _score(F, R).astype(self.parameter.dtype)

    def sample(self, shape: tuple[int, ...] = (), *, key: PRNGKeyArray) -> Float[Array, "..."]:
        """Independent exact samples (*shape, *batch, 3, 3), by rejection; they carry no derivative in F."""
        F = jax.lax.stop_gradient(_wide(self.parameter))
        U, s, V = svd3.svd(F)
        s1, s2, s3 = s[..., 0], s[..., 1], s[..., 2]
        exponents = 2 * jnp.stack([jnp.zeros_like(s1), s2 + s3, s1 + s3, s1 + s2], axis=-1)
        q = bingham_sampler.sample(exponents, (*shape, *F.shape[:-2]), key=key)
        Q = charts.matrix_from_quaternion(q)
        R = elementwise.matmul(elementwise.matmul(U, Q), elementwise.transpose(V))
        return R.astype(self.parameter.dtype)

    def entropy(self) -> Float[Array, "..."]:
        """−E log p = (log c − tr S) + Σ s_i (1 − E[Q_ii]) <= 0, with respect to Haar."""
        return _entropy(_wide(self.parameter)).astype(self.parameter.dtype)

    def _rotation(self, R: ArrayLike) -> Array:
        R = check.array("R", R, 3, 3)
        check.rotation("R", R)
        check.same_dtype(R=R, parameter=self.parameter)
        return R


@jax.custom_jvp
def _score(F: Array, R: Array) -> Array:
    # Fᵀ mode is symmetric: leaving it out keeps the digits near the mode.
    return -2 * so3.vee(elementwise.matmul(elementwise.transpose(F), R - so3.project(F)))


@_score.defjvp
def _score_jvp(primals, tangents):
    (F, R), (F_dot, R_dot) = primals, tangents
    moved = elementwise.matmul(elementwise.transpose(F_dot), R) + elementwise.matmul(elementwise.transpose(F), R_dot)
    return _score(F, R), -2 * so3.vee(moved)


@jax.custom_jvp
def _scaled_log_normalizer(F: Array) -> Array:
    return fisher_normalizer.scaled_log_normalizer(svd3.svd(F)[1])


@_scaled_log_normalizer.defjvp
def _scaled_log_normalizer_jvp(primals, tangents):
    F, F_dot = primals[0], tangents[0]
    return _scaled_log_normalizer(F), _inner(_mean(F) - so3.project(F), F_dot)


@jax.custom_jvp
def _log_normalizer(F: Array) -> Array:
    s = svd3.svd(F)[1]
    return fisher_normalizer.scaled_log_normalizer(s) + jnp.sum(s, axis=-1)


@_log_normalizer.defjvp
def _log_normalizer_jvp(primals, tangents):
    return _log_normalizer(*primals), _inner(_mean(*primals), tangents[0])


@jax.custom_jvp
def _log_prob(F: Array, R: Array) -> Array:
    U, s, V = svd3.svd(F)
    difference = elementwise.matmul(R - elementwise.matmul(U, elementwise.transpose(V)), V)
    # tr(S (Q − I)), Q = UᵀRV. One sum over both axes: of a sum over one, scaled and summed again, then shifted, XLA's
    # CPU compiler (jax 0.10) gives rows of other samples once there are some hundred thousand.
    gain = jnp.sum(U * s[..., None, :] * difference, axis=(-2, -1))
    return gain - fisher_normalizer.scaled_log_normalizer(s)


@_log_prob.defjvp
def _log_prob_jvp(primals, tangents):
    (F, R), (F_dot, R_dot) = primals, tangents
    return _log_prob(F, R), _inner(R - _mean(F), F_dot) + _inner(F, R_dot)


@jax.custom_jvp
def _mean(F: Array) -> Array:
    U, s, V = svd3.svd(F)
    diagonal = 1 - fisher_normalizer.expected_deviation(s)
    return elementwise.matmul(U * diagonal[..., None, :], elementwise.transpose(V))


@_mean.defjvp
def _mean_jvp(primals, tangents):
    """Cov(R, tr(F_dotᵀR)) from the fourth moments of the quaternion of Q: no divided difference of singular values."""
    F, F_dot = primals[0], tangents[0]
    U, s, V = svd3.svd(F)
    G = elementwise.matmul(elementwise.matmul(elementwise.transpose(U), F_dot), V)
    moments = 4 * fisher_normalizer.fourth_moments(s)
    covariance = fisher_normalizer.diagonal_covariance(s)
    rows = [[jnp.zeros_like(G[..., 0, 0]) for _ in range(3)] for _ in range(3)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        k = 3 - i - j
        # Q_ij, Q_ji = 2 q_i q_j -+ 2 q_0 q_k, uncorrelated parts
        even, odd = moments[..., 1 + i, 1 + j], moments[..., 0, 1 + k]
        rows[i][j] = (even + odd) * G[..., i, j] + (even - odd) * G[..., j, i]
        rows[j][i] = (even + odd) * G[..., j, i] + (even - odd) * G[..., i, j]
    for i in range(3):
        rows[i][i] = elementwise.dot(covariance[..., i, :], jnp.diagonal(G, axis1=-2, axis2=-1))
    change = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    return _mean(F), elementwise.matmul(elementwise.matmul(U, change), elementwise.transpose(V))


@jax.custom_jvp
def _entropy(F: Array) -> Array:
    s = svd3.svd(F)[1]
    spread = jnp.sum(s * fisher_normalizer.expected_deviation(s), axis=-1)
    return fisher_normalizer.scaled_log_normalizer(s) + spread


@_entropy.defjvp
def _entropy_jvp(primals, tangents):
    return _entropy(*primals), -_inner(primals[0], jax.jvp(_mean, primals, tangents)[1])


def _inner(A: Array, B: Array) -> Array:
    return jnp.sum(A * B, axis=(-2, -1))


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
