"""The normalising constant of the matrix Fisher law, c(S) = ∫ exp(tr(SᵀQ)) dQ over SO(3), and its moments.

S = diag(s1, s2, s3) with s1 >= s2 >= |s3| (signed singular values). With the unit quaternion (w, x, y, z) of Q,
tr S − tr(SQ) = 2(s2 + s3) x² + 2(s1 + s3) y² + 2(s1 + s2) z² >= 0, and the two pairs (w, x), (y, z) are von Mises laws
given v = 2(y² + z²), so that one integral is left:
  c exp(−tr S) = ½ ∫_0^2 I0e((s2 − s3) v/2) I0e((s2 + s3)(2 − v)/2) exp(−(s1 + s3) v) dv,   I0e(k) = exp(−k) I0(k).
Everything is positive: what follows from it, 1 − E[Q_ii] = 2 E[y² + z²], ..., has no cancellation for any S.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from lie import check

_NODES = {4: 32, 8: 64}  # of Gauss and Legendre, by item size
_REACH = {4: 20.0, 8: 42.0}  # the integral ends where exp(−(s1 + s3) v) has fallen to exp of minus this
_ASYMPTOTIC = {
    4: 12.0,
    8: 20.0,
}  # concentration from which the series in 1/k is exact, its terms, levels of the fraction
_TERMS = {4: 10, 8: 20}
_LEVELS = {4: 18, 8: 34}


def scaled_log_normalizer(singular_values: Float[ArrayLike, "*batch 3"]) -> Float[Array, "..."]:
    """log c − tr S from s1 >= s2 >= |s3|: what float32 can hold, as log c itself grows like tr S.

    For s to 1e4 the error is <= 4 eps max(1, |log c − tr S|), that of `expected_deviation` <= 60 eps (float32: 4 eps)
    relative. The gradient is −expected_deviation. Source: Lee 2018, Bayesian attitude estimation with the matrix
    Fisher distribution, eq. 16, scaled; the choice of the pair and of the nodes is ours.
    """
    return _scaled_log_normalizer(_ordered(singular_values))


def expected_deviation(singular_values: Float[ArrayLike, "*batch 3"]) -> Float[Array, "... 3"]:
    """1 − ∂ log c/∂s_i = 1 − E[Q_ii], without cancellation; (1, 1, 1) is the uniform law, 0 the certain one."""
    return _expected_deviation(_ordered(singular_values))


@jax.custom_jvp
def _scaled_log_normalizer(s: Array) -> Array:
    weights, _, _ = _integrand(s)
    return jnp.log(jnp.sum(weights, axis=-1))


@_scaled_log_normalizer.defjvp
def _scaled_log_normalizer_jvp(primals, tangents):
    slope = -_expected_deviation(*primals)
    return _scaled_log_normalizer(*primals), jnp.sum(slope * tangents[0], axis=-1)


@jax.custom_jvp
def _expected_deviation(s: Array) -> Array:
    x, y, z = second_moments(s)
    return 2 * jnp.stack([y + z, x + z, x + y], axis=-1)


@_expected_deviation.defjvp
def _expected_deviation_jvp(primals, tangents):
    covariance = diagonal_covariance(*primals)
    return _expected_deviation(*primals), -jnp.sum(covariance * tangents[0][..., None, :], axis=-1)


def second_moments(s: Array) -> tuple[Array, Array, Array]:
    """E[x²], E[y²], E[z²] of the quaternion of Q."""
    weights, v, (sine_b, _, sine_a, _) = _integrand(s)
    r_b, r_a = (2 - v) / 2, v / 2
    return _mean(weights, r_b * sine_b), _mean(weights, r_a * (1 - sine_a)), _mean(weights, r_a * sine_a)


def fourth_moments(s: Array) -> Array:
    """E[q_a² q_b²] (..., 4, 4) of the quaternion (w, x, y, z) of Q."""
    weights, v, (b2, b4, a2, a4) = _integrand(s)
    r_b, r_a = (2 - v) / 2, v / 2
    bb, aa, ab = r_b * r_b, r_a * r_a, r_a * r_b
    ww, wx, xx = bb * (1 - 2 * b2 + b4), bb * (b2 - b4), bb * b4
    yy, yz, zz = aa * (1 - 2 * a2 + a4), aa * (a2 - a4), aa * a4
    wy, wz, xy, xz = ab * (1 - b2) * (1 - a2), ab * (1 - b2) * a2, ab * b2 * (1 - a2), ab * b2 * a2
    rows = [[ww, wx, wy, wz], [wx, xx, xy, xz], [wy, xy, yy, yz], [wz, xz, yz, zz]]
    return jnp.stack([jnp.stack([_mean(weights, entry) for entry in row], axis=-1) for row in rows], axis=-2)


def diagonal_covariance(s: Array) -> Array:
    """Cov(Q_ii, Q_jj) = ∂² log c/∂s_i ∂s_j (..., 3, 3)."""
    x, y, z = second_moments(s)
    means = jnp.stack([x, y, z], axis=-1)
    covariance = fourth_moments(s)[..., 1:, 1:] - means[..., :, None] * means[..., None, :]
    sums = (2 - 2 * np.eye(3)).astype(s.dtype)  # 1 − Q_11 = 2 (y² + z²), ...
    left = jnp.sum(sums[:, :, None] * covariance[..., None, :, :], axis=-2)
    return jnp.sum(left[..., :, None, :] * sums, axis=-1)


def _integrand(s: Array) -> tuple[Array, Array, tuple[Array, ...]]:
    """Weights of the nodes, the nodes v, and E[sin²φ], E[sin⁴φ] of the two pairs there; all (..., nodes).

    With v = x² the integrand has no algebraic end; x = κ sinh τ resolves both the knee of I0e at κ and the range.
    """
    size = s.dtype.itemsize
    alpha, beta, gamma = (s[..., 1] - s[..., 2]) / 2, s[..., 0] + s[..., 2], (s[..., 1] + s[..., 2]) / 2
    reach = jnp.sqrt(_REACH[size] / jnp.maximum(beta, _REACH[size] / 2))
    knee = 1 / jnp.sqrt(alpha + 0.5)
    nodes, weights = (x.astype(s.dtype) for x in np.polynomial.legendre.leggauss(_NODES[size]))
    end = jnp.arcsinh(reach / knee)[..., None]
    tau = end * (1 + nodes) / 2
    x = knee[..., None] * jnp.sinh(tau)
    v = x * x
    concentration_a, concentration_b = alpha[..., None] * v, gamma[..., None] * (2 - v)
    measure = x * knee[..., None] * jnp.cosh(tau) * (end / 2 * weights)
    density = jax.lax.bessel_i0e(concentration_a) * jax.lax.bessel_i0e(concentration_b) * jnp.exp(-beta[..., None] * v)
    return measure * density, v, (*_sine_moments(concentration_b), *_sine_moments(concentration_a))


def _sine_moments(k: Array) -> tuple[Array, Array]:
    """E[sin²φ], E[sin⁴φ] for the density proportional to exp(−2k sin²φ), k >= 0.

    Small k: (1 − ρ)/2 and (1 − ρ)/2 − ρ/4k with ρ/k = I1(k)/(k I0(k)) = 1/(2 + k²/(4 + k²/(6 + ...))). Large k, where
    those cancel: Watson's series Σ_n (½)_n (m + ½)_n / (n! (2k)^n), all terms positive.
    """
    size = k.dtype.itemsize
    large = k >= _ASYMPTOTIC[size]
    small = jnp.where(large, 1, k)
    ratio = jnp.full_like(k, 2 * _LEVELS[size] + 2)
    for level in range(_LEVELS[size], 0, -1):
        ratio = 2 * level + small * small / ratio
    ratio = 1 / ratio
    second = (1 - small * ratio) / 2
    fourth = second - ratio / 4
    inverse = 1 / (2 * jnp.where(large, k, _ASYMPTOTIC[size]))
    sums = []
    for m in range(3):
        total = jnp.ones_like(k)
        for n in range(_TERMS[size], 0, -1):
            total = 1 + total * inverse * ((n - 0.5) * (m + n - 0.5) / n)
        sums.append(total)
    second_large = 0.5 * inverse * sums[1] / sums[0]
    fourth_large = 0.75 * inverse * inverse * sums[2] / sums[0]
    return jnp.where(large, second_large, second), jnp.where(large, fourth_large, fourth)


def _mean(weights: Array, x: Array) -> Array:
    return jnp.sum(weights * x, axis=-1) / jnp.sum(weights, axis=-1)


def _ordered(singular_values: ArrayLike) -> Array:
    s = check.array("singular_values", singular_values, 3)
    check.require(
        "singular_values", (s[..., 0] >= s[..., 1]) & (s[..., 1] >= jnp.abs(s[..., 2])), "rows with s1 >= s2 >= |s3|"
    )
    return s
