"""The rotations experiment: heads give back rotations, the noise law, exact derivatives, ranks that see a wrong law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments import zhou2019_rotations as rotations
from experiments.engine import exits
from experiments.simulators import degenerate
from lie import charts, densities, so3


def _numbers(R):
    """What each head must give for R, by the charts' own inverses."""
    axis, angle = charts.axis_angle_from_matrix(R)
    return {
        "sixd": charts.sixd_from_matrix(R),
        "fived": charts.fived_from_matrix(R),
        "svd": R.reshape(*R.shape[:-2], 9),
        "quaternion": charts.quaternion_from_matrix(R),
        "axis_angle": jnp.concatenate([jnp.arctanh(angle / jnp.pi)[..., None], axis], axis=-1),
        "euler": charts.euler_from_matrix(R),
    }


def test_every_head_reaches_every_rotation():
    R = so3.sample((50,), jnp.float64, key=jax.random.key(0))
    found = jax.jit(lambda R: {n: (x, rotations.HEADS[n].matrix(x)) for n, x in _numbers(R).items()})(R)
    assert found.keys() == rotations.HEADS.keys()
    for name, (numbers, again) in found.items():
        assert numbers.shape == (50, rotations.HEADS[name].size)
        assert_allclose(again, R, atol=1e-11, err_msg=name)


def test_noise_left_is_three_and_six_times_its_variance():
    draws = 40_000
    found = jax.jit(lambda key: rotations.noise_law(draws, key))(jax.random.key(1))
    for name, law in rotations.LAW.items():
        first, second = np.asarray(found[f"{name}_law_moments"], np.float64)[:2].T  # σ of 0.01 and 0.03
        error = np.sqrt((second - first**2) / draws)
        assert np.all(np.abs(first - law) < 4 * error + 0.01 * law), name
        assert np.all(error < 0.01 * law)


def test_exact_jacobian_is_the_difference_quotient():
    rng = np.random.default_rng(0)
    M, h = degenerate.matrices("flat", 0.1, 3, rng), 1e-6
    steps = h * np.eye(9).reshape(9, 1, 3, 3)
    both = jax.jit(so3.project)(jnp.asarray(np.stack([M + steps, M - steps])))
    quotient = np.moveaxis(np.asarray(both[0] - both[1]) / (2 * h), 0, -1).reshape(3, 3, 3, 3, 3)
    assert_allclose(degenerate.exact_jacobian(M), quotient, atol=1e-6)


@pytest.mark.parametrize("gap", [0.3, 1e-3])
def test_degenerate_matrices_are_as_far_from_it_as_they_say(gap):
    rng = np.random.default_rng(1)
    for kind, distance in (("repeated", lambda s, sign: s[0] - s[1]), ("flat", lambda s, sign: s[1] + sign * s[2])):
        for M in degenerate.matrices(kind, gap, 4, rng):
            assert_allclose(distance(np.linalg.svd(M)[1], np.sign(np.linalg.det(M))), gap, rtol=1e-9)
    for M in degenerate.matrices("parallel", gap, 4, rng):
        assert_allclose(np.linalg.norm(np.cross(M[:, 0], M[:, 1])), np.sin(gap), rtol=1e-9)


def test_derivatives_of_ours_are_exact_where_a_textbook_svd_divides_by_zero():
    found = degenerate.measure(2, np.random.default_rng(2))
    repeated, flat, parallel = range(3)
    assert np.all(found["ours_jacobian_error"][[repeated, parallel]] < 1e-5)
    assert found["ours_finite_at_identity"] == 1
    assert np.all(np.isfinite(found["ours_jacobian_norm"]))
    assert found["textbook_jacobian_error"][repeated, degenerate.GAPS.index(1e-5)] > 1e-4
    assert_allclose(found["ours_jacobian_norm"][flat, 3], 2e3, rtol=0.01)
    assert_allclose(found["gram_schmidt_jacobian_norm"][parallel, 3], 2e3, rtol=0.01)


@pytest.mark.slow
def test_ranks_are_uniform_for_the_true_law_and_not_for_one_twice_as_sure():
    keys = jax.random.split(jax.random.key(3), 3)

    @jax.jit
    def found(keys):
        truth = rotations.true_law(so3.sample((800,), jnp.float32, key=keys[0]))
        target = truth.sample(key=keys[1])
        laws = densities.MatrixFisher(jnp.stack([truth.parameter, 2 * truth.parameter]))
        return rotations.ranks(laws, jnp.broadcast_to(target, (2, *target.shape)), keys[2])

    rank = np.asarray(found(keys)[1])
    right, sure = (np.histogram(r, bins=np.arange(0, 101, 10))[0] for r in rank)
    squares = lambda counts: np.sum((counts - 80) ** 2 / 80)  # chi-squared, 9 degrees of freedom
    assert squares(right) < 27.9  # one in a thousand
    assert squares(sure) > 60
    assert abs(np.mean(rank[0] >= 5) - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 800)
    assert np.mean(rank[1] >= 5) < 0.9


def test_nonsense_is_refused():
    with pytest.raises(exits.Refused, match="batch"):
        rotations.Config(batch=0)
    for heads in ((), ("sixd",), ("sixd", "quaternions")):
        with pytest.raises(exits.Refused, match="heads"):
            rotations.Config(heads=heads)


@pytest.mark.slow
def test_six_numbers_are_learned_better_than_four():
    config = rotations.Config(
        ("sixd", "quaternion"),
        1500,
        1,
        rate=1e-3,
        schedule="cosine",
        tests=5000,
        calibrations=500,
        draws=10,
        matrices=1,
    )
    state = rotations.init(config, jax.random.key(0))
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a Python float to an integer power
        _, metrics = jax.jit(lambda state: rotations.advance(config, state))(state)
    assert metrics["sixd_max_degrees"] < 30
    assert metrics["quaternion_max_degrees"] > 90
    assert metrics["sixd_mean_degrees"] < metrics["quaternion_mean_degrees"] / 2
    assert metrics["fisher_mean_degrees"] < 30
