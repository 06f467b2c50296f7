"""Schrödinger bridges against the Gaussian closed form, the heat kernel on SO(3), chains against their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from lie import densities, euclidean, processes, so3
from ot import bridge

MEANS, DEVIATIONS, SIGMA = (-0.5, 1.0), (0.6, 0.9), 0.8


def grid(size=61, dtype=jnp.float64):
    """Points of a line and the weights that two Gaussians give them: so fine that sums are integrals to 1e-10."""
    points = np.linspace(-7, 7, size)
    rows = [np.exp(-0.5 * ((points - m) / s) ** 2) for m, s in zip(MEANS, DEVIATIONS, strict=True)]
    return jnp.asarray(points, dtype)[:, None], *(jnp.asarray(row / row.sum(), dtype) for row in rows)


def gaussian(t):
    """Mean and variance at time t of the bridge between the two Gaussians (Bunne et al. 2023, equations 25-27)."""
    (m0, m1), (s0, s1) = MEANS, DEVIATIONS
    covariance = (np.sqrt(4 * s0**2 * s1**2 + SIGMA**4) - SIGMA**2) / 2
    mean = (1 - t) * m0 + t * m1
    variance = (1 - t) ** 2 * s0**2 + t**2 * s1**2 + 2 * t * (1 - t) * covariance + SIGMA**2 * t * (1 - t)
    return mean, variance, covariance


@pytest.fixture(scope="module")
def line():
    points, a, b = grid()
    return bridge.solve(points, points, a, b, sigma=SIGMA, tolerance=1e-8)


def test_the_static_plan_has_the_covariance_of_the_closed_form(line):
    points, _, _ = grid()
    assert line.converged
    P, z = np.asarray(line.potentials.plan()), np.asarray(points)[:, 0]
    covariance = z @ P @ z - (z @ P.sum(1)) * (z @ P.sum(0))
    assert_allclose(covariance, gaussian(0.5)[2], rtol=1e-6)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.8])
def test_drift_is_the_affine_field_of_the_closed_form(line, t):
    mean, variance, covariance = gaussian(t)
    m1, s1 = MEANS[1], DEVIATIONS[1]
    z = jnp.linspace(mean - 1, mean + 1, 5)[:, None]
    # E[X_1 | X_t = z] is linear in z for Gaussians; the drift is (that − z)/(1 − t).
    cross = t * s1**2 + (1 - t) * covariance
    expected = (m1 + cross / variance * (np.asarray(z) - mean) - np.asarray(z)) / (1 - t)
    assert_allclose(line.drift(t, z), expected, rtol=1e-5, atol=1e-6)


def test_drift_is_the_gradient_of_the_future(line):
    z = jnp.array([0.4])
    gradient = jax.grad(lambda z: line.log_future(0.3, z))(z)
    assert_allclose(line.drift(0.3, z), SIGMA**2 * gradient, rtol=1e-10)


def test_samples_have_the_law_of_the_closed_form(line):
    times = jnp.array([0.0, 0.25, 0.7, 1.0])
    size = 40_000
    draw = jax.jit(lambda t, key: line.sample(t, size=size, key=key))
    for t, key in zip(times, jax.random.split(jax.random.key(0), 4), strict=True):
        z = np.asarray(draw(t, key))[:, 0]
        mean, variance, _ = gaussian(float(t))
        assert abs(z.mean() - mean) < 4 * np.sqrt(variance / size)
        assert abs(z.var() / variance - 1) < 4 * np.sqrt(2 / size)


def test_stepping_the_drift_arrives_at_the_end(line):
    start = MEANS[0] + DEVIATIONS[0] * jax.random.normal(jax.random.key(1), (4000, 1), jnp.float64)
    steps = 64
    final = processes.sde(
        euclidean, line.drift, SIGMA, start, jnp.linspace(0.0, 1.0, steps + 1), key=jax.random.key(2)
    ).final
    assert abs(float(jnp.mean(final)) - MEANS[1]) < 4 * DEVIATIONS[1] / 4000**0.5 + 1 / steps
    assert abs(float(jnp.std(final)) - DEVIATIONS[1]) < 4 * DEVIATIONS[1] / 8000**0.5 + 1 / steps


@pytest.mark.slow  # compiles a minute's worth of the rotation density's derivative
def test_a_bridge_of_rotations_starts_and_ends_where_it_should():
    def log_transition(t, z, y):
        return densities.IsotropicGaussian(z, 0.7 * jnp.sqrt(t)).log_prob(y)

    centres = so3.exp(jnp.array([[0.0, 0.0, 0.0], [0.0, 0.0, 1.5]]))
    x = so3.compose(centres[0], so3.exp(0.2 * jax.random.normal(jax.random.key(0), (6, 3))))
    y = so3.compose(centres[1], so3.exp(0.2 * jax.random.normal(jax.random.key(1), (5, 3))))
    found = bridge.solve(x, y, sigma=0.7, group=so3, log_transition=log_transition, tolerance=1e-6)
    assert found.converged
    P = np.asarray(found.potentials.plan())
    assert_allclose(P.sum(1), 1 / 6, atol=1e-6)
    field = found.drift(0.2, x)
    towards = jnp.mean(so3.local(x[:, None], y[None]), axis=1)
    assert field.shape == (6, 3)
    assert (
        float(
            jnp.min(
                jnp.sum(field * towards, -1) / (jnp.linalg.norm(field, axis=-1) * jnp.linalg.norm(towards, axis=-1))
            )
        )
        > 0.9
    )
    # Left multiplication moves samples and bridge together, and leaves the body-frame drift as it is.
    g = so3.exp(jnp.array([0.3, -1.0, 0.5]))
    moved = bridge.solve(
        so3.compose(g, x), so3.compose(g, y), sigma=0.7, group=so3, log_transition=log_transition, tolerance=1e-6
    )
    assert_allclose(moved.drift(0.2, so3.compose(g, x)), field, atol=1e-3)


def heat(points, time):
    """log of the Brownian transition over `time`, rows normalised on the grid."""
    K = -((points - points.T) ** 2) / (2 * SIGMA**2 * time)
    return K - jax.nn.logsumexp(K, axis=1, keepdims=True)


@pytest.mark.parametrize("steps", [1, 4])
def test_a_chain_of_short_steps_is_the_gaussian_bridge(steps):
    points, a, b = grid()
    found = bridge.chain([heat(points, 1 / steps)] * steps, a, b, tolerance=1e-10)
    assert found.converged
    z = np.asarray(points)[:, 0]
    for k, p in enumerate(found.marginals()):
        mean, variance, _ = gaussian(k / steps)
        assert_allclose(np.sum(p), 1, rtol=1e-8)
        assert_allclose([z @ p, z**2 @ p - (z @ p) ** 2], [mean, variance], rtol=1e-6)
    assert_allclose(found.marginals()[0], a, atol=1e-12)
    assert_allclose(found.marginals()[-1], b, atol=1e-9)
    P = np.asarray(a)
    for T in found.transitions():
        rows = np.asarray(T).sum(1)
        assert_allclose(rows, 1, rtol=1e-9)
        P = P @ np.asarray(T)
    assert_allclose(P, b, atol=1e-9)


def random_chain(dtype=jnp.float64):
    keys = jax.random.split(jax.random.key(4), 3)
    shapes = [(4, 5), (5, 6), (6, 3)]
    kernels = [jax.nn.log_softmax(jax.random.normal(k, s, dtype), axis=1) for k, s in zip(keys, shapes, strict=True)]
    return kernels, jnp.array([0.1, 0.2, 0.3, 0.4], dtype), jnp.array([0.5, 0.25, 0.25], dtype)


def test_the_chain_minimises_the_relative_entropy_of_its_paths(dtype):
    kernels, a, b = random_chain(dtype)
    found = bridge.chain(kernels, a, b, tolerance=1e-6)
    K = [np.exp(np.asarray(k, float)) for k in kernels]
    reference = np.einsum("i,ij,jk,kl->ijkl", np.asarray(a, float), *K)
    u, v = np.exp(np.asarray(found.log_start, float)), np.exp(np.asarray(found.log_end, float))
    P = np.einsum("i,ij,jk,kl,l->ijkl", u, *K, v)
    eps = float(jnp.finfo(dtype).eps)
    violation = np.abs(P.sum((1, 2, 3)) - np.asarray(a)).sum() + np.abs(P.sum((0, 1, 2)) - np.asarray(b)).sum()
    assert violation <= 1e-6 + 64 * eps
    assert_allclose(found.value, np.sum(P * np.log(P / reference)), rtol=1e-5, atol=64 * eps)
    assert_allclose(found.marginals()[2], P.sum((0, 1, 3)), atol=64 * eps)
    # Any other law with the same ends is further from the reference: move mass around a cycle of the middle.
    other = P.copy()
    other[0, 0, 0, 0] += 1e-3
    other[0, 1, 1, 0] -= 1e-3
    keep = other > 0
    assert np.sum(other[keep] * np.log(other[keep] / reference[keep])) > float(found.value) - 64 * eps


def test_steps_that_are_impossible_stay_so_and_an_end_out_of_reach_is_told():
    kernels, a, b = random_chain()
    closed = [kernels[0].at[:, 2].set(-jnp.inf), *kernels[1:]]
    found = bridge.chain(closed, a, b, tolerance=1e-8)
    assert found.converged
    assert float(found.marginals()[1][2]) == 0
    cut = [*kernels[:2], kernels[2].at[:, 1].set(-jnp.inf)]
    lost = bridge.chain(cut, a, b, max_steps=50)
    assert not lost.converged
    assert_allclose(lost.error, 0.25, atol=0.3)


def test_value_of_a_chain_differentiates_in_its_kernels():
    kernels, a, b = random_chain()
    value = lambda k: bridge.chain([k, *kernels[1:]], a, b, tolerance=1e-12).value
    step, h = jax.random.normal(jax.random.key(9), kernels[0].shape, jnp.float64), 1e-5
    slope = (value(kernels[0] + h * step) - value(kernels[0] - h * step)) / (2 * h)
    assert_allclose(jnp.sum(jax.grad(value)(kernels[0]) * step), slope, rtol=1e-6)


def test_each_chain_of_a_batch_stops_on_its_own():
    kernels, a, b = random_chain(jnp.float32)
    many = [jnp.stack([k, 3 * k]) for k in kernels]
    together = bridge.chain(many, a, b)
    alone = [bridge.chain([k[i] for k in many], a, b) for i in range(2)]
    assert together.steps.tolist() == [int(one.steps) for one in alone]
    assert_allclose(together.value, jnp.stack([one.value for one in alone]), rtol=1e-4)


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        (ValueError, "sigma", lambda x: bridge.solve(x, x, sigma=0.0)),
        (ValueError, "sigma", lambda x: bridge.solve(x, x, sigma=jnp.ones(2))),
        (ValueError, "x", lambda x: bridge.solve(x * jnp.nan, x, sigma=1.0)),
        (ValueError, "x and y", lambda x: bridge.solve(x[None], x, sigma=1.0)),
        (ValueError, "group and log_transition", lambda x: bridge.solve(x, x, sigma=1.0, group=so3)),
        (ValueError, "log_kernels", lambda x: bridge.chain([])),
        (ValueError, r"log_kernels\[1\]", lambda x: bridge.chain([jnp.zeros((3, 4)), jnp.zeros((3, 4))])),
        (ValueError, r"log_kernels\[0\]", lambda x: bridge.chain([jnp.full((3, 4), jnp.nan)])),
        (TypeError, r"log_kernels\[0\]", lambda x: bridge.chain([jnp.zeros((3, 4), int)])),
        (ValueError, "b: ", lambda x: bridge.chain([jnp.zeros((3, 4))], None, jnp.ones(4))),
    ],
)
def test_bad_input_is_named(error, name, call, own_checks):
    with pytest.raises(error, match=name):
        call(jnp.ones((3, 2)))
