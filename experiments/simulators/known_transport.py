"""Clouds drawn from laws between which entropic transport is known exactly: Gaussians on R^d, two laws on SO(3)."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.references import entropic_transport
from lie import so3
from lie.densities import isotropic_gaussian
from ot import costs, sinkhorn

DIMENSIONS = (2, 5, 10, 20)
WIDEST = max(DIMENSIONS)
LEVELS = (0.01, 0.1, 1.0)  # of ε, in units of the mean cost
SCALE, UNIFORM = 0.5, 10.0  # of the isotropic Gaussians on SO(3); the second is Haar to the last digit
MEAN_ANGLE = math.pi**2 / 3 + 2  # E ω² of a uniform rotation, rad²


def spectrum(d: int) -> np.ndarray:
    """Standard deviations of the second Gaussian of R^d; the first is N(0, I). Means lie 1 apart."""
    return np.linspace(0.6, 1.4, d)


def mean_cost(d: int) -> float:
    """E|x − y|² of the two Gaussians: the unit of ε."""
    return float(1 + d + np.sum(spectrum(d) ** 2))


class Case(NamedTuple):
    """Two laws, ε over their mean cost, and the exact W_ε and divergence between them."""

    space: str
    level: float
    dimension: int  # of R^d; 0 for SO(3)
    scale: float  # of the first law on SO(3); the second is uniform
    epsilon: float
    value: float
    divergence: float


@functools.cache
def cases() -> tuple[Case, ...]:
    """Everything whose sample complexity is measured."""
    found = []
    for d in DIMENSIONS:
        s, t = np.ones(d), spectrum(d)
        for level in LEVELS:
            epsilon = level * mean_cost(d)
            value = entropic_transport.gaussian(1, s, t, epsilon)
            within = entropic_transport.gaussian(0, s, s, epsilon) + entropic_transport.gaussian(0, t, t, epsilon)
            found.append(Case(f"R^{d}", level, d, 1.0, epsilon, value, value - within / 2))
    for level in LEVELS:
        epsilon = level * MEAN_ANGLE
        value = entropic_transport.class_functions((SCALE, UNIFORM), epsilon)
        within = entropic_transport.class_functions((SCALE, SCALE), epsilon) + entropic_transport.uniform(epsilon)
        found.append(Case("SO(3)", level, 0, SCALE, epsilon, value, value - within / 2))
    return (*found, Case("Haar", 1.0, 0, UNIFORM, MEAN_ANGLE, entropic_transport.uniform(MEAN_ANGLE), 0.0))


def empirical(n: int, keys: Array) -> tuple[Array, Array]:
    """W_ε and the divergence between two clouds of n points, and errors: (cases, repeats, 2) and (cases, repeats).

    All cases and both of a cloud with itself go through one compiled solver, as matrices of costs.
    """
    known = cases()
    dimension = jnp.asarray([case.dimension for case in known], jnp.int32)
    scale, epsilon = (
        jnp.asarray([getattr(case, name) for case in known], jnp.float32) for name in ("scale", "epsilon")
    )

    def flat(index: Array, key: Array) -> Array:
        x, y = gaussians(n, dimension[index], key)
        return jnp.stack([costs.SquaredEuclidean()(*pair) for pair in ((x, y), (x, x), (y, y))])

    def curved(index: Array, key: Array) -> Array:
        key_x, key_y = jax.random.split(key)
        x = isotropic_gaussian.IsotropicGaussian(so3.identity(), scale[index]).sample((n,), key=key_x)
        y = so3.sample((n,), key=key_y)
        return jnp.stack([costs.Geodesic(so3)(*pair) for pair in ((x, y), (x, x), (y, y))])

    def one(case: tuple[Array, Array]) -> tuple[Array, Array]:
        index, key = case
        matrices = lax.cond(dimension[index] > 0, flat, curved, index, key)

        def solve(C: Array) -> tuple[Array, Array]:
            solved = sinkhorn.solve(None, None, cost=costs.Precomputed(C), epsilon=epsilon[index], tolerance=1e-4)
            return solved.value, solved.error

        values, errors = lax.map(solve, matrices)
        return jnp.stack([values[0], values[0] - (values[1] + values[2]) / 2]), jnp.max(errors)

    indices = jnp.repeat(jnp.arange(len(known), dtype=jnp.int32), len(keys))
    values, errors = lax.map(one, (indices, jnp.tile(keys, len(known))))
    return values.reshape(len(known), len(keys), 2), errors.reshape(len(known), len(keys))


def gaussians(n: int, d: Array | int, key: Array) -> tuple[Array, Array]:
    """n points of N(0, I) and of the second Gaussian in R^d, in R^20 with zeros: one program for all d."""
    x, y = jax.random.normal(key, (2, n, WIDEST), jnp.float32)
    axis = jnp.arange(WIDEST, dtype=jnp.int32)
    inside = axis < d
    t = 0.6 + 0.8 * axis.astype(jnp.float32) / (jnp.asarray(d, jnp.float32) - 1)
    return jnp.where(inside, x, 0), jnp.where(inside, t * y, 0) + jnp.where(axis == 0, 1, 0).astype(jnp.float32)


def root_mean_square_errors(metrics: dict[str, np.ndarray], samples: tuple[int, ...]) -> np.ndarray:
    """Of W_ε and of the divergence against `cases`, over all blocks and repeats: (samples, cases, 2)."""
    exact = np.array([(case.value, case.divergence) for case in cases()])
    found = [np.concatenate(list(metrics[f"values_{n}"]), axis=1) for n in samples]  # (cases, repeats, 2)
    return np.stack([np.sqrt(np.mean((values - exact[:, None]) ** 2, axis=1)) for values in found])
