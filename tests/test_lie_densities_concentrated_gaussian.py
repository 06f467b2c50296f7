"""Concentrated Gaussians on so2, se2, so3, se3: mass, score, samples, entropy, and the limit of small covariance."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import precisions
import pytest
from jax import export
from numpy.testing import assert_allclose

from lie import densities, se2, se3, so2, so3
from lie.densities import cholesky

GROUPS = [so2, se2, so3, se3]


def example(group, dtype, scale=0.25):
    """A mean off the identity and a covariance with all correlations."""
    n = group.dimension
    A = np.random.default_rng(n).normal(size=(n, n))
    covariance = scale**2 * (0.5 * np.eye(n) + A @ A.T / n)
    mean = group.exp(jnp.array(np.linspace(-0.8, 0.9, n) + 0.3, dtype))
    return densities.ConcentratedGaussian(group, mean, jnp.array(covariance, dtype))


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_score_samples_and_entropy_agree_with_the_density(group, dtype):
    density, count = example(group, dtype), 20000
    g = jax.jit(lambda d, key: d.sample((count,), key=key))(density, jax.random.key(0))
    assert jax.tree.leaves(g)[0].dtype == dtype
    xi = np.asarray(jax.jit(group.local)(density.mean, g), float)
    covariance = np.asarray(density.covariance, float)
    spread = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(xi.mean(axis=0)) <= 4.5 * spread / math.sqrt(count))
    error = np.abs(np.cov(xi.T).reshape(covariance.shape) - covariance)
    assert np.all(error <= 6 * np.outer(spread, spread) / math.sqrt(count))
    log_prob = np.asarray(jax.jit(lambda d, g: d.log_prob(g))(density, g), float)
    entropy = float(jax.jit(lambda d: d.entropy())(density))
    assert abs(-log_prob.mean() - entropy) <= 4.5 * log_prob.std() / math.sqrt(count)
    few = jax.tree.map(lambda x: x[:7], g)
    score = jax.jit(lambda d, g: d.score(g))(density, few)
    assert score.shape == (7, group.dimension)
    h = 1e-2 if dtype == jnp.float32 else 1e-5
    steps = h * jnp.eye(group.dimension, dtype=dtype)[:, None, :]
    moved = [jax.jit(lambda d, g, u: d.log_prob(group.retract(g, u)))(density, few, s * steps) for s in (1, -1)]
    score, difference = np.asarray(score, float), np.asarray((moved[0] - moved[1]) / (2 * h), float)
    error = np.abs(score.T - difference).max() / np.abs(score).max()
    assert error <= (1e-2 if dtype == jnp.float32 else 1e-8)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_density_is_that_of_the_tangent_space_over_the_volume(group):
    """p(mean exp ξ) dg = N(ξ) dξ: the volume from the group's own Jacobian, and Haar's constant at the identity."""
    density = example(group, jnp.float64)
    n = group.dimension
    xi = jnp.asarray(np.random.default_rng(1).normal(size=(6, n)))
    xi = xi.at[0].set(0)
    covariance = np.asarray(density.covariance)
    normal = -np.einsum("ni,ij,nj->n", xi, np.linalg.inv(covariance), xi) / 2
    normal = normal - np.linalg.slogdet(2 * np.pi * covariance)[1] / 2
    volume = np.linalg.slogdet(np.asarray(group.right_jacobian(xi)))[1]
    constant = math.log(2 * np.pi if group in (so2, se2) else 8 * np.pi**2)
    have = density.log_prob(group.retract(density.mean, xi))
    assert_allclose(have, normal - volume + constant, rtol=1e-9)


def test_so3_integrates_to_one_and_tends_to_igso3():
    """Isotropic: mass over the angle is 1 up to P(θ > π) = 3.6e-8 at σ = 0.5; small σ is IGSO(3) to σ²/4."""
    x, weights = np.polynomial.legendre.leggauss(200)
    omega = math.pi * (1 + x) / 2
    R = so3.exp(jnp.asarray(omega[:, None] * np.array([0.6, -0.48, 0.64])))
    for sigma, missing in ((0.1, 1e-12), (0.5, 5e-8)):
        density = densities.ConcentratedGaussian(so3, jnp.eye(3), sigma**2 * jnp.eye(3))
        mass = np.sum(math.pi / 2 * weights * (1 - np.cos(omega)) / math.pi * np.exp(np.asarray(density.log_prob(R))))
        assert abs(mass - 1) <= missing
    sigma, near = 1e-2, so3.exp(jnp.asarray(np.array([[0.0, 0, 0], [0.01, 0.02, -0.01]])))
    density = densities.ConcentratedGaussian(so3, jnp.eye(3), sigma**2 * jnp.eye(3))
    assert_allclose(density.log_prob(near), densities.IsotropicGaussian(jnp.eye(3), sigma).log_prob(near), atol=1e-4)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 1.99, 2.01, 6.0])
def test_so2_sums_all_windings(sigma):
    """Against a plain sum over 60 windings; the mass is 1; entropy by the same trapezoid."""
    theta = np.linspace(-math.pi, math.pi, 2001)[:-1]
    turns = theta[:, None] + 2 * math.pi * np.arange(-30, 31)
    want = np.logaddexp.reduce(-((turns / sigma) ** 2) / 2, axis=1) + math.log(math.sqrt(2 * math.pi) / sigma)
    density = densities.ConcentratedGaussian(so2, jnp.eye(2), jnp.full((1, 1), sigma**2))
    have = jax.jit(density.log_prob)(so2.exp(jnp.asarray(theta[:, None])))
    assert_allclose(have, want, rtol=1e-12, atol=1e-12)
    assert_allclose(np.mean(np.exp(want)), 1, rtol=1e-12)
    assert_allclose(density.entropy(), -np.mean(np.exp(want) * want), atol=1e-12)


def test_derivatives_are_finite_at_the_mean_and_at_pi(dtype):
    omega = jnp.array([[0, 0, 0], [1e-8, 0, 0], [1.0, 2, 0.5], [math.pi, 0, 0]], dtype)
    density = example(so3, dtype)

    def log_prob(u, covariance, R):
        return densities.ConcentratedGaussian(so3, density.mean, covariance).log_prob(so3.retract(R, u))

    R = so3.retract(density.mean, omega)
    hessian = jax.jit(jax.vmap(jax.hessian(log_prob, (0, 1)), (0, None, 0)))
    second = hessian(jnp.zeros((4, 3), dtype), density.covariance, R)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(second))


def test_samples_are_reparameterised_in_the_covariance():
    def sample(scale):
        return densities.ConcentratedGaussian(so3, jnp.eye(3), scale**2 * jnp.eye(3)).sample(key=jax.random.key(0))

    scale = jnp.array(0.3)
    primal, tangent = jax.jvp(sample, (scale,), (jnp.ones(()),))
    assert_allclose(tangent, (sample(scale + 1e-6) - sample(scale - 1e-6)) / 2e-6, atol=1e-8)
    assert_allclose(primal, sample(scale))


@precisions.float64_is_slow
@pytest.mark.slow
def test_broadcasts_and_is_a_pytree(dtype):
    mean = se3.sample((4, 1), dtype, key=jax.random.key(0))
    covariance = jnp.broadcast_to(0.1 * jnp.eye(6, dtype=dtype), (3, 6, 6))
    density = densities.ConcentratedGaussian(se3, mean, covariance)
    g = density.sample((2,), key=jax.random.key(1))
    assert g.rotation.shape == (2, 4, 3, 3, 3)
    assert density.log_prob(g).shape == (2, 4, 3)
    assert density.score(g).shape == (2, 4, 3, 6)
    doubled = jax.tree.map(lambda x: x, density)
    assert doubled.group is se3
    assert_allclose(doubled.log_prob(g), density.log_prob(g))


def test_cholesky_factors():
    A = np.random.default_rng(0).normal(size=(5, 6, 6))
    A = A @ np.swapaxes(A, 1, 2) + np.eye(6)
    L = cholesky.factor(jnp.asarray(A))
    assert_allclose(L, np.linalg.cholesky(A), rtol=1e-12, atol=1e-12)
    assert_allclose(np.einsum("nij,nj->ni", L, cholesky.solve(L, jnp.ones((5, 6)))), np.ones((5, 6)), rtol=1e-12)
    assert_allclose(2 * cholesky.half_log_determinant(L), np.linalg.slogdet(A)[1], rtol=1e-12)


def test_bad_input_is_named(dtype):
    eye = jnp.eye(3, dtype=dtype)
    with pytest.raises(ValueError, match=r"covariance: expected shape \(\.\.\., 3, 3\), got \(2, 2\)"):
        densities.ConcentratedGaussian(so3, eye, jnp.eye(2, dtype=dtype))
    with pytest.raises(ValueError, match="covariance: expected symmetric positive definite"):
        densities.ConcentratedGaussian(so3, eye, -eye)
    with pytest.raises(TypeError, match="group: expected one of the modules"):
        densities.ConcentratedGaussian(math, eye, eye)
    with pytest.raises(TypeError, match="expected one dtype"):
        densities.ConcentratedGaussian(so3, eye, jnp.eye(3, dtype=jnp.bfloat16))


@pytest.mark.parametrize("group", [so3, se3], ids=lambda group: group.__name__)
def test_exports_to_every_platform(group):
    density = example(group, jnp.float32)

    def everything(density, key):
        g = density.sample((2,), key=key)
        return density.log_prob(g), density.score(g), density.entropy()

    def flat(leaves, key):
        return everything(jax.tree.unflatten(jax.tree.structure(density), leaves), key)

    export.export(jax.jit(flat), platforms=["cpu", "cuda", "tpu"])(jax.tree.leaves(density), jax.random.key(0))
