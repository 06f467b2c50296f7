"""The law of the angle ω of SO(3)'s heat kernel f: density p = (1 − cos ω)/π f on [0, π], its distribution function,
the inverse of that with exact derivatives, and the entropy of f.

f solves ∂f/∂t = ½ Δf, so the flow of probability through the angle ω is −½ p s with the slope s = ∂ log f/∂ω: hence
∂F/∂t = ½ p s, and a quantile moves by dω = du/p − ½ s dt. Both rules are exact and need no derivative of a series.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lie import smooth
from lie.densities import heat_kernel

_LOWER_END = 2.0  # ω/√t up to which the mass is summed from below, as positive terms
_STEPS = {4: 4, 8: 5}  # of Newton's method, by item size: after 4 nothing but rounding is left, whatever scale and u


def log_kernel(omega: Array, t: Array) -> Array:
    """log f at the angle ω in 0..π."""
    sine, cosine = jnp.sin(omega / 2), jnp.cos(omega / 2)
    return heat_kernel.log_density(sine * sine, cosine * cosine, t)


def slope(omega: Array, t: Array) -> Array:
    """∂ log f/∂ω."""
    return jax.jvp(lambda angle: log_kernel(angle, t), (omega,), (jnp.ones_like(omega),))[1]


def density(omega: Array, t: Array) -> Array:
    """p = (1 − cos ω)/π f."""
    return 2 / math.pi * jnp.sin(omega / 2) ** 2 * jnp.exp(log_kernel(omega, t))


@jax.custom_jvp
def cdf(omega: Array, t: Array) -> Array:
    """F = ∫_0^ω p: error <= 4 eps; relative to F <= 20 eps for F > 1e-12."""
    return _masses(omega, t)[0]


@cdf.defjvp
def _cdf_jvp(primals, tangents):
    p, s = density(*primals), slope(*primals)
    return cdf(*primals), p * tangents[0] + 0.5 * p * s * tangents[1]


@jax.custom_jvp
def quantile(u: Array, t: Array) -> Array:
    """The ω with F(ω) = u, for u in 0..1; derivatives by the implicit function, with 1/p taken as 0 where p = 0."""
    low, high = jnp.zeros_like(u), jnp.full_like(u, math.pi)
    lower_half = u <= 0.5
    bend = jnp.maximum(density(jnp.full_like(u, math.pi), t) * t / math.pi, float(jnp.finfo(u.dtype).eps) ** 2)

    def step(_, state):
        omega, low, high = state
        below, above = _masses(omega, t)
        p = density(omega, t)
        # Newton's method on F^(1/3), nearly linear at 0, or on arsinh((1 − F)/bend), nearly linear in a Gaussian tail
        # and at π: the tail is that of a sinh, bend = p(π) t/π.
        from_zero = smooth.divide(3 * (jnp.cbrt(u) * jnp.cbrt(below) ** 2 - below), p, math.inf)
        change = jnp.arcsinh(above / bend) - jnp.arcsinh((1 - u) / bend)
        from_tail = smooth.divide(change * jnp.hypot(above, bend), p, math.inf)  # infinite: the bracket is halved
        too_far = jnp.where(lower_half, below >= u, above <= 1 - u)
        low, high = jnp.where(too_far, low, omega), jnp.where(too_far, omega, high)
        move = jnp.where(lower_half, from_zero, from_tail)
        # A converged iterate sits on an end of its bracket: rounding must not send it to the middle.
        settled = jnp.abs(move) <= math.sqrt(jnp.finfo(u.dtype).eps) * omega
        proposal = jnp.where(settled, jnp.clip(omega + move, 0, math.pi), omega + move)
        inside = settled | ((proposal >= low) & (proposal <= high))
        return jnp.where(inside, proposal, (low + high) / 2), low, high

    omega = jax.lax.fori_loop(0, _STEPS[u.dtype.itemsize], step, (_guess(u, t), low, high))[0]
    return jnp.where(u <= 0, 0, jnp.where(u >= 1, math.pi, omega))


@quantile.defjvp
def _quantile_jvp(primals, tangents):
    u, t = primals
    omega = quantile(u, t)
    p = density(omega, t)
    return omega, smooth.divide(jnp.ones_like(p), p) * tangents[0] - 0.5 * slope(omega, t) * tangents[1]


def entropy(t: Array) -> Array:
    """−∫ p log f dω <= 0 by Gauss-Legendre over the angles that carry all but 1e-17 (float32: 1e-8) of the mass."""
    count, reach = (48, 9.5) if t.dtype.itemsize == 8 else (24, 6.5)
    nodes, weights = (x.astype(t.dtype) for x in np.polynomial.legendre.leggauss(count))
    end = jnp.minimum(math.pi, reach * jnp.sqrt(t))[..., None]
    omega, time = end * (1 + nodes) / 2, t[..., None]
    return -jnp.sum(end / 2 * weights * density(omega, time) * log_kernel(omega, time), axis=-1)


def _guess(u: Array, t: Array) -> Array:
    """The smaller of the quantiles of Maxwell's law, √t times a chi with 3 degrees (Wilson-Hilferty), and of Haar's."""
    normal = jax.scipy.special.ndtri(jnp.clip(u, 0.05, 1 - float(jnp.finfo(u.dtype).epsneg)))
    bulk = math.sqrt(3) * (1 - 2 / 27 + math.sqrt(2 / 27) * normal) ** 1.5
    maxwell = jnp.where(u < 0.05, jnp.cbrt(3 * math.sqrt(math.pi / 2) * u), bulk) * jnp.sqrt(t)
    haar = jnp.where(u < 0.5, jnp.cbrt(6 * math.pi * u), math.pi * (1 + u) / 2)
    return jnp.minimum(jnp.minimum(maxwell, haar), math.pi)


def _masses(omega: Array, t: Array) -> tuple[Array, Array]:
    """F and 1 − F, each without the other's rounding where it is small."""
    concentrated = t < heat_kernel.ONE_IMAGE_TIME
    below, above = _concentrated(omega, jnp.where(concentrated, t, 0.1))
    series = _diffuse(omega, jnp.where(concentrated, 1, t))
    return jnp.where(concentrated, below, series), jnp.where(concentrated, above, 1 - series)


