"""Robust losses ρ(s) of a squared residual s = |r|², and the weights ρ'(s) of iteratively reweighted least squares.

Each has ρ(s) = s + O(s²) at 0, so `scale` (in the unit of the residual, > 0) alone says where outliers begin. All are
concave in s: a weighted least-squares step is a majorisation and cannot be misled by its own weights.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from lie import record


@record.register("scale")
@dataclass(frozen=True)
class Huber:
    """ρ = s for √s <= k, 2k√s − k² beyond; quadratic then linear, convex in r. Source: Huber 1964."""

    scale: float | Array

    def __post_init__(self):
        _require_positive(self.scale)

    def value(self, squared: Array) -> Array:
        """ρ(s) of squared residuals, any shape."""
        k = _scale(self.scale, squared)
        return jnp.where(squared <= k * k, squared, 2 * k * jnp.sqrt(jnp.maximum(squared, k * k)) - k * k)

    def weight(self, squared: Array) -> Array:
        """ρ'(s), 1 at s = 0."""
        k = _scale(self.scale, squared)
        return k / jnp.sqrt(jnp.maximum(squared, k * k))


@record.register("scale")
@dataclass(frozen=True)
class Cauchy:
    """ρ = k² log(1 + s/k²): the negative log-likelihood of heavy tails."""

    scale: float | Array

    def __post_init__(self):
        _require_positive(self.scale)

    def value(self, squared: Array) -> Array:
        """ρ(s) of squared residuals, any shape."""
        k = _scale(self.scale, squared)
        return k * k * jnp.log1p(squared / (k * k))

    def weight(self, squared: Array) -> Array:
        """ρ'(s), 1 at s = 0."""
        k = _scale(self.scale, squared)
        return 1 / (1 + squared / (k * k))


@record.register("scale")
@dataclass(frozen=True)
class GemanMcClure:
    """ρ = s / (1 + s/k²), bounded by k². Source: Geman & McClure 1985."""

    scale: float | Array

    def __post_init__(self):
        _require_positive(self.scale)

    def value(self, squared: Array) -> Array:
        """ρ(s) of squared residuals, any shape."""
        k = _scale(self.scale, squared)
        return squared / (1 + squared / (k * k))

    def weight(self, squared: Array) -> Array:
        """ρ'(s), 1 at s = 0."""
        k = _scale(self.scale, squared)
        return 1 / (1 + squared / (k * k)) ** 2


@record.register("scale")
@dataclass(frozen=True)
class Tukey:
    """ρ = k²/3 (1 − (1 − s/k²)³) for √s <= k, constant beyond: far outliers do not pull. Beaton & Tukey 1974."""

    scale: float | Array

    def __post_init__(self):
        _require_positive(self.scale)

    def value(self, squared: Array) -> Array:
        """ρ(s) of squared residuals, any shape."""
        k = _scale(self.scale, squared)
        u = jnp.minimum(squared / (k * k), 1)
        return k * k * u * (1 - u + u * u / 3)

    def weight(self, squared: Array) -> Array:
        """ρ'(s), 1 at s = 0."""
        k = _scale(self.scale, squared)
        return (1 - jnp.minimum(squared / (k * k), 1)) ** 2


Loss = Huber | Cauchy | GemanMcClure | Tukey


def _scale(scale: float | Array, squared: Array) -> Array:
    return jnp.asarray(scale, squared.dtype)


def _require_positive(scale: float | Array) -> None:
    if isinstance(scale, int | float) and not scale > 0:
        raise ValueError(f"scale: expected a positive number in the unit of the residual, got {scale}")
