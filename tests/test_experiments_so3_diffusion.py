"""Diffusion on SO(3): densities and scores of the law, denoising is unbiased, exact scores meet the ceiling."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments import debortoli2022_so3_diffusion as diffusion
from experiments.engine import exits
from experiments.simulators import brownian_mixture
from lie import densities, so3, statistics


def law_of(modes, key=0):
    return jax.tree.map(lambda a: a[0], brownian_mixture.sample((modes, 6), diffusion.SHAPE, jax.random.key(key)))


def igso3(cosine, variance):
    """IGSO(3) by its series over degrees, in float64."""
    l, angle = np.arange(400), np.arccos(cosine)[..., None]
    weights = (2 * l + 1) * np.exp(-l * (l + 1) / 2 * variance[..., None])
    return np.sum(weights * np.sin((l + 0.5) * angle), axis=-1) / np.sin(angle[..., 0] / 2)


def test_density_is_the_mean_of_its_modes_and_the_score_its_gradient():
    """Against the series by NumPy and by central differences, at times from 0 to 2; the padded rows do not count."""
    t = np.array([0, 0.01, 0.3, 2.0])
    steps = np.concatenate([1e-5 * np.eye(3), -1e-5 * np.eye(3), np.zeros((1, 3))])[:, None]

    @jax.jit
    def run(key):
        law = jax.tree.map(lambda a: a[0], brownian_mixture.sample((3, 6), diffusion.SHAPE, key))
        law = law._replace(mean=so3.project(law.mean.astype(t.dtype)), scale=law.scale.astype(t.dtype))
        R = so3.retract(law.mean[np.arange(4) % 3], jnp.asarray([0.1, -0.15, 0.05], t.dtype))
        found = brownian_mixture.density(law, so3.retract(R, jnp.asarray(steps)), jnp.broadcast_to(t, (7, 4)))
        return law, R, *found

    law, R, logs, scores = run(jax.random.key(0))
    mean, scale = np.asarray(law.mean[:3]), np.asarray(law.scale[:3])
    cosine = (np.einsum("kij,nij->nk", mean, np.asarray(R)) - 1) / 2
    expected = np.mean(igso3(cosine, scale**2 + t[:, None]), axis=1) / (8 * math.pi**2)
    assert_allclose(logs[6], np.log(expected), rtol=1e-9, atol=1e-9)
    assert_allclose(scores[6].T, (logs[:3] - logs[3:6]) / 2e-5, rtol=1e-6, atol=1e-5)


def test_haar_is_as_near_at_the_end_as_stated():
    """The divergence of one point's law from Haar's measure is minus its entropy: bounded, and below 1e-3 at END."""
    t = jnp.asarray([1.0, 3.0, diffusion.END], jnp.float64)
    entropy = jax.jit(lambda t: densities.IsotropicGaussian(jnp.eye(3), jnp.sqrt(t)).entropy())(t)
    bounds = [brownian_mixture.haar_divergence(float(time)) for time in t]
    assert np.all((-np.asarray(entropy) > 0) & (-np.asarray(entropy) < bounds))
    assert bounds[-1] < 1e-3


def test_network_is_the_score_of_a_matrix_fisher_law():
    """With M alone left it is the gradient of tr(MᵀR)/2 (t + w²) along R exp(u); before training it is zero."""
    config, score = diffusion.Config(width=8, layers=1), jax.jit(diffusion.network)
    layers = jax.jit(lambda key: diffusion.untrained(config, key))(jax.random.key(0))
    R, log_t = so3.sample((5,), jnp.float32, key=jax.random.key(1)), jnp.float32(-3.0)
    assert_allclose(score(layers, R, log_t), 0)
    M = jax.random.normal(jax.random.key(2), (3, 3), jnp.float32)
    layers[-1]["bias"] = M.ravel()
    hats = np.cross(np.eye(3)[:, None], np.eye(3)).swapaxes(1, 2)  # e_i x e_j is column j of matrix i
    expected = np.einsum("ab,nac,kcb->nk", M, R, hats) / (2 * (math.exp(-3) + 0.005))
    assert_allclose(score(layers, R, log_t), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_denoising_loss_is_least_at_the_exact_score_with_the_stated_excess():
    """E loss(s + d) − E loss(s) = ½ ∫ t |d|² d log t for the exact score s: unbiased, in the right frame; 5 errors."""
    law, keys = law_of(2), jax.random.split(jax.random.key(3), 2)
    d = jnp.asarray([0.3, -0.2, 0.1], jnp.float32)

    @jax.jit
    def differences(key_time, key_draw):
        log_t = diffusion.log_times(10_000, key_time)
        X, noise = brownian_mixture.draw(law, jnp.exp(log_t), key_draw)
        truth = densities.IsotropicGaussian(so3.identity(log_t.shape, X.dtype), jnp.exp(log_t / 2)).score(noise)
        reached = jnp.stack([so3.compose(X, noise), so3.compose(X, so3.inverse(noise))])
        exact = brownian_mixture.density(law, reached, jnp.broadcast_to(jnp.exp(log_t), (2, 10_000)))[1]
        shift = d / jnp.exp(log_t / 2)[:, None]
        lessons = diffusion.Lesson(log_t, X, noise, truth)
        split = jax.tree.map(lambda a: a.reshape(-1, 100, *a.shape[1:]).swapaxes(0, 1), lessons)
        parts = lambda scores: scores.reshape(2, -1, 100, 3).transpose(2, 0, 1, 3)
        of = lambda lesson, score: diffusion.loss(lambda log_t, R: score, lesson)
        return jax.vmap(of)(split, parts(exact + shift)) - jax.vmap(of)(split, parts(exact))

    values = np.asarray(differences(*keys), np.float64)
    expected = diffusion.LOG_RANGE / 2 * 0.14
    error = values.std(ddof=1) / 10
    assert error < 0.1 * expected
    assert abs(values.mean() - expected) < 5 * error


def test_times_are_one_in_each_part_of_the_range():
    log_t = np.asarray(diffusion.log_times(50, jax.random.key(0)), np.float64)
    parts = np.floor((log_t - math.log(diffusion.START)) / diffusion.LOG_RANGE * 50 + 1e-4)
    assert_allclose(parts, np.arange(50), atol=1)
    assert np.all(np.diff(log_t) > 0)
    assert log_t[0] >= math.log(diffusion.START) - 1e-6
    assert log_t[-1] <= math.log(diffusion.END) + 1e-6


def test_a_likelihood_above_the_ceiling_fails():
    config = diffusion.Config(modes=(2,), tests=64, draws=4, blocks=1)
    state: Any = None  # the rows need metrics alone
    points = np.random.default_rng(0).standard_normal((3, 4, 3))
    metrics = {"true_log_likelihood": 1.0, "true_variance": 1.0, "gap_error": 0.01, "score_divergence_nats": 0.1}
    metrics = {name: np.full((1, 1), value) for name, value in metrics.items()} | {"draws": points[None, None]}
    for ours, passes in ((1.02, True), (1.04, False)):
        found = diffusion.result(config, metrics | {"log_likelihood": np.full((1, 1), ours)}, state)
        rows = {row.name: row for row in found.rows}
        row = rows["K = 2, standard errors above the ceiling"]
        assert (row.value <= row.high) is passes


def test_nonsense_is_refused():
    for field, value in {"steps": 0, "batch": 5, "modes": (), "average": 1.0, "draws": 5000}.items():
        with pytest.raises(exits.Refused, match=field):
            diffusion.Config(**{field: value})


def test_flow_and_reversed_diffusion_follow_a_law_of_the_second_degree():
    """p_t = 1 + c exp(−3t) χ₂, χ₂ = tr² − tr − 1: Brownian motion damps degree 2 by exp(−3t). Likelihoods; E χ₂ = c."""
    c = 0.15
    character = lambda R: jnp.trace(R, axis1=-2, axis2=-1) ** 2 - jnp.trace(R, axis1=-2, axis2=-1) - 1

    def score(log_t, R):
        part = c * jnp.exp(-3 * jnp.exp(log_t))
        slope = (2 * jnp.trace(R, axis1=-2, axis2=-1) - 1) * part / (1 + part * character(R))
        return slope[..., None] * so3.vee(jnp.swapaxes(R, -1, -2) - R)

    @jax.jit
    def run(R, key):
        drawn = diffusion.generate(score, 20_000, 50, key)
        return diffusion.log_likelihood(score, R, 25), jnp.log(1 + c * character(R)), character(drawn)

    ours, true, drawn = run(so3.sample((64,), jnp.float32, key=jax.random.key(5)), jax.random.key(6))
    assert_allclose(ours, true - math.log(8 * math.pi**2), atol=1e-3)  # START is not 0: 5 c START
    assert abs(float(jnp.mean(drawn)) - c) < 5 * float(jnp.std(drawn)) / math.sqrt(20_000)


@pytest.mark.slow
def test_exact_scores_meet_the_ceiling_and_draw_the_data():
    """All that is left without a network: steps, START for 0, Haar for END. 0.003 nats; draws are like data."""
    law = law_of(6)
    score = lambda log_t, R: brownian_mixture.density(law, R, jnp.broadcast_to(jnp.exp(log_t), R.shape[:-2]))[1]
    keys = jax.random.split(jax.random.key(4), 4)

    @jax.jit
    def run(key_data, key_draws):
        X, _ = brownian_mixture.draw(law, jnp.zeros(1000, jnp.float32), key_data)
        ours = diffusion.log_likelihood(score, X, diffusion.Config().flow_steps)
        true = brownian_mixture.density(law, X, jnp.zeros(1000, jnp.float32))[0]
        return X, true - ours, diffusion.generate(score, 500, diffusion.Config().draw_steps, key_draws)

    X, gap, drawn = run(keys[0], keys[1])
    assert abs(float(jnp.mean(gap))) < 0.003 + 3 * float(jnp.std(gap)) / math.sqrt(1000)
    assert float(jnp.std(gap)) < 0.1
    assert statistics.energy_test(drawn, X[:500], key=keys[2]).p_value > 0.01