def _concentrated(omega: Array, t: Array) -> tuple[Array, Array]:
    """Two images of the source: the mass below ω of the one at 0, and what the one at 2π sends below ω."""
    near = omega < _LOWER_END * jnp.sqrt(t)
    lower = _lower(jnp.where(near, omega, 0), t)
    upper, image = _upper(omega, t), _upper(2 * math.pi - omega, t)
    return jnp.where(near, lower, 1 - upper) + image, jnp.where(near, 1 - lower, upper) - image


def _lower(omega: Array, t: Array) -> Array:
    """√(2/π) e^(t/8) t^(−3/2) ∫_0^ω 2θ sin(θ/2) exp(−θ²/2t) dθ, by powers of θ/2, for ω <= 2√t.

    ∫_0^a s^(2j) exp(−s²/2) ds = a^(2j+1) exp(−a²/2) P_j, P_j = (1 + a² P_{j+1})/(2j + 1): positive terms.
    """
    powers, depth = (8, 32) if t.dtype.itemsize == 8 else (5, 18)
    a_squared = omega * omega / t
    partial, total = jnp.zeros_like(omega), jnp.zeros_like(omega)
    for j in range(depth, 0, -1):
        partial = (1 + a_squared * partial) / (2 * j + 1)
        if j <= powers:  # Horner in −ω²/4 over (2j − 1)!
            total = partial * (1 / math.factorial(2 * j - 1)) - omega * omega / 4 * total
    return math.sqrt(2 / math.pi) * jnp.exp(t / 8 - a_squared / 2) * a_squared * jnp.sqrt(a_squared) * total


def _upper(x: Array, t: Array) -> Array:
    """√(2/π) e^(t/8) t^(−3/2) ∫_x^∞ 2θ sin(θ/2) exp(−θ²/2t) dθ: parts, then cos(θ/2) by powers, for √t <= x <= 2π."""
    a = x / jnp.sqrt(t)
    gauss = jnp.exp(-a * a / 2)
    term = math.sqrt(math.pi / 2) * jax.lax.erfc(a / math.sqrt(2))
    inverse = smooth.divide(jnp.ones_like(a), a)
    total = term
    for j in range(1, 15 if t.dtype.itemsize == 8 else 9):
        term = t / (8 * j) * term + (x / 2) ** (2 * j) * (1 / math.factorial(2 * j)) * inverse * gauss
        total = total + (-1) ** j * term
    return math.sqrt(2 / math.pi) * jnp.exp(t / 8) * (2 / jnp.sqrt(t) * jnp.sin(x / 2) * gauss + total)


def _diffuse(omega: Array, t: Array) -> Array:
    """(1/π) Σ_{n>=1} (w_{n−1} − w_n) (ω − sin(nω)/n), w_l = (2l+1) exp(−l(l+1) t/2): nothing cancels for small ω."""
    omega, t = jnp.broadcast_arrays(omega, t)  # the degrees are a new first axis of both
    weights = jnp.concatenate([jnp.ones_like(t)[None], heat_kernel.degree_weights(t), jnp.zeros_like(t)[None]])
    n = np.arange(1, len(weights)).reshape(-1, *[1] * omega.ndim).astype(t.dtype)
    angles = n * omega
    parts = angles * angles * smooth.stumpff(3, angles * angles)
    return omega / math.pi * jnp.sum((weights[:-1] - weights[1:]) * parts, axis=0)
