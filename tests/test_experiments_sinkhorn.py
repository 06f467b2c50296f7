"""The Sinkhorn suite: its closed forms against quadrature and limits, its rate against the plan's singular values."""

import jax
import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments import cuturi2013_sinkhorn as suite
from experiments.engine import exits
from experiments.references import entropic_transport
from experiments.simulators import known_transport


def discrete(C, a, b, epsilon):
    """Sinkhorn's iteration in logarithms, float64: an independent value of entropic transport."""
    f, g = np.zeros(len(a)), np.zeros(len(b))
    soft = lambda M: -epsilon * np.log(np.sum(np.exp((M - M.max(1, keepdims=True)) / epsilon), 1)) - M.max(1)
    for _ in range(500):
        f = soft(g - C + epsilon * np.log(b))
        g = soft(f - C.T + epsilon * np.log(a))
    return a @ f + b @ g


def test_gaussian_closed_form_is_the_value_on_a_fine_grid():
    x = np.linspace(-6, 7, 300)
    law = lambda mean, scale: (w := np.exp(-(((x - mean) / scale) ** 2) / 2)) / w.sum()
    found = discrete((x[:, None] - x) ** 2, law(0, 0.8), law(0.5, 1.2), 0.7)
    assert_allclose(entropic_transport.gaussian(0.5, np.array([0.8]), np.array([1.2]), 0.7), found, rtol=1e-6)
    assert_allclose(entropic_transport.gaussian(0.5, np.array([0.8]), np.array([1.2]), 0.0), 0.25 + 0.16)  # W_2²
    small = entropic_transport.gaussian(0.5, np.array([0.8]), np.array([1.2]), 1e-6)
    assert_allclose((small - 0.41) / (1e-6 * np.log(1e6)), 0.5, atol=0.1)  # (d/2) ε log(1/ε)


def test_class_functions_on_rotations_have_the_value_of_uniform_laws_in_their_limit():
    epsilon = known_transport.MEAN_ANGLE
    assert_allclose(entropic_transport.class_functions((10.0, 10.0), epsilon), entropic_transport.uniform(epsilon))
    wide = entropic_transport.class_functions((known_transport.SCALE, 10.0), 1e5)  # ε → ∞: the mean of the cost
    assert_allclose(wide, known_transport.MEAN_ANGLE, rtol=1e-3)
    same = entropic_transport.class_functions((0.3, 0.3), 0.1)
    flat = entropic_transport.gaussian(0.0, np.full(3, 0.3), np.full(3, 0.3), 0.1)  # a tangent space, nearly
    assert_allclose(same, flat, rtol=0.05)


def test_contraction_stays_below_birkhoffs_bound():
    found = jax.jit(suite.contraction)(jax.random.key(0))
    assert np.all(np.asarray(found["steepest"]) <= np.asarray(found["birkhoff"]))
    assert_allclose(found["late_rate"][:2], found["singular"][:2], rtol=0.05)
    singular = np.asarray(found["singular"], np.float64)
    assert (singular[1:] < singular[:-1]).all()  # faster for larger ε


def test_every_case_has_a_divergence_below_its_value_and_zero_for_equal_laws():
    for case in known_transport.cases():
        assert 0 <= case.divergence < case.value
        assert (case.divergence == 0) == (case.space == "Haar")


@pytest.mark.slow
def test_flows_end_where_the_theory_says():
    config = suite.PRESETS["smoke"]
    found = jax.jit(lambda key: suite.flows(config, key))(jax.random.key(0))
    target = float(found["target_variance"])
    assert abs(float(found["debiased_variance"][-1]) - target) < 0.03
    assert abs(float(found["biased_variance"][-1]) - (target - suite.SHRINK / 2)) < 0.1
    assert_allclose(found["debiased_end"].mean(0), np.zeros(2), atol=0.02)


def test_nonsense_is_refused():
    with pytest.raises(exits.Refused, match="repeats"):
        suite.Config(samples=(8, 16), repeats=(3,))
    with pytest.raises(exits.Refused, match="samples"):
        suite.Config(samples=(8,), repeats=(3,))
