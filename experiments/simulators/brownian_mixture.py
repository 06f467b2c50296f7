"""Mixtures of IGSO(3) laws under Brownian motion: draws, densities and scores at every time, exactly.

Brownian motion only widens the modes: from time 0 to t a scale s becomes √(s² + t). Densities are against the volume of
rotation vectors, 8π² in all, and scores in the body frame; so is everything in the paper (De Bortoli et al. 2022).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lie import densities, processes, smooth, so3

LOG_VOLUME = math.log(8 * math.pi**2)  # of SO(3)


class Mixture(NamedTuple):
    """IGSO(3) laws with equal weights; the first `count` of the rows count, so that mixtures can be stacked."""

    mean: Array
    scale: Array
    count: Array


def sample(modes: tuple[int, ...], shape: float, key: Array) -> Mixture:
    """One mixture for each number of modes: means by Haar, scales 1/√(2τ) with τ ~ Gamma(shape)."""
    key_mean, key_scale = jax.random.split(key)
    rows = len(modes), max(modes)
    precision = jax.random.gamma(key_scale, shape, rows, jnp.float32)
    mean = so3.sample(rows, jnp.float32, key=key_mean)
    return Mixture(mean, 1 / jnp.sqrt(2 * precision), jnp.asarray(modes, jnp.int32))


def draw(law: Mixture, t: Array, key: Array) -> tuple[Array, Array]:
    """X (*t.shape, 3, 3) from the mixture and Brownian increments g of times t: X g is a draw from the law at t."""
    key_mode, key_noise = jax.random.split(key)
    mode = jax.random.randint(key_mode, t.shape, 0, law.count)
    variances = jnp.stack([law.scale[mode] ** 2, t])
    moved = processes.brownian(so3, so3.identity(variances.shape, t.dtype), variances, key=key_noise)
    return so3.compose(law.mean[mode], moved[0]), moved[1]


def density(law: Mixture, R: Array, t: Array) -> tuple[Array, Array]:
    """log p_t(R) in nats, and its gradient, the score, for R (*batch, 3, 3) and t (*batch)."""
    modes = densities.IsotropicGaussian(law.mean, jnp.sqrt(law.scale**2 + t[..., None]))
    counts = jnp.arange(len(law.scale), dtype=jnp.int32) < law.count
    R = R[..., None, :, :]
    terms = jnp.where(counts, modes.log_prob(R), -jnp.inf) - jnp.log(law.count.astype(R.dtype))
    total = smooth.logsumexp(terms, axis=-1)
    score = jnp.sum(jnp.exp(terms - total[..., None])[..., None] * modes.score(R), axis=-2)
    return total - LOG_VOLUME, score


def haar_divergence(t: float) -> float:
    """log Σ (2l+1)² exp(−l(l+1) t), an upper bound of KL(p_t | Haar) from any start."""
    return math.log(sum((2 * l + 1) ** 2 * math.exp(-l * (l + 1) * t) for l in range(20)))
