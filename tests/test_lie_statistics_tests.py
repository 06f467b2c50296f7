"""Hypothesis tests on SO(3): closed forms and SciPy quickly; size, power and coverage by simulation when slow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from jax import export
from scipy.spatial.transform import Rotation

from lie import densities, euclidean, so3, statistics, su2
from lie.statistics import uniformity

LEVEL = 0.05
# Jitted once here: op by op, each small kernel would be a compilation.
rayleigh, bingham, gine = (jax.jit(test) for test in (statistics.rayleigh, statistics.bingham, statistics.gine))
sobolev = jax.jit(statistics.sobolev, static_argnums=1)
energy_test = jax.jit(statistics.energy_test, static_argnames="permutations")
kernel_test = jax.jit(statistics.kernel_test, static_argnums=2, static_argnames="permutations")
gine_tail = jax.jit(uniformity.gine_tail)


def uniform(shape, seed=0, dtype=jnp.float64):
    return so3.sample(shape, dtype, key=jax.random.key(seed))


def test_rayleigh_of_one_rotation_is_known():
    found = rayleigh(uniform((1,)))
    np.testing.assert_allclose(found.statistic, 9, rtol=1e-14)
    np.testing.assert_allclose(found.p_value, scipy.stats.chi2.sf(9, 9), rtol=1e-12)


def test_rayleigh_bingham_and_sobolev_agree(dtype):
    """R is linear in q qᵀ, and degree 1 is the rotation itself: three forms of one test."""
    q = su2.sample((30, 2), dtype, key=jax.random.key(1))
    q = q / jnp.linalg.norm(q, axis=-1, keepdims=True)
    R = jnp.asarray(
        Rotation.from_quat(np.asarray(q, np.float64).reshape(-1, 4), scalar_first=True).as_matrix(), dtype
    ).reshape(30, 2, 3, 3)
    tests = (bingham(q), bingham(-q), sobolev(R, 1))
    first = rayleigh(R)
    for other in tests:
        tolerance = 2e3 * float(jnp.finfo(dtype).eps)  # 900 pairs enter the sums
        np.testing.assert_allclose(first.statistic, other.statistic, rtol=tolerance)
        np.testing.assert_allclose(first.p_value, other.p_value, rtol=20 * tolerance)
        assert other.p_value.dtype == dtype


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_sobolev_sums_characters(degree):
    R = uniform((7,), seed=2)
    angles = np.asarray(so3.distance(R[:, None], jnp.broadcast_to(R[None], (7, 7, 3, 3))))
    m = 2 * degree + 1
    ratio = np.sin(m * angles / 2) / np.where(angles == 0, 1, np.sin(angles / 2))
    expected = m / 7 * np.where(angles < 1e-7, m, ratio).sum()
    found = sobolev(R, degree)
    np.testing.assert_allclose(found.statistic, expected, rtol=1e-10)
    np.testing.assert_allclose(found.p_value, scipy.stats.chi2.sf(expected, m * m), rtol=1e-10)


def test_gine_sees_its_series():
    """The kernel's expansion over characters, summed to degree 20 000, and the law's mean, 8/3π."""
    R = uniform((4,), seed=3)
    angles = np.asarray(so3.distance(R[:, None], jnp.broadcast_to(R[None], (4, 4, 3, 3))))
    m = 2 * np.arange(1, 20_001) + 1.0
    half = np.where(angles < 1e-7, 1, angles)[..., None] / 2
    characters = np.where(angles[..., None] < 1e-7, m, np.sin(m * half) / np.sin(half))
    series = (8 / (np.pi * m * (m**2 - 4)) * characters).sum() / 4
    np.testing.assert_allclose(gine(R).statistic, series, atol=1e-4)
    np.testing.assert_allclose(gine(R[:1]).statistic, 8 / (3 * np.pi), rtol=1e-14)


def test_the_tail_of_gine_is_imhofs_integral(dtype):
    """Against adaptive quadrature of the integral with 2000 degrees instead of 40; the mean of the rest is exact."""
    m = 2 * np.arange(1, 2001) + 1.0
    scale = 8 / (np.pi * m**2 * (m**2 - 4))
    rest = 8 / (3 * np.pi) - np.sum(scale * m**2)

    def tail(x):
        def integrand(u):
            phase = 0.5 * np.sum(m**2 * np.arctan(scale * u)) - 0.5 * (x - rest) * u
            return np.sin(phase) / (u * np.exp(0.25 * np.sum(m**2 * np.log1p((scale * u) ** 2))))

        return 0.5 + scipy.integrate.quad(integrand, 1e-12, 700, limit=400, epsabs=1e-10)[0] / np.pi

    x = np.array([0.4, 0.7, 0.85, 1.1, 1.6, 2.5])
    found = gine_tail(jnp.asarray(x, dtype))
    # 40 degrees leave out a variance of 6e-8, which shifts the tail by half of it times the density's slope
    np.testing.assert_allclose(found, [tail(v) for v in x], atol=1e-6)
    assert found.dtype == dtype
    assert gine_tail(jnp.asarray(60.0, dtype)) < 1e-6
    assert gine_tail(jnp.asarray(0.01, dtype)) > 1 - 1e-6


def test_uniformity_does_not_depend_on_the_frame():
    R, g, h = uniform((25,), seed=4), uniform((), seed=5), uniform((), seed=6)
    moved = so3.compose(so3.compose(jnp.broadcast_to(g, R.shape), R), h)
    for test in (rayleigh, gine, lambda R: sobolev(R, 3)):
        np.testing.assert_allclose(test(R).statistic, test(moved).statistic, rtol=1e-11)


def test_a_cube_is_invisible_to_rayleigh_but_not_to_gine():
    """The 24 rotations of the cube, each four times and blurred: mean matrix near 0, first seen in degree 4."""
    cube = Rotation.create_group("O").as_matrix()
    noise = 0.1 * jax.random.normal(jax.random.key(7), (96, 3))
    R = so3.retract(jnp.asarray(np.tile(cube, (4, 1, 1))), noise)
    assert rayleigh(R).p_value > 0.5
    assert sobolev(R, 4).p_value < 1e-6
    many = so3.retract(jnp.asarray(np.tile(cube, (40, 1, 1))), jnp.tile(noise, (10, 1)))
    assert rayleigh(many).p_value > 0.5
    assert gine(many).p_value < 1e-6


def test_energy_is_the_known_formula():
    x, y = uniform((6,), seed=8), uniform((9,), seed=9)
    found = energy_test(x, y, permutations=19, key=jax.random.key(0))
    half = lambda a, b: np.sin(Rotation.from_matrix(a).inv().__mul__(Rotation.from_matrix(b)).magnitude() / 2)
    mean = lambda a, b: np.mean([[half(p, q) for q in np.asarray(b)] for p in np.asarray(a)])
    expected = (2 * mean(x, y) - mean(x, x) - mean(y, y)) * 6 * 9 / 15
    np.testing.assert_allclose(found.statistic, expected, rtol=1e-10)
    assert 1 / 20 <= found.p_value <= 1


@pytest.mark.slow
def test_two_samples_differ_when_their_laws_do_and_means_do_not():
    """IGSO(3) of two widths about one mean: the energy test and the heat kernel see it. Plain arrays will do too."""
    mean = so3.identity((), jnp.float64)
    x = densities.IsotropicGaussian(mean, jnp.asarray(0.3)).sample((60,), key=jax.random.key(10))
    y = densities.IsotropicGaussian(mean, jnp.asarray(0.6)).sample((50,), key=jax.random.key(11))
    energy = energy_test(x, y, permutations=199, key=jax.random.key(0))
    kernel = kernel_test(x, y, statistics.heat_kernel(0.5), permutations=199, key=jax.random.key(0))
    assert energy.p_value == 1 / 200
    assert kernel.p_value == 1 / 200
    rbf = lambda a, b: jnp.exp(-jnp.sum((a - b) ** 2, axis=-1))
    points = jax.random.normal(jax.random.key(12), (40, 2))
    same = kernel_test(points[:20], points[20:], rbf, permutations=99, key=jax.random.key(0))
    assert same.p_value > 0.01


def test_identical_samples_are_never_significant():
    """All permutations tie with the observation; rounding must not make it look extreme."""
    x = jnp.broadcast_to(uniform((), seed=13), (8, 3, 3)).astype(jnp.float32)
    assert energy_test(x, x[:5], permutations=99, key=jax.random.key(0)).p_value == 1


def test_tests_export():
    R = uniform((12,), dtype=jnp.float32)

    def everything(R):
        energy = statistics.energy_test(R[:5], R[5:], permutations=9, key=jax.random.key(0))
        return statistics.rayleigh(R).p_value, statistics.gine(R).p_value, energy.p_value

    exported = export.export(jax.jit(everything), platforms=["cpu", "cuda", "tpu"])(R)
    assert all(x.dtype == jnp.float32 for x in exported.out_avals)


def test_arguments_are_checked(own_checks):
    R = uniform((5,))
    with pytest.raises(ValueError, match=r"R: expected shape \(n >= 1, ..., 3, 3\), got \(3, 3\)"):
        statistics.rayleigh(R[0])
    with pytest.raises(ValueError, match=r"q: expected shape \(..., 4\), got \(5, 3\)"):
        statistics.bingham(R[..., 0])
    with pytest.raises(ValueError, match="degree: expected an integer >= 1, got 0"):
        statistics.sobolev(R, 0)
    with pytest.raises(ValueError, match="permutations: expected an integer >= 1, got 0"):
        statistics.energy_test(R, R, permutations=0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="y: expected shape"):
        statistics.energy_test(R, R[0], key=jax.random.key(0))
    with pytest.raises(ValueError, match="R: expected rotation matrices"):
        statistics.gine(2 * R)
    with pytest.raises(TypeError, match="R: expected a floating-point array"):
        statistics.gine(jnp.ones((5, 3, 3), int))


def rejection_rates(p_values):
    """Share of simulations with p <= 5 %, for each column."""
    return np.mean(np.asarray(p_values) <= LEVEL, axis=0)


def simulate(one, count, seed=0, batch=250):
    """one(key) for `count` keys, `batch` at a time."""
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=batch))(keys)


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 60])
def test_uniformity_tests_have_their_size(n):
    """5 ± 1.5 % of 6000 uniform samples rejected (standard error 0.3 %), and p-values uniform in the mean."""

    def one(key):
        R = so3.sample((n,), jnp.float64, key=key)
        q = su2.sample((n,), jnp.float64, key=key)
        tests = (statistics.rayleigh(R), statistics.bingham(q), statistics.gine(R), statistics.sobolev(R, 2))
        return jnp.stack([test.p_value for test in tests])

    p = simulate(one, 6000)
    rates = rejection_rates(p)
    print("size of rayleigh, bingham, gine, sobolev 2:", n, rates)
    assert (np.abs(rates - LEVEL) <= 0.015).all(), rates
    np.testing.assert_allclose(np.mean(p, axis=0), 0.5, atol=0.02)


@pytest.mark.slow
def test_two_sample_tests_have_their_size_and_see_a_shift():
    """Laws equal: 5 ± 1.5 % rejected. Means 0.6 rad apart at scale 0.5, n = 30, m = 25: most rejected."""
    mean = so3.identity((), jnp.float64)
    law = densities.IsotropicGaussian(mean, jnp.asarray(0.5))
    shift = so3.exp(jnp.array([0.6, 0.0, 0.0]))

    def one(key):
        key_x, key_y, key_permute = jax.random.split(key, 3)
        x, y = law.sample((30,), key=key_x), law.sample((25,), key=key_y)
        p = []
        for other in (y, so3.compose(jnp.broadcast_to(shift, y.shape), y)):
            p.append(statistics.energy_test(x, other, permutations=199, key=key_permute).p_value)
            heat = statistics.heat_kernel(0.5)
            p.append(statistics.kernel_test(x, other, heat, permutations=199, key=key_permute).p_value)
        return jnp.stack(p)

    rates = rejection_rates(simulate(one, 2000))
    print("size of energy, heat kernel; power of both:", rates)
    assert (np.abs(rates[:2] - LEVEL) <= 0.015).all(), rates
    assert (rates[2:] > 0.6).all(), rates


def cayley(key, n, kappa=10.0):
    """The Cayley law about the identity: (1 + cos θ)/2 ~ Beta(κ + ½, 3/2), axis uniform."""
    key_angle, key_axis = jax.random.split(key)
    cosine = 2 * jax.random.beta(key_angle, kappa + 0.5, 1.5, (n,), jnp.float64) - 1
    axis = jax.random.normal(key_axis, (n, 3), jnp.float64)
    axis = axis / jnp.linalg.norm(axis, axis=-1, keepdims=True)
    return so3.exp(jnp.arccos(cosine)[:, None] * axis)


@pytest.mark.slow
def test_regions_cover_the_mean_of_a_cayley_law():
    """n = 50, κ = 10: 95 ± 2 % coverage, mean radius 0.17 ± 0.02 (published for one sample: 0.172 and 0.173)."""
    truth = so3.identity((), jnp.float64)

    def asymptotic(key):
        region = statistics.confidence_region(so3, cayley(key, 50))
        return statistics.contains(so3, region, truth), region.radius, region.converged

    def bootstrap(key):
        key_sample, key_resample = jax.random.split(key)
        region = statistics.bootstrap_region(so3, cayley(key_sample, 50), resamples=299, key=key_resample)
        return statistics.contains(so3, region, truth), region.radius, region.converged

    for method, count in ((asymptotic, 4000), (bootstrap, 1000)):
        inside, radius, converged = simulate(method, count, batch=50)
        print(method.__name__, "coverage", np.mean(inside), "radius", np.mean(radius))
        assert np.all(converged)
        assert abs(np.mean(inside) - 0.95) <= 0.02
        assert abs(np.mean(radius) - 0.17) <= 0.02


@pytest.mark.slow
def test_regions_cover_the_mean_of_a_lopsided_law():
    """Anisotropic Gaussian noise on SO(3) and on R³, n = 25: the curvature and the sandwich are right."""
    scales = jnp.array([0.9, 0.4, 0.1])

    def one(key):
        noise = scales * jax.random.normal(key, (25, 3), jnp.float64)
        on_group = statistics.confidence_region(so3, so3.exp(noise))
        flat = statistics.confidence_region(euclidean, noise)
        origin = jnp.zeros(3)
        return jnp.stack(
            [
                statistics.contains(so3, on_group, so3.exp(origin)),
                statistics.contains(euclidean, flat, origin),
            ]
        )

    coverage = np.mean(simulate(one, 4000), axis=0)
    print("coverage on SO(3), R^3:", coverage)
    assert (np.abs(coverage - 0.95) <= 0.02).all(), coverage
