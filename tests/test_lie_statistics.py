"""Averages, principal geodesics and confidence regions on groups: laws, closed forms, and real crystal orientations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax import export
from scipy.spatial.transform import Rotation

from lie import euclidean, group, se2, se3, so2, so3, statistics, su2
from lie.statistics import regions

GROUPS = {
    "so2": so2,
    "se2": se2,
    "so3": so3,
    "se3": se3,
    "su2": su2,
    "euclidean": euclidean.Space(3),
    "product": group.product(so3, euclidean.Space(2)),
}


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def cloud(space, count, dtype, spread=0.6, batch=(), seed=0):
    """Samples (count, *batch, *element) around a random centre."""
    key_centre, key_noise = jax.random.split(jax.random.key(seed))
    centre = space.sample(batch, dtype, key=key_centre)
    noise = spread * jax.random.normal(key_noise, (count, *batch, space.dimension), dtype)
    wide = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), centre)
    return space.retract(wide, noise)


def spread_over(element, like):
    return jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), element, like)


# Jitted once here: op by op, each small kernel would be a compilation.
frechet_mean = jax.jit(statistics.frechet_mean, static_argnums=0, static_argnames=("max_steps", "tolerance"))
geodesic_median = jax.jit(statistics.geodesic_median, static_argnums=0, static_argnames=("max_steps", "tolerance"))
principal_geodesics = jax.jit(statistics.principal_geodesics, static_argnums=0)
confidence_region = jax.jit(statistics.confidence_region, static_argnums=0, static_argnames="level")
bootstrap_region = jax.jit(statistics.bootstrap_region, static_argnums=0, static_argnames="resamples")
AVERAGES = {"mean": frechet_mean, "median": geodesic_median}


@pytest.mark.parametrize(
    ("name", "average"), [*((name, "mean") for name in GROUPS), *((name, "median") for name in ("so3", "product"))]
)
def test_averages_move_with_their_samples(name, average, dtype):
    """average(g x) = g average(x); the mean also has mean(x h) = mean(x) h: on SE(3), where no metric does, as well."""
    space = GROUPS[name]
    samples = cloud(space, 9, dtype)
    weights = jnp.linspace(0.2, 1.0, 9, dtype=dtype)
    g, h = (space.sample((), dtype, key=jax.random.key(k)) for k in (1, 2))
    moved = space.compose(spread_over(g, samples), samples)
    if average == "mean":
        moved = space.compose(moved, spread_over(h, samples))
    batch = jax.tree.map(lambda x, y: jnp.stack([x, y], axis=1), samples, moved)
    found = AVERAGES[average](space, batch, weights)
    assert found.converged.all(), found
    first, second = (jax.tree.map(lambda x, k=k: x[k], found.mean) for k in (0, 1))
    expected = space.compose(g, first)
    if average == "mean":
        expected = space.compose(expected, h)
    gap = jnp.max(jnp.abs(space.local(expected, second)))
    # The mean is found to 16 eps, the median to sqrt(eps), of which its flat minimum makes a few times as much.
    assert gap <= (200 * eps(dtype) if average == "mean" else 30 * eps(dtype) ** 0.5), gap
    assert jax.tree.all(jax.tree.map(lambda x: x.dtype == dtype, found.mean))


def test_the_euclidean_averages_are_the_known_ones():
    x = np.random.default_rng(0).normal(size=(15, 3))
    w = np.random.default_rng(1).uniform(size=15)
    mean = frechet_mean(euclidean, jnp.asarray(x), jnp.asarray(w))
    np.testing.assert_allclose(mean.mean, np.average(x, axis=0, weights=w), atol=1e-15)
    median = geodesic_median(euclidean, jnp.asarray(x), jnp.asarray(w), tolerance=1e-11)
    cost = lambda m: np.sum(w * np.linalg.norm(x - m, axis=-1))
    best = scipy.optimize.minimize(cost, x.mean(0), tol=1e-14, method="Nelder-Mead", options={"maxiter": 4000})
    assert median.converged
    assert cost(np.asarray(median.mean)) <= best.fun + 1e-13
    np.testing.assert_allclose(median.mean, best.x, atol=1e-6)


def test_integer_weights_are_repetitions_and_the_scale_of_weights_is_free():
    samples = cloud(so3, 5, jnp.float64)
    counts = jnp.array([1, 3, 0, 2, 1])
    repeated = jnp.repeat(samples, counts, axis=0)
    one = frechet_mean(so3, samples, 7.5 * counts.astype(jnp.float64))
    other = frechet_mean(so3, repeated)
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-14)


def test_weights_with_batch_axes_make_a_batch_of_means():
    samples = cloud(so3, 6, jnp.float64, batch=(2,))
    weights = jax.random.uniform(jax.random.key(3), (6, 4, 2))
    found = frechet_mean(so3, samples, weights)
    assert found.mean.shape == (4, 2, 3, 3)
    assert found.converged.shape == (4, 2)
    alone = frechet_mean(so3, samples[:, 1], weights[:, 3, 1])
    np.testing.assert_allclose(found.mean[3, 1], alone.mean, atol=1e-14)


def test_a_hard_batch_element_leaves_the_others_alone():
    """One cloud that covers the group, one of a single point, one easy: each stops by itself, with the same digits."""
    easy = cloud(so3, 8, jnp.float64, spread=0.3)
    hard = so3.sample((8,), jnp.float64, key=jax.random.key(4))
    point = jnp.broadcast_to(easy[0], easy.shape)
    together = frechet_mean(so3, jnp.stack([easy, hard, point], axis=1), max_steps=500)
    alone = frechet_mean(so3, jnp.stack([easy, easy, easy], axis=1), max_steps=500)
    np.testing.assert_array_equal(together.mean[0], alone.mean[0])
    assert together.steps[0] == alone.steps[0] < together.steps[1]
    assert together.converged.all()
    np.testing.assert_allclose(together.mean[2], point[0], atol=1e-15)


def test_running_out_of_steps_is_said():
    found = frechet_mean(so3, cloud(so3, 8, jnp.float64), initial=so3.identity((), jnp.float64), max_steps=1)
    assert not found.converged
    assert found.steps == 1
    assert found.error > 1e-6


def test_the_median_ignores_outliers_and_may_sit_on_a_sample():
    centre = so3.exp(jnp.array([1.0, -0.5, 0.2]))
    near = so3.retract(centre, 0.01 * jax.random.normal(jax.random.key(5), (12, 3)))
    far = so3.retract(centre, jnp.array([1.8, 0.3, -0.4]) + 0.01 * jax.random.normal(jax.random.key(6), (8, 3)))
    samples = jnp.concatenate([near, far])
    median = geodesic_median(so3, samples)
    assert median.converged
    assert so3.distance(median.mean, centre) < 0.02
    assert so3.distance(frechet_mean(so3, samples).mean, centre) > 0.4
    heavy = geodesic_median(so3, samples, jnp.ones(20).at[17].set(30.0))
    assert heavy.converged
    assert so3.distance(heavy.mean, samples[17]) < 1e-14


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.slow
def test_averages_differentiate_implicitly(average):
    """First derivatives in samples and weights against differences, and the second for the mean."""
    samples, weights = cloud(so3, 5, jnp.float64), jnp.linspace(0.5, 1.0, 5)
    u = 0.1 * jax.random.normal(jax.random.key(7), (5, 3))
    du, dw = jax.random.normal(jax.random.key(8), (5, 3)), jax.random.normal(jax.random.key(9), (5,))
    options = {} if average == "mean" else {"tolerance": 1e-13, "max_steps": 5000}

    def value(e):
        found = AVERAGES[average](so3, so3.retract(samples, u + e * du), weights + e * dw, **options)
        return jnp.sum(so3.log(found.mean) * jnp.array([1.0, -2.0, 0.7]))

    h = 2e-5
    low, high, far_low, middle, far_high = jax.jit(jax.vmap(value))(jnp.array([-h, h, -50 * h, 0.0, 50 * h]))
    np.testing.assert_allclose(jax.jit(jax.grad(value))(0.0), (high - low) / (2 * h), rtol=1e-6)
    if average == "mean":
        second = jax.jit(jax.jacfwd(jax.grad(value)))(0.0)
        np.testing.assert_allclose(second, (far_high - 2 * middle + far_low) / (50 * h) ** 2, rtol=1e-4)


def test_a_median_at_a_sample_moves_with_it():
    samples, weights = cloud(so3, 5, jnp.float64), jnp.ones(5).at[2].set(40.0)
    du = jax.random.normal(jax.random.key(8), (5, 3))
    median = lambda e: geodesic_median(so3, so3.retract(samples, e * du), weights).mean
    velocity = jax.jit(jax.jacfwd(lambda e: so3.local(samples[2], median(e))))(0.0)
    np.testing.assert_allclose(velocity, du[2], atol=1e-12)


def test_the_projected_mean_is_scipys(dtype):
    samples = cloud(so3, 20, dtype)
    weights = jnp.linspace(0.1, 1.0, 20, dtype=dtype)
    expected = Rotation.from_matrix(np.asarray(samples, np.float64)).mean(np.asarray(weights)).as_matrix()
    np.testing.assert_allclose(statistics.projected_mean(samples, weights), expected, atol=16 * eps(dtype))


def test_published_means_of_crystals_and_wrists(data_folder):
    """Stanfill, Hofmann, Genschel 2014, R Journal: location 1 of the nickel scan, the wrist of subject 1."""
    scan = np.load(data_folder / "ebsd_so3" / "nickel_ebsd.npz")
    columns = scan["V"][scan["location"] == 1].reshape(-1, 3, 3)
    R = so3.project(jnp.asarray(np.swapaxes(columns, -1, -2), jnp.float64))
    published = [[-0.645, -0.286, -0.708], [0.687, -0.623, -0.374], [-0.334, -0.728, 0.599]]
    assert R.shape == (14, 3, 3)
    np.testing.assert_allclose(statistics.projected_mean(R), published, atol=1e-3)
    drill = np.load(data_folder / "ebsd_so3" / "drill.npz")
    q = drill["quat_wxyz"][(drill["subject"] == 1) & (drill["joint"] == 0)]
    R = jnp.asarray(Rotation.from_quat(q.astype(float), scalar_first=True).as_matrix())
    mean = Rotation.from_matrix(np.asarray(statistics.projected_mean(R))).as_quat(scalar_first=True)
    assert R.shape == (30, 3, 3)
    np.testing.assert_allclose(mean * np.sign(mean[0]), [0.987, -0.07, -0.134, 0.049], atol=1e-3)


def test_principal_geodesics_are_pca_on_a_vector_space():
    x = np.random.default_rng(2).normal(size=(40, 3)) @ np.diag([3.0, 1.0, 0.2])
    found = principal_geodesics(euclidean, jnp.asarray(x))
    values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
    np.testing.assert_allclose(found.variances, values[::-1], rtol=1e-12)
    np.testing.assert_allclose(np.abs(np.sum(found.directions * vectors.T[::-1], -1)), 1, rtol=1e-12)


def test_principal_geodesics_find_a_geodesic_and_give_the_samples_back():
    axis = jnp.array([0.48, -0.6, 0.64])
    position = jnp.linspace(-1.0, 1.0, 11)[:, None] * jnp.ones((1, 2))
    start = so3.sample((2,), jnp.float64, key=jax.random.key(10))
    samples = so3.retract(jnp.broadcast_to(start, (11, 2, 3, 3)), position[..., None] * axis)
    found = principal_geodesics(so3, samples)
    assert found.mean.converged.all()
    np.testing.assert_allclose(found.mean.mean, start, atol=1e-13)
    np.testing.assert_allclose(found.variances, [[0.4, 0, 0]] * 2, atol=1e-13)
    np.testing.assert_allclose(found.directions[:, 0], [axis, axis], atol=1e-12)  # its largest entry is positive
    back = statistics.along(so3, found, found.coordinates)
    np.testing.assert_allclose(back, samples, atol=1e-12)
    np.testing.assert_allclose(statistics.along(so3, found, found.coordinates[..., :1]), samples, atol=1e-12)


def test_the_region_of_a_gaussian_mean_is_hotellings():
    x = np.random.default_rng(3).normal(size=(12, 3))
    region = confidence_region(euclidean, jnp.asarray(x), level=0.9)
    np.testing.assert_allclose(region.covariance, np.cov(x.T) / 12, rtol=1e-12)
    np.testing.assert_allclose(region.threshold, 3 * 11 / 9 * scipy.stats.f.ppf(0.9, 3, 9), rtol=1e-12)
    assert region.converged
    assert statistics.contains(euclidean, region, region.mean.mean)
    edge = region.mean.mean + jnp.linalg.cholesky(region.covariance)[:, 0] * jnp.sqrt(region.threshold)
    middle = region.mean.mean
    assert statistics.contains(euclidean, region, middle + 0.999 * (edge - middle))
    assert not statistics.contains(euclidean, region, middle + 1.001 * (edge - middle))


@pytest.mark.parametrize(("level", "first", "second"), [(0.95, 3, 47), (0.5, 6, 2), (0.999, 1, 200)])
def test_quantiles_of_f_are_scipys(level, first, second, dtype):
    found = regions.f_quantile(level, first, second, dtype)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, scipy.stats.f.ppf(level, first, second), rtol=1e3 * eps(dtype))


@pytest.mark.slow
def test_regions_move_with_their_samples():
    """Body-frame covariance and threshold do not change when all samples are turned from the left."""
    samples = cloud(so3, 30, jnp.float64)
    moved = so3.compose(so3.sample((), jnp.float64, key=jax.random.key(11)), samples)
    both = jnp.stack([samples, moved], axis=1)
    for region in (
        confidence_region(so3, both),
        bootstrap_region(so3, both, resamples=60, key=jax.random.key(12)),
    ):
        assert region.converged.all()
        np.testing.assert_allclose(region.covariance[0], region.covariance[1], rtol=1e-9)
        np.testing.assert_allclose(region.threshold[0], region.threshold[1], rtol=1e-9)
        assert 0.1 < region.radius[0] < 0.6


def test_averages_and_regions_export():
    samples = cloud(se3, 9, jnp.float32)
    weights = jnp.ones(9, jnp.float32)

    def everything(samples, weights):
        mean = statistics.frechet_mean(se3, samples, weights)
        median = statistics.geodesic_median(so3, samples.rotation, weights)
        slope = jax.grad(lambda w: jnp.sum(statistics.frechet_mean(so3, samples.rotation, w).mean ** 3))(weights)
        region = statistics.bootstrap_region(so3, samples.rotation, resamples=30, key=jax.random.key(0))
        geodesics = statistics.principal_geodesics(se3, samples)
        return mean.error, median.mean, slope, region.radius, geodesics.variances

    exported = export.export(jax.jit(everything), platforms=["cpu", "cuda", "tpu"])(samples, weights)
    assert all(x.dtype == jnp.float32 for x in exported.out_avals)


def test_arguments_are_checked(own_checks):
    samples = so3.sample((5,), jnp.float64, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"weights: expected shape \(5,\)"):
        statistics.frechet_mean(so3, samples, jnp.ones(4))
    with pytest.raises(ValueError, match="weights >= 0"):
        statistics.frechet_mean(so3, samples, jnp.ones(5).at[2].set(-1.0))
    with pytest.raises(TypeError, match="weights: expected dtype float64"):
        statistics.frechet_mean(so3, samples, jnp.ones(5, jnp.float32))
    with pytest.raises(ValueError, match="samples: expected shape"):
        statistics.frechet_mean(so3, samples[0])
    with pytest.raises(ValueError, match=r"samples: expected shape \(..., 3, 3\), got \(5, 3\)"):
        statistics.projected_mean(samples[..., 0])
    with pytest.raises(ValueError, match="only finite values"):
        statistics.projected_mean(samples.at[0].set(jnp.nan))
    with pytest.raises(ValueError, match="more samples than the dimension 3, got 2"):
        statistics.confidence_region(so3, samples[:2])
    with pytest.raises(ValueError, match="level: expected 0 < level < 1"):
        statistics.confidence_region(so3, samples, level=1.0)
    with pytest.raises(ValueError, match="resamples: expected at least 19"):
        statistics.bootstrap_region(so3, samples, resamples=10, key=jax.random.key(0))
