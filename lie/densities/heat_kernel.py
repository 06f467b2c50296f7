"""The heat kernel of SO(3), f = Σ (2l+1) exp(−l(l+1) t/2) sin((l+½)ω)/sin(ω/2), as log f with exact derivatives.

The angle enters as the pair y = sin²(ω/2), z = cos²(ω/2) = 1 − y: f is analytic in either, at 0 and at π, and a unit
quaternion (w, v) holds both, y = |v|² and z = w², to full relative accuracy. Time is t = scale². Four forms, each used
only where nothing cancels, in its value or its derivatives, and where all it leaves out is below one eps of the sum:
  one image   the k = 0 term of the theta-dual sum Σ_k (−1)^k (ω + 2πk) exp(−(ω + 2πk)²/2t), even in ω;
  images      its terms k = 0, −1, 1, −2, for t < 2 and ω >= π/3;
  antipode    the same where δ = π − ω <= t/π, in pairs k, −k−1, each even in δ;
  diffuse     the series over degrees l itself, for all other t >= 1/3.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lie import smooth

# Below this time one image of the source is enough at ω < π/3: the next is smaller by 5 exp(−4π²/3t) < 4e-17.
ONE_IMAGE_TIME = 1 / 3
_DUAL_END = 2.0
_MAX_DEGREE = {4: 12, 8: 18}  # by item size: (2l+1)⁴ exp(−l(l+1)/6) of the next degree is below eps f


def log_density(y: Array, z: Array, t: Array) -> Array:
    """log f from y = sin²(ω/2), z = cos²(ω/2) and t = scale²; derivatives along y + z = 1.

    For scale in 1e-3..10 and ω in 0..π, at the arguments as given: error of log f <= 15 eps max(1, |log f|), of its
    slope in ω <= 4 eps max(1, ω/t), of its slope in scale <= 40 eps, second derivatives alike. Source: Poisson
    summation; the pairing at π and the cuts are ours.
    """
    y, z, t = jnp.broadcast_arrays(y, z, t)
    dual = t < _DUAL_END
    # The second image weighs exp(−2πδ/t), δ = π − ω >= 2√z: below exp(−40) where z > (10 t/π)².
    one_image = (t < ONE_IMAGE_TIME) & ((y < 0.25) | ((y < 0.75) & (z > (10 / math.pi * t) ** 2)))
    antipode = dual & ~one_image & (z < (t / (2 * math.pi)) ** 2)
    images = dual & ~one_image & ~antipode & (y >= 0.25)
    diffuse = ~(one_image | antipode | images)

    def select(mask, form, coordinate, otherwise):
        return jnp.where(mask, form(jnp.where(mask, coordinate, otherwise), jnp.where(mask, t, 1)), 0)

    return (
        select(one_image, _one_image, y, 0)
        + select(antipode, _antipode, z, 0)
        + select(images, _images, z, 0.5)
        + select(diffuse, _diffuse, y, 0)
    )


def _one_image(y: Array, t: Array) -> Array:
    omega_squared = 4 * smooth.arcsin_squared(y)
    return _log_volume(t) + math.log(2) - jnp.log(smooth.sinc(omega_squared / 4)) - omega_squared / (2 * t)


def _images(z: Array, t: Array) -> Array:
    delta = 2 * jnp.sqrt(smooth.arcsin_squared(z))
    omega = math.pi - delta
    total = omega + (math.pi + delta) * jnp.exp(-2 * math.pi * delta / t)
    total = total - (3 * math.pi - delta) * jnp.exp(-2 * math.pi * (2 * math.pi - delta) / t)
    total = total - (3 * math.pi + delta) * jnp.exp(-4 * math.pi * (math.pi + delta) / t)
    return _log_volume(t) + jnp.log(total) - 0.5 * jnp.log1p(-z) - omega * omega / (2 * t)


def _antipode(z: Array, t: Array) -> Array:
    """The pairs k = 0 and 1: 2 (m cosh(mδ/t) − δ sinh(mδ/t)) exp(−(m² + δ²)/2t), m = π and −3π, over cos(δ/2).

    With T = (δ/π) tanh(πδ/t) the first is 2π cosh(πδ/t) (1 − T), and the second, divided by 2π cosh(πδ/t), is
    exp(−4π²/t) (4 cosh²(πδ/t) (3 − T) − 9 + T).
    """
    delta_squared = 4 * smooth.arcsin_squared(z)
    q = math.pi**2 * delta_squared / (t * t)
    T = delta_squared / t * smooth.tanhc(q)
    log_cosh = -0.5 * jnp.log1p(-q * smooth.tanhc(q) ** 2)
    second = jnp.exp(-4 * math.pi**2 / t) * ((12 - 4 * T) * jnp.exp(2 * log_cosh) - 9 + T)
    pairs = log_cosh - (math.pi**2 + delta_squared) / (2 * t) + jnp.log1p(-T - second)
    return _log_volume(t) + math.log(2 * math.pi) - jnp.log(smooth.cos(delta_squared / 4)) + pairs


def _log_volume(t: Array) -> Array:
    """t/8 + log √(2π/t³)."""
    return t / 8 + 0.5 * math.log(2 * math.pi) - 1.5 * jnp.log(t)


def _diffuse(y: Array, t: Array) -> Array:
    """log(1 + Σ_{l>=1} (2l+1) exp(−l(l+1) t/2) χ_l), χ_{l+1} = 2 cos ω χ_l − χ_{l−1}."""
    cosine = 1 - 2 * y
    previous, current = jnp.ones_like(y), 2 * cosine + 1
    total = jnp.zeros_like(y)
    for weight in degree_weights(t):
        total = total + weight * current
        previous, current = current, 2 * cosine * current - previous
    return jnp.log1p(total)


def degree_weights(t: Array) -> Array:
    """(2l + 1) exp(−l(l+1) t/2) for l = 1.. along a new first axis, enough of them for t >= ONE_IMAGE_TIME.

    One array, because XLA compiles each exponential alone: the Hessian of log f took twice as long with a list.
    """
    l = jnp.asarray(np.arange(1, _MAX_DEGREE[t.dtype.itemsize] + 1), t.dtype).reshape(-1, *[1] * t.ndim)
    return (2 * l + 1) * jnp.exp(-l * (l + 1) / 2 * t)
