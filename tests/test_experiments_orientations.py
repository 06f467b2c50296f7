"""The orientation experiment: published means, conjugate classifiers, the cube's symmetry, mixtures by EM."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import integrate

from experiments import stanfill2014_orientations as orientations
from experiments.classifiers import crystal_mixture, decision_tree, naive_bayes
from experiments.engine import exits
from experiments.simulators import orientation_samples
from lie import densities, so3


def test_published_means_to_all_printed_digits(data_folder):
    data = orientations.data(orientations.Config(), data_folder)
    found = orientations.means(data)
    assert int(found["location_1_wrong_digits"]) == 0
    assert int(found["wrist_1_wrong_digits"]) == 0
    assert (np.sum(data.place == 0), np.sum(data.subject == 1)) == (14, 30)


def test_cube_is_a_group_of_24_and_bounds_disorientations():
    group = crystal_mixture.cube()
    assert_allclose(group[0], np.eye(3))
    assert len(np.unique(group.reshape(24, 9), axis=0)) == 24
    products = (group[:, None] @ group).reshape(-1, 9)
    assert len(np.unique(np.concatenate([products, group.reshape(24, 9)]), axis=0)) == 24
    R = np.asarray(so3.sample((2, 20_000), jnp.float64, key=jax.random.key(0)))
    angles = crystal_mixture.disorientation(*R)
    assert angles.max() <= crystal_mixture.LARGEST_ANGLE_DEGREES
    assert angles.max() > 61
    assert_allclose(angles.mean(), 40.74, atol=0.3)  # Mackenzie 1958: mean 40.74°; sd 11.3°, so 0.3 is 3.7 errors
    S = group[17]
    assert_allclose(crystal_mixture.disorientation(R[0][:50], R[1][:50] @ S), angles[:50], atol=1e-5)
    assert_allclose(crystal_mixture.disorientation(R[0][:50] @ S, R[1][:50]), angles[:50], atol=1e-5)


def test_concentrated_density_is_the_matrix_fisher_law():
    R = so3.sample((6,), jnp.float64, key=jax.random.key(1))
    for kappa in (0.5, 8.0, 900.0):
        law = densities.MatrixFisher(kappa * jnp.eye(3, dtype=jnp.float64))
        away = (3 - np.trace(np.asarray(R), axis1=1, axis2=2)) / 2
        assert_allclose(crystal_mixture.log_density(away, kappa), law.log_prob(R), rtol=1e-8)
        assert_allclose(crystal_mixture.deviation(kappa), (3 - np.trace(law.mean)) / 2, rtol=1e-8)


def test_mixture_finds_grains_through_the_cube_and_its_likelihood_never_falls():
    rng = np.random.default_rng(0)
    modes = np.asarray(so3.sample((4,), jnp.float64, key=jax.random.key(5)))
    truth = rng.integers(4, size=200)
    noise = so3.exp(jnp.asarray(0.02 * rng.standard_normal((200, 3))))
    R = modes[truth] @ np.asarray(noise) @ crystal_mixture.cube()[rng.integers(24, size=200)]
    found = crystal_mixture.fit(R, crystal_mixture.cube(), 4, 25, rng)
    assert np.diff(found.log_likelihood).min() > -1e-9
    assert_allclose(found.weights.sum(), 1)
    assert crystal_mixture.adjusted_rand(found.responsibilities.argmax(1), truth) > 0.99
    assert_allclose(found.kappa, 1 / (2 * 0.02**2), rtol=0.35)  # 150 squares each: relative error 12 %
    blind = crystal_mixture.fit(R, np.eye(3)[None], 4, 25, rng)
    assert crystal_mixture.adjusted_rand(blind.responsibilities.argmax(1), truth) < 0.5


def test_adjusted_rand_of_equal_and_of_hand_counted_labels():
    a = np.array([0, 0, 1, 1, 2, 2])
    assert crystal_mixture.adjusted_rand(a, (a + 1) % 3) == 1
    # table [[1,1,0],[0,1,1],[1,0,1]]: no pair together in both, 3 and 3 pairs in each, expected 3·3/15
    assert_allclose(crystal_mixture.adjusted_rand(a, np.array([0, 1, 1, 2, 2, 0])), (0 - 0.6) / (3 - 0.6))


def test_predictive_laws_are_densities_and_posteriors_do_not_depend_on_the_order():
    law = naive_bayes.BetaBinomial(2.0, 5.0)
    n = np.stack([np.arange(11), np.full(11, 10)], axis=1)
    assert_allclose(np.exp(law.log_prob(n)).sum(), 1)
    assert law.updated(n[3:7]) == law.updated(n[5:7]).updated(n[3:5])
    waiting = naive_bayes.GammaRate(1.5, 3.0, 2.0)
    total, _ = integrate.quad(lambda x: float(np.exp(waiting.log_prob(np.array([x]))[0])), 0, np.inf)
    assert_allclose(total, 1, rtol=1e-6)
    x = np.array([0.3, 1.2, 4.0])
    assert_allclose(waiting.updated(x), waiting.updated(x[2:]).updated(x[:2]))
    # Bayes' rule itself: the predictive of a second value is the ratio of marginal likelihoods.
    joint, _ = integrate.quad(lambda r: _gamma(r, 3.0, 2.0) * _gamma(0.3, 1.5, r) * _gamma(1.2, 1.5, r), 0, np.inf)
    alone = float(waiting.log_prob(x[:1])[0])
    assert_allclose(np.exp(alone + waiting.updated(x[:1]).log_prob(x[1:2])[0]), joint, rtol=1e-6)
    labels = naive_bayes.DirichletCategorical((1.0, 1.0, 1.0)).updated(np.array([0, 0, 2]))
    assert_allclose(np.exp(labels.log_prob(np.arange(3))), [3 / 6, 1 / 6, 2 / 6])


def _gamma(x, shape, rate):
    from scipy.stats import gamma

    return gamma.pdf(x, shape, scale=1 / rate)


def test_tree_takes_the_split_of_greatest_gain_and_learns_an_interval():
    assert_allclose(decision_tree.entropy(np.array([0, 0.5, 0.25, 1])), [0, 1, 2 - 0.75 * np.log2(3), 0])
    x = np.array([[0.0, 5], [1, 1], [2, 4], [3, 2], [4, 3], [5, 0]])
    labels = np.array([False, False, True, True, True, True])
    gain, feature, threshold = decision_tree.best_split(x, labels, 1)
    assert (feature, threshold) == (0, 1.5)
    assert_allclose(gain, decision_tree.entropy(1 / 3))  # both sides are pure
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(2000, 3))
    inside = (x[:, 1] > 0.3) & (x[:, 1] < 0.6)
    tree = decision_tree.grow(x, inside, depth=2)
    assert np.mean((tree.predict(x) > 0.5) == inside) > 0.98
    assert tree.feature == 1


def test_area_under_roc_counts_pairs():
    score, positive = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, False, True, True])
    assert_allclose(orientations.area_under_roc(score, positive), 3.5 / 4)


def test_cayley_angles_have_their_moment():
    """E[cos ω] = 2 (κ + 1/2)/(κ + 2) − 1."""
    R = orientation_samples.cayley(20_000, 10.0, key=jax.random.key(2))
    cosine = (np.trace(np.asarray(R, np.float64), axis1=1, axis2=2) - 1) / 2
    assert_allclose(cosine.mean(), 2 * 10.5 / 12 - 1, atol=0.006)  # sd 0.18: 5 standard errors


def test_data_is_asked_for():
    with pytest.raises(exits.Refused, match="ebsd_so3"):
        orientations.data(orientations.Config(), None)
