"""Entropic transport in closed form: between Gaussians, and between class functions on SO(3)."""

import math

import numpy as np


def gaussian(distance: float, s: np.ndarray, t: np.ndarray, epsilon: float) -> float:
    """min <|x − y|², P> + ε KL(P | a b) between Gaussians of variances s², t² along common axes, `distance` apart.

    |m|² + Σ s² + t² − D + (ε/2)(1 − log ε + log(D + ε/2)), D = √(4 s² t² + ε²/4), a sum over axes. ε = 0 is W_2².
    Source: Janati et al. 2020, theorem 1, with σ² = ε/2.
    """
    half = epsilon / 2
    D = np.sqrt(4 * s**2 * t**2 + half**2)
    entropy = half * (1 - np.log(epsilon) + np.log(D + half)) if epsilon else 0.0
    return float(distance**2 + np.sum(s**2 + t**2 - D + entropy))


def class_functions(scales: tuple[float, float], epsilon: float, size: int = 160) -> float:
    """Entropic transport on SO(3), cost ω², between IGSO(3) of two scales about I: a problem of angles alone.

    Both laws are invariant under R -> hRhᵀ, so the potentials are functions of the angle, and the kernel may be
    averaged over the relative direction of the axes, whose cosine is uniform. Gauss-Legendre nodes, float64.
    """
    nodes, weights = np.polynomial.legendre.leggauss(size)
    omega = math.pi / 2 * (nodes + 1)
    cosine, share = np.polynomial.legendre.leggauss(4 * size)
    c, s = np.cos(omega / 2), np.sin(omega / 2)
    dot = np.abs(np.outer(c, c)[..., None] + np.outer(s, s)[..., None] * cosine)
    K = np.exp(-((2 * np.arccos(np.minimum(dot, 1))) ** 2) / epsilon) @ share / 2
    degrees = np.arange(200)[:, None]
    modes = (2 * degrees + 1) * np.sin((degrees + 0.5) * omega) / s
    laws = [
        weights * (1 - np.cos(omega)) * (np.exp(-degrees * (degrees + 1) * t**2 / 2) * modes).sum(0) for t in scales
    ]
    a, b = (np.maximum(law, 0) / np.maximum(law, 0).sum() for law in laws)
    v = np.ones_like(b)
    for _ in range(100_000):
        u = 1 / (K @ (b * v))
        before, v = v, 1 / (K.T @ (a * u))
        if np.abs(np.log(v / before)).max() < 1e-11:
            break
    return float(epsilon * (a @ np.log(1 / (K @ (b * v))) + b @ np.log(v)))


def uniform(epsilon: float) -> float:
    """Entropic transport on SO(3), cost ω², from Haar to itself: constant potentials, −ε log ∫ exp(−ω²/ε) dHaar."""
    omega, weights = np.polynomial.legendre.leggauss(400)
    omega = math.pi / 2 * (omega + 1)
    return float(-epsilon * math.log(np.sum(weights * (1 - np.cos(omega)) * np.exp(-(omega**2) / epsilon)) / 2))
