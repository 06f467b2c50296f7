"""Fits of the densities: score equations, conjugate updates in closed form, recovery of known parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from lie import densities, se2, se3, so3, statistics
from lie.densities import fisher_normalizer


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def rotations(count, spread, dtype=jnp.float64, seed=0):
    """Rotations with unequal spread about the three axes of a random centre."""
    key_centre, key_noise = jax.random.split(jax.random.key(seed))
    noise = spread * jnp.array([1.0, 0.7, 0.4], dtype) * jax.random.normal(key_noise, (count, 3), dtype)
    centre = so3.sample((), dtype, key=key_centre)
    return so3.retract(jnp.broadcast_to(centre, (count, 3, 3)), noise)


@pytest.mark.slow
def test_the_isotropic_fit_solves_both_score_equations(dtype):
    scale = jnp.array([0.01, 0.4, 1.2], dtype)
    mean = so3.exp(jnp.array([0.3, -1.0, 0.5], dtype))
    truth = densities.IsotropicGaussian(jnp.broadcast_to(mean, (3, 3, 3)), scale)
    samples = jax.jit(lambda key: truth.sample((400,), key=key))(jax.random.key(1))
    fit = jax.jit(jax.vmap(statistics.fit_isotropic_gaussian, in_axes=1))(samples)
    assert fit.converged.all()
    assert fit.steps.max() <= 10
    law = fit.density
    assert law.scale.dtype == dtype
    # In units of one sample's standard error, which is about scale for each axis of the mean and 1/2 for log scale.
    assert np.abs(scale[:, None] * np.mean(law.score(samples), axis=0)).max() < 4 * eps(dtype) ** 0.5
    likelihood = lambda s: jnp.sum(jnp.mean(densities.IsotropicGaussian(law.mean, s).log_prob(samples), axis=0))
    assert np.abs(law.scale * jax.jit(jax.grad(likelihood))(law.scale)).max() < 8 * eps(dtype) ** 0.5
    # Near the truth: standard errors are about scale/20 (more where the law is wide), and scale/√(6·400).
    assert (so3.distance(law.mean, truth.mean) < 4.5 * np.maximum(scale, scale**3) / 20).all()
    assert (np.abs(law.scale / scale - 1) < 0.12).all()


@pytest.mark.slow
def test_priors_hold_the_scale_and_the_mean():
    """Small scales make s² conjugate: the mode is (rate + Σ|v|²/2)/(shape + 1 + 3n/2), to the order of curvature s²."""
    samples = rotations(10, 0.002)
    identity = so3.identity((), jnp.float64)

    def fit(width):
        location = densities.IsotropicGaussian(identity, width)
        return statistics.fit_isotropic_gaussian(
            samples, location=location, variance=statistics.InverseGamma(4.0, 3e-5)
        )

    found = jax.jit(jax.vmap(fit))(jnp.array([10.0, 1e-5]))  # a flat prior of the mean and a certain one
    assert found.converged.all()
    mean = jnp.broadcast_to(found.density.mean[0], samples.shape)
    squares = jnp.sum(so3.squared_distance(mean, samples))
    np.testing.assert_allclose(found.density.scale[0] ** 2, (3e-5 + squares / 2) / (4 + 1 + 15), rtol=1e-4)
    assert so3.distance(found.density.mean[1], identity) < 1e-2


def test_weights_count_samples():
    samples, counts = rotations(6, 0.5), jnp.array([1, 2, 1, 0, 3, 1])
    one = statistics.fit_matrix_fisher(samples, counts.astype(jnp.float64))
    other = statistics.fit_matrix_fisher(jnp.repeat(samples, counts, axis=0))
    np.testing.assert_allclose(one.density.parameter, other.density.parameter, rtol=1e-6)


def test_the_inverse_gamma_law_is_scipys():
    law = statistics.InverseGamma(3.0, 0.7)
    expected = scipy.stats.invgamma.logpdf([0.1, 2], 3, scale=0.7)
    np.testing.assert_allclose(law.log_prob(jnp.array([0.1, 2.0])), expected)


@pytest.mark.parametrize("spread", [0.003, 0.3, 1.0, 3.0])
@pytest.mark.slow
def test_the_matrix_fisher_fit_matches_the_moments(spread, dtype):
    """∂ log c/∂F = mean of R, checked on 1 − E[Q_ii] in the frame of the fit, to a part of itself."""
    samples = rotations(300, spread, dtype, seed=2)
    fit = jax.jit(statistics.fit_matrix_fisher)(samples)
    assert fit.converged
    U, s, Vt = np.linalg.svd(np.asarray(fit.density.parameter, np.float64))
    sign = np.linalg.det(U) * np.linalg.det(Vt)
    s[2] *= sign
    V = Vt.T * [1, 1, sign]
    inner = U.T @ np.asarray(so3.project(samples.astype(jnp.float64))) @ V
    deviation = 1 - np.diagonal(inner.mean(axis=0))
    expected = fisher_normalizer.expected_deviation(jnp.asarray(s))
    np.testing.assert_allclose(expected, deviation, rtol=10 * eps(dtype) ** 0.5)
    off_diagonal = inner.mean(axis=0) - np.diag(1 - deviation)
    assert np.abs(off_diagonal).max() < 1e3 * eps(dtype) * max(1, spread**2) + eps(dtype) ** 0.5 * deviation.max()


def test_the_matrix_fisher_fit_inverts_the_mean(dtype):
    """A prior alone: one rotation that weighs nothing, beside a known mean matrix. The fit is the law of that mean."""
    parameters = np.stack(
        [
            np.array([[1.0, -2.0, 0.3], [0.5, 3.0, -1.0], [2.0, 0.1, 0.7]]),
            np.diag([5.0, 5.0, -5.0]),
            np.zeros((3, 3)),
            np.diag([30.0, 20.0, -15.0]),
        ]
    )
    absent = jnp.eye(3, dtype=dtype)[None], jnp.zeros(1, dtype)
    tight = {"prior_count": 1.0, "tolerance": eps(dtype) ** 0.75}
    fit = jax.vmap(lambda mean: statistics.fit_matrix_fisher(*absent, prior_mean=mean, **tight))
    found = jax.jit(lambda F: fit(densities.MatrixFisher(F).mean))(jnp.asarray(parameters, dtype))
    assert found.converged.all()
    np.testing.assert_allclose(found.density.parameter, parameters, atol=3e-3 if dtype == jnp.float32 else 1e-9)


def test_the_matrix_fisher_prior_is_further_samples():
    samples, more = rotations(20, 0.6), rotations(5, 0.3, seed=9)
    pooled = statistics.fit_matrix_fisher(jnp.concatenate([samples, more]))
    prior = statistics.fit_matrix_fisher(samples, prior_mean=jnp.mean(more, axis=0), prior_count=5.0)
    np.testing.assert_allclose(prior.density.parameter, pooled.density.parameter, rtol=1e-6)


def test_equal_samples_have_no_matrix_fisher_fit():
    fit = statistics.fit_matrix_fisher(jnp.broadcast_to(rotations(1, 0.5), (4, 3, 3)))
    assert not fit.converged


def test_the_posterior_of_a_location_is_a_matrix_fisher():
    """log prior + log likelihood − log posterior is one number at every rotation."""
    samples, kappa = rotations(7, 0.8), 2.5
    prior = densities.MatrixFisher(jnp.diag(jnp.array([1.0, 0.5, -0.2])))
    posterior = statistics.location_posterior(samples, kappa, prior)
    R = so3.sample((6,), jnp.float64, key=jax.random.key(3))
    likelihood = kappa * jnp.sum(R[:, None] * samples, axis=(1, 2, 3))
    constant = prior.log_prob(R) + likelihood - posterior.log_prob(R)
    np.testing.assert_allclose(constant, constant[0], atol=1e-10)
    flat = statistics.location_posterior(samples, kappa, weights=jnp.zeros(7).at[2].set(1.0))
    np.testing.assert_allclose(flat.mode, samples[2], atol=1e-12)


@pytest.mark.slow
def test_the_gaussian_fit_of_concentrated_samples_is_the_flat_one():
    """Mean log(m⁻¹ x) = 0 and covariance their second moment, up to the order of the squared spread."""
    samples = rotations(30, 1e-3)
    fit = jax.jit(lambda x: statistics.fit_concentrated_gaussian(so3, x))(samples)
    assert fit.converged
    v = np.asarray(so3.local(jnp.broadcast_to(fit.density.mean, samples.shape), samples))
    np.testing.assert_allclose(v.mean(axis=0), 0, atol=1e-8)
    np.testing.assert_allclose(fit.density.covariance, v.T @ v / 30, rtol=1e-10)


@pytest.mark.parametrize("group", [se2, pytest.param(se3, marks=pytest.mark.slow)], ids=["se2", "se3"])
@pytest.mark.slow
def test_the_gaussian_fit_on_poses_beats_the_truth_and_is_near_it(group):
    scales = jnp.array([0.3, 0.1, 0.2, 0.2, 0.3, 0.1])[: group.dimension]
    mean = group.sample((), jnp.float64, key=jax.random.key(5))
    truth = densities.ConcentratedGaussian(group, mean, jnp.diag(scales**2))
    samples = truth.sample((500,), key=jax.random.key(6))
    fit = jax.jit(lambda x: statistics.fit_concentrated_gaussian(group, x))(samples)
    assert fit.converged
    gain = 2 * float(jnp.sum(fit.density.log_prob(samples) - truth.log_prob(samples)))
    freedom = group.dimension * (group.dimension + 3) / 2  # of mean and covariance: Wilks
    assert 0 < gain < scipy.stats.chi2.ppf(0.9999, freedom)
    assert np.abs(np.asarray(group.local(mean, fit.density.mean)) / scales).max() < 4.5 / np.sqrt(500)


def test_the_inverse_wishart_is_conjugate():
    """Posterior ∝ prior × Gaussian likelihood, by SciPy's densities at a few covariances; the mode is its maximum."""
    v = np.random.default_rng(7).normal(size=(8, 3))
    prior = statistics.InverseWishart(jnp.diag(jnp.array([1.0, 2.0, 3.0])), 6.0)
    posterior = prior.updated(jnp.asarray(v))
    assert posterior.freedom == 14
    law = lambda w: scipy.stats.invwishart(df=float(w.freedom), scale=np.asarray(w.matrix))
    covariances = scipy.stats.invwishart(df=9, scale=np.eye(3)).rvs(4, random_state=8)
    constants = [
        law(prior).logpdf(S)
        + scipy.stats.multivariate_normal(np.zeros(3), S).logpdf(v).sum()
        - law(posterior).logpdf(S)
        for S in covariances
    ]
    np.testing.assert_allclose(constants, constants[0], rtol=1e-10)
    np.testing.assert_allclose(posterior.mean, np.asarray(law(posterior).mean()), rtol=1e-12)
    mode = np.asarray(posterior.mode)
    assert all(law(posterior).logpdf(mode) > law(posterior).logpdf(mode + 0.01 * (S - mode)) for S in covariances)


