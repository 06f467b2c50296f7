"""Simulated rotations that check the statistics: coverage of regions, sizes of tests, an exact posterior, a fit."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from lie import charts, densities, smooth, so3, statistics


def simulate(one: Any, count: int, key: Array) -> Any:
    """one(key) `count` times."""
    return jax.lax.map(one, jax.random.split(key, count), batch_size=min(count, 100))


def cayley(count: int, kappa: float, *, key: Array) -> Array:
    """Rotations about the identity with (1 + cos ω)/2 ~ Beta(κ + 1/2, 3/2) and a uniform axis (León et al. 2006)."""
    key_angle, key_axis = jax.random.split(key)
    cosine = 2 * jax.random.beta(key_angle, kappa + 0.5, 1.5, (count,), jnp.float32) - 1
    axis = jax.random.normal(key_axis, (count, 3), jnp.float32)
    return so3.exp((smooth.acos(cosine) / smooth.norm(axis))[:, None] * axis)


def region(key: Array) -> tuple[Array, Array]:
    """Whether the 95 % region of 50 Cayley rotations, κ = 10, holds their mean, and its radius."""
    found = statistics.confidence_region(so3, cayley(50, 10.0, key=key))
    return statistics.contains(so3, found, so3.identity((), jnp.float32)), found.radius


def tests(key: Array) -> dict[str, Array]:
    """Whether each test of uniformity rejects 30 Haar rotations at 5 %."""
    R = so3.sample((30,), jnp.float32, key=key)
    found = {"rayleigh": statistics.rayleigh(R), "gine": statistics.gine(R), "sobolev4": statistics.sobolev(R, 4)}
    found["bingham"] = statistics.bingham(charts.quaternion_from_matrix(R))
    return {name: test.p_value <= 0.05 for name, test in found.items()}


def two_samples(key: Array) -> Array:
    """Whether the energy test rejects that 25 and 20 rotations of one law have one law, at 5 %."""
    *keys, key_test = jax.random.split(key, 3)
    x, y = (cayley(n, 3.0, key=k) for n, k in zip((25, 20), keys, strict=True))
    return statistics.energy_test(x, y, permutations=199, key=key_test).p_value <= 0.05


def posterior(key: Array) -> Array:
    """Whether the 95 % region of highest posterior density holds a mode drawn from the uniform prior; n = 5, κ = 2."""
    key_mode, key_data, key_draws = jax.random.split(key, 3)
    R = so3.sample((), jnp.float32, key=key_mode)
    law = statistics.location_posterior(densities.MatrixFisher(2 * R).sample((5,), key=key_data), 2.0)
    draws = law.log_prob(law.sample((99,), key=key_draws))
    return jnp.sum(draws < law.log_prob(R)) >= 5  # of 100 exchangeable values it is not among the 5 lowest


def likelihood(key: Array) -> Array:
    """(tr(F̂)/3 − κ) in standard errors, the matrix Fisher law κ = 5 fitted to 2000 of its rotations.

    Var κ̂ = 1/(n Var tr R) for the isotropic family; F̂'s other parameters are orthogonal to it.
    """
    kappa = jnp.float32(5)
    law = densities.MatrixFisher(kappa * jnp.eye(3, dtype=jnp.float32))
    fitted = statistics.fit_matrix_fisher(law.sample((2000,), key=key)).density.parameter
    expected_trace = lambda k: jnp.trace(densities.MatrixFisher(k * jnp.eye(3, dtype=jnp.float32)).mean)
    variance = jax.grad(expected_trace)(kappa)
    # The nearest isotropic parameter is R̂ κ̂ with 3 κ̂ = the nuclear norm of F̂.
    nearest = jnp.sum(fitted * so3.project(fitted)) / 3
    return (nearest - kappa) * jnp.sqrt(2000 * variance)