def test_a_prior_on_the_covariance_makes_few_samples_enough():
    samples = rotations(2, 0.3)
    prior = statistics.InverseWishart(0.1 * jnp.eye(3), 5.0)
    fit = statistics.fit_concentrated_gaussian(so3, samples, covariance=prior)
    assert fit.converged
    tangents = so3.local(jnp.broadcast_to(fit.density.mean, samples.shape), samples)
    np.testing.assert_allclose(fit.density.covariance, prior.updated(tangents).mode, rtol=1e-12)


def test_fits_map():
    samples = jnp.stack([rotations(20, 0.5, jnp.float32), rotations(20, 0.2, jnp.float32, seed=1)])
    mapped = jax.jit(jax.vmap(statistics.fit_matrix_fisher))(samples)
    assert mapped.converged.all()
    alone = statistics.fit_matrix_fisher(samples[1]).density
    np.testing.assert_allclose(mapped.density.parameter[1], alone.parameter, rtol=1e-4, atol=1e-3)


def test_arguments_are_checked(own_checks):
    samples = rotations(5, 0.3)
    with pytest.raises(ValueError, match=r"weights: expected shape \(5,\), got \(4,\)"):
        statistics.fit_isotropic_gaussian(samples, jnp.ones(4))
    with pytest.raises(ValueError, match=r"samples: expected shape \(..., 3, 3\)"):
        statistics.fit_matrix_fisher(samples[..., 0])
    with pytest.raises(TypeError, match="samples: expected a floating-point array"):
        statistics.fit_matrix_fisher(jnp.ones((5, 3, 3), int))
    with pytest.raises(ValueError, match="samples: expected rotation matrices"):
        statistics.fit_matrix_fisher(2 * samples)
    with pytest.raises(ValueError, match="weights >= 0"):
        statistics.fit_concentrated_gaussian(so3, samples, -jnp.ones(5))


@pytest.mark.slow
def test_scales_are_fitted_without_bias_and_with_the_right_spread():
    """2000 fits of n = 50 at scale 0.5: mean within 2 %, and 95 ± 2 % inside the interval of Fisher's information."""
    law = densities.IsotropicGaussian(so3.identity((), jnp.float64), jnp.asarray(0.5))
    draws = law.sample((20_000,), key=jax.random.key(1))
    slope = jax.vmap(lambda R: jax.grad(lambda s: densities.IsotropicGaussian(law.mean, s).log_prob(R))(law.scale))(
        draws
    )
    information = float(jnp.mean(slope**2))
    fit = lambda key: statistics.fit_isotropic_gaussian(law.sample((50,), key=key))
    run = jax.jit(lambda keys: jax.lax.map(fit, keys, batch_size=100))
    found = run(jax.random.split(jax.random.key(2), 2000))
    assert found.converged.all()
    scale = np.asarray(found.density.scale)
    inside = np.abs(scale * 50 / 49.5 - 0.5) < 1.96 / np.sqrt(50 * information)
    print("mean scale", scale.mean(), "inside", inside.mean())
    assert abs(scale.mean() / 0.5 - 1) < 0.02
    assert abs(inside.mean() - 0.95) < 0.02
