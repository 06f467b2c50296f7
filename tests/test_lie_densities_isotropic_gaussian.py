"""IGSO(3): against mpmath and the truth table, at 0, at π and on both sides of every switch."""

import functools
import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import precisions
import pytest
from jax import export
from numpy.testing import assert_allclose

from lie import densities, so3
from lie.densities import angle_law, heat_kernel

AXES = np.array([[1.0, 0, 0], [0.6, -0.48, 0.64]])
SCALES = [1e-3, 0.01, 0.1, 0.5773, 0.5774, 1.4142, 1.4143, 2.0, 10.0]  # the switches are at √(1/3) and √2


def wide(*arrays):
    """In float64, to be compared."""
    return [np.asarray(x, np.float64) for x in arrays]


def tolerance(dtype):
    return 1e-5 if dtype == jnp.float32 else 1e-12


def angles(scale):
    """0, the scale itself, both sides of the switches in ω, and π at distances around t/π, where the slope turns."""
    t = scale * scale
    chosen = [0.0, 1e-8, scale, 2 * scale, 1.047, 1.048, 2.0, math.pi - t / 3, math.pi - t / 20, 3.1415925]
    return [omega for omega in chosen if 0 <= omega < math.pi]


def log_kernel_exactly(omega, scale):
    """log f by the theta-dual sum (or the series for large scales), in the working precision of mpmath."""
    t = scale**2
    half = omega / 2
    if t > 4:
        terms = ((2 * l + 1) * mpmath.exp(-l * (l + 1) * t / 2) * mpmath.sin((2 * l + 1) * half) for l in range(40))
        return mpmath.log(mpmath.fsum(terms) / mpmath.sin(half))
    images = ((k, omega + 2 * mpmath.pi * k) for k in range(-8, 9))
    total = mpmath.fsum((-1) ** k * x * mpmath.exp(-(x * x - omega * omega) / (2 * t)) for k, x in images)
    return t / 8 + mpmath.log(mpmath.sqrt(2 * mpmath.pi / t) / t / mpmath.sin(half) * total) - omega**2 / (2 * t)


@functools.cache
def exact(omega, scale):
    """log f, ∂ω, ∂scale, ∂ω², at exactly these arguments, by central differences in 70 digits."""
    with mpmath.workdps(70):
        omega, scale = mpmath.mpf(omega), mpmath.mpf(scale)
        h = mpmath.mpf("1e-14") * min(1, scale * scale)
        omega = max(omega, h * mpmath.mpf("1e-6"))  # even and smooth at 0: moves nothing by more than 1e-40
        f = log_kernel_exactly
        here, left, right = f(omega, scale), f(abs(omega - h), scale), f(omega + h, scale)
        slope_scale = (f(omega, scale + h) - f(omega, scale - h)) / (2 * h)
        return [float(x) for x in (here, (right - left) / (2 * h), slope_scale, (right - 2 * here + left) / h**2)]


def kernel(omega, scale):
    return angle_law.log_kernel(omega, scale * scale)


@precisions.float64_is_slow
def test_kernel_and_its_derivatives_agree_with_mpmath(dtype):
    pairs = [(omega, scale) for scale in SCALES for omega in angles(scale)]
    omega, scale = (jnp.array(x, dtype) for x in zip(*pairs, strict=True))
    first = lambda *point: jax.value_and_grad(kernel, (0, 1))(*point)[::-1]
    both = lambda *point: (jax.jacfwd(first, (0, 1), has_aux=True)(*point)[0], *first(*point))
    second, (slope, slope_scale), value = jax.jit(jax.vmap(both))(omega, scale)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(second))
    want = np.array([exact(float(w), float(s)) for w, s in zip(omega, scale, strict=True)])
    value, slope, slope_scale, curvature, omega, scale = wide(value, slope, slope_scale, second[0][0], omega, scale)
    eps, steep = float(jnp.finfo(dtype).eps), np.maximum(1, omega / scale**2)
    assert np.max(np.abs(value - want[:, 0]) / np.maximum(1, np.abs(want[:, 0]))) <= 24 * eps
    assert np.max(np.abs(slope - want[:, 1]) / steep) <= 8 * eps
    assert np.max(np.abs(slope_scale - want[:, 2]) / np.maximum(1, np.abs(want[:, 2]))) <= 40 * eps
    assert np.max(np.abs(curvature - want[:, 3]) / np.maximum(1, np.abs(want[:, 3]))) <= 64 * eps


def test_density_and_score_agree_with_the_truth_table(truth, dtype):
    rows = truth("igso3")["rows"]
    column = {key: np.array([float(row[key]) for row in rows]) for key in rows[0] if key != "cdf"}
    scale, omega = jnp.array(column["eps"], dtype), column["omega"]
    for axis in AXES:
        R = so3.exp(jnp.asarray(omega[:, None] * axis)).astype(dtype)
        density = densities.IsotropicGaussian(so3.identity(scale.shape, dtype), scale)
        log_prob, score = jax.jit(lambda d, R: (d.log_prob(R), d.score(R)))(density, R)
        assert log_prob.dtype == score.dtype == dtype
        log_prob, score = wide(log_prob, score)
        error = np.abs(log_prob - column["logf"]) / np.maximum(1, np.abs(column["logf"]))
        assert error.max() <= tolerance(dtype)
        error = np.linalg.norm(score - column["dlogf_domega"][:, None] * axis, axis=-1)
        # Rounding R turns it by up to 2 eps, the quaternion adds 2, and the curvature of log f amplifies both.
        conditioning = 4 * float(jnp.finfo(dtype).eps) * np.abs(column["d2logf_domega2"])
        assert np.all(error <= tolerance(dtype) * np.maximum(1, omega / column["eps"] ** 2) + conditioning)


def test_cdf_agrees_with_the_truth_table(truth, dtype):
    rows = [row for row in truth("igso3")["rows"] if row["cdf"]]
    scale, omega, want = (np.array([float(row[key]) for row in rows]) for key in ("eps", "omega", "cdf"))
    density = densities.IsotropicGaussian(jnp.eye(3, dtype=dtype), jnp.array(scale, dtype))
    have = jax.jit(lambda d, omega: d.angle_cdf(omega))(density, jnp.array(omega, dtype))
    assert_allclose(have, want, rtol=64 * float(jnp.finfo(dtype).eps) if dtype == jnp.float32 else 1e-11, atol=0)


@precisions.float64_is_slow
def test_score_is_the_gradient_in_the_body_frame_at_0_at_pi_and_between(dtype):
    """One batch mixes easy and hard elements; the Hessian at the mean is the curvature of log f times I."""
    omega = jnp.array([0.0, 1e-4, 0.3, 2.5, 3.1, math.pi], dtype)
    scale = jnp.array([0.05, 0.3, 1.0, 3.0], dtype)[:, None]
    mean = so3.exp(jnp.array([0.3, -1.0, 0.5], dtype))
    R = so3.retract(mean, omega[:, None] * jnp.array(AXES[1], dtype))

    def log_prob(u, R, scale):
        return densities.IsotropicGaussian(mean, scale).log_prob(so3.retract(R, u))

    zero = jnp.zeros(3, dtype)
    over = jax.vmap(
        jax.vmap(lambda R, s: (jax.grad(log_prob)(zero, R, s), jax.hessian(log_prob)(zero, R, s)), (0, None)), (None, 0)
    )
    gradient, hessian = jax.jit(over)(R, scale[:, 0])
    score = jax.jit(lambda scale: densities.IsotropicGaussian(mean, scale).score(R))(scale)
    bound = 64 * float(jnp.finfo(dtype).eps) * jnp.maximum(1, omega / scale**2)
    assert bool((jnp.abs(score - gradient).max(-1) <= bound).all())
    assert bool(jnp.isfinite(hessian).all())
    curvature = np.array([exact(0.0, float(s))[3] for s in scale[:, 0]])
    want = curvature[:, None, None] * np.eye(3)
    assert_allclose(hessian[:, 0], want, atol=64 * float(jnp.finfo(dtype).eps) * np.abs(curvature).max(), rtol=0)


def test_quantile_inverts_the_cdf(dtype):
    u = jnp.concatenate([jnp.geomspace(1e-9, 0.1, 30, dtype=dtype), jnp.linspace(0.1, 1, 40, dtype=dtype)])
    density = densities.IsotropicGaussian(jnp.eye(3, dtype=dtype), jnp.array(SCALES, dtype)[:, None])
    omega = jax.jit(lambda d: d.angle_quantile(u))(density)
    assert bool(((omega >= 0) & (omega <= 3.1415928)).all())
    assert bool((jnp.diff(omega, axis=-1) > -4 * jnp.finfo(dtype).eps).all())
    assert_allclose(
        density.angle_cdf(omega), np.broadcast_to(u, omega.shape), atol=64 * float(jnp.finfo(dtype).eps), rtol=0
    )


@pytest.mark.slow
def test_quantile_and_cdf_move_with_scale_as_their_differences_do():
    scale, u, h = jnp.array([0.02, 0.4, 0.8, 3.0]), jnp.array([0.01, 0.5, 0.97])[:, None], 1e-6

    def quantile(scale):
        return angle_law.quantile(*jnp.broadcast_arrays(u, scale * scale))

    primal, tangent = jax.jvp(quantile, (scale,), (jnp.ones_like(scale),))
    assert bool((primal == quantile(scale)).all())
    difference = (quantile(scale * (1 + h)) - quantile(scale * (1 - h))) / (2 * h * scale)
    assert_allclose(tangent, difference, rtol=1e-6, atol=1e-8)

    def cdf(omega, scale):
        return angle_law.cdf(omega, scale * scale)

    omega = primal
    rule = jax.vmap(jax.vmap(jax.grad(cdf, (0, 1))))(omega, jnp.broadcast_to(scale, omega.shape))
    for k, move in enumerate((lambda s: (omega + s * 1e-6, scale), lambda s: (omega, scale + s * 1e-6))):
        assert_allclose(rule[k], (cdf(*move(1)) - cdf(*move(-1))) / 2e-6, rtol=1e-5, atol=1e-8)
    second = jax.jit(jax.vmap(jax.hessian(lambda u, s: angle_law.quantile(u, s * s), (0, 1))))(
        jnp.array([0.0, 1e-9, 0.5, 1.0]), jnp.full(4, 0.3)
    )
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(second))


@pytest.mark.parametrize("scale", [0.01, 0.5, 0.9, 5.0])
def test_density_integrates_to_one(scale):
    nodes, weights = np.polynomial.legendre.leggauss(400)
    end = min(math.pi, 12 * scale)
    omega = jnp.asarray(end * (1 + nodes) / 2)
    assert_allclose(jnp.sum(end / 2 * weights * angle_law.density(omega, jnp.full(400, scale**2))), 1, rtol=1e-13)


@precisions.float64_is_slow
@pytest.mark.parametrize("scale", [0.01, 0.4, 1.5])
def test_samples_follow_the_density(scale, dtype):
    """Kolmogorov's distance of the angles at the 0.1 % level; the mean matrix is e^(−t) mean, as Δ acts on degree 1."""
    mean = so3.exp(jnp.array([1.0, 2.0, 0.3], dtype))
    density, count = densities.IsotropicGaussian(mean, scale), 20000
    R = jax.jit(lambda d, key: d.sample((count,), key=key))(density, jax.random.key(7))
    assert R.dtype == dtype
    assert R.shape == (count, 3, 3)
    evaluate = jax.jit(lambda d, R: (d.angle_cdf(jnp.clip(so3.distance(d.mean, R), 0, math.pi)), d.log_prob(R)))
    u, log_prob = evaluate(density, R)
    u = np.sort(u)
    ranks = np.arange(count) / count
    assert max(np.abs(u - ranks).max(), np.abs(u - ranks - 1 / count).max()) <= 1.95 / math.sqrt(count)
    # E[R] = mean (1 + 2 E[cos ω])/3 = mean (Σ over the three body axes) = (E χ_1 / 3) mean, E χ_1 = 3 e^(−t)
    deviation = np.abs(np.mean(np.asarray(R, float), axis=0) - math.exp(-(scale**2)) * np.asarray(mean, float))
    assert deviation.max() <= 4 * min(scale, 1) / math.sqrt(count)
    entropy = float(jax.jit(lambda d: d.entropy())(density))
    log_prob = np.asarray(log_prob, float)
    assert abs(-log_prob.mean() - entropy) <= 4 * log_prob.std() / math.sqrt(count) + 1e-5


@pytest.mark.slow
def test_samples_are_reparameterised_in_mean_and_scale():
    """d/dscale of E[tr R] = E[d tr R/dscale]: the pathwise derivative has the mean −6 scale exp(−scale²)."""
    mean = so3.identity((), jnp.float64)

    def trace(scale, key):
        return jnp.trace(densities.IsotropicGaussian(mean, scale).sample(key=key))

    keys = jax.random.split(jax.random.key(3), 20000)
    slopes = jax.jit(jax.vmap(jax.grad(trace), (None, 0)))(jnp.array(0.4), keys)
    want = -6 * 0.4 * math.exp(-0.16)
    assert abs(float(slopes.mean()) - want) <= 4 * float(slopes.std()) / math.sqrt(20000)


def test_small_scale_is_a_tangent_gaussian_and_large_scale_is_uniform():
    mean, scale = so3.identity((), jnp.float64), 1e-3
    omega = jnp.array([[1e-3, -2e-3, 5e-4]])
    flat = -jnp.sum(omega**2) / (2 * scale**2) - 1.5 * math.log(2 * math.pi * scale**2) + math.log(8 * math.pi**2)
    small = densities.IsotropicGaussian(mean, scale)
    assert_allclose(small.log_prob(so3.exp(omega))[0], flat, atol=2e-6)
    assert_allclose(
        small.entropy(), 1.5 * math.log(2 * math.pi * math.e * scale**2) - math.log(8 * math.pi**2), atol=1e-6
    )
    large = densities.IsotropicGaussian(mean, 10.0)
    R = so3.sample((10,), jnp.float64, key=jax.random.key(0))
    assert_allclose(large.log_prob(R), 0, atol=1e-15)
    assert_allclose(large.entropy(), 0, atol=1e-14)


def test_entropy_has_the_gradient_of_its_differences():
    """float64 against differences, float32 against float64."""
    scale, h = jnp.array([0.05, 0.7, 2.0]), 1e-5
    gradient = jax.jit(jax.vmap(jax.grad(lambda s: angle_law.entropy(s * s))))
    low, high = jax.jit(angle_law.entropy)(jnp.stack([scale - h, scale + h]) ** 2)
    difference = (high - low) / (2 * h)
    assert_allclose(gradient(scale), difference, rtol=1e-7)
    assert_allclose(gradient(scale.astype(jnp.float32)), difference, rtol=1e-5, atol=1e-5)


@precisions.float64_is_slow
@pytest.mark.slow
def test_broadcasts_maps_and_keeps_the_dtype(dtype):
    mean = so3.sample((4, 1), dtype, key=jax.random.key(0))
    density = densities.IsotropicGaussian(mean, jnp.array([0.1, 0.5, 1.0], dtype))
    R = so3.sample((2, 4, 3), dtype, key=jax.random.key(1))
    several = jax.jit(lambda d, R, key: (d.log_prob(R), d.score(R), d.sample((5,), key=key)))
    log_prob, score, samples = several(density, R, jax.random.key(2))
    assert log_prob.shape == (2, 4, 3)
    assert score.shape == (2, 4, 3, 3)
    assert samples.shape == (5, 4, 3, 3, 3)
    alone = densities.IsotropicGaussian(mean[2, 0], density.scale[1]).log_prob(R[1, 2, 1])
    assert_allclose(log_prob[1, 2, 1], alone, rtol=16 * float(jnp.finfo(dtype).eps))
    mapped = jax.jit(jax.vmap(lambda d, R: d.log_prob(R)))(
        densities.IsotropicGaussian(mean[:, 0], jnp.full(4, 0.5, dtype)), R[0, :, 1]
    )
    assert_allclose(mapped, log_prob[0, :, 1], rtol=16 * float(jnp.finfo(dtype).eps))
    narrow = densities.IsotropicGaussian(mean[0, 0].astype(jnp.bfloat16), 0.5)
    sample, entropy = jax.eval_shape(lambda d, key: (d.sample((3,), key=key), d.entropy()), narrow, jax.random.key(0))
    assert sample.dtype == entropy.dtype == jnp.bfloat16


def test_bad_input_is_named(dtype):
    eye = jnp.eye(3, dtype=dtype)
    with pytest.raises(ValueError, match=r"scale: expected values > 0"):
        densities.IsotropicGaussian(eye, -0.1)
    with pytest.raises(ValueError, match=r"mean: expected shape \(\.\.\., 3, 3\), got \(2, 3\)"):
        densities.IsotropicGaussian(eye[:2], 0.1)
    with pytest.raises(TypeError, match="mean: expected a floating-point array"):
        densities.IsotropicGaussian(jnp.eye(3, dtype=jnp.int32), 0.1)
    with pytest.raises(ValueError, match="mean: expected rotation matrices"):
        densities.IsotropicGaussian(2 * eye, 0.1)
    with pytest.raises(TypeError, match="expected one dtype"):
        densities.IsotropicGaussian(eye, jnp.ones((), jnp.bfloat16))
    with pytest.raises(ValueError, match=r"u: expected probabilities in 0\.\.1"):
        densities.IsotropicGaussian(eye, 0.1).angle_quantile(jnp.array(1.5, dtype))


def test_exports_to_every_platform():
    def everything(mean, scale, R, u, key):
        d = densities.IsotropicGaussian(mean, scale)
        return d.log_prob(R), d.score(R), d.entropy(), d.angle_cdf(u), d.angle_quantile(u), d.sample((2,), key=key)

    eye = jnp.eye(3, dtype=jnp.float32)
    one = jnp.ones((), jnp.float32)
    export.export(jax.jit(everything), platforms=["cpu", "cuda", "tpu"])(eye, one, eye, one, jax.random.key(0))


def test_haar_is_uniform(dtype):
    haar, R = densities.Haar(), so3.sample((5,), dtype, key=jax.random.key(0))
    assert_allclose(haar.log_prob(R), np.zeros(5))
    assert_allclose(haar.score(R), np.zeros((5, 3)))
    assert haar.sample((2, 3), dtype, key=jax.random.key(1)).shape == (2, 3, 3, 3)
    assert haar.entropy(dtype).dtype == dtype
    at_pi = heat_kernel.log_density(jnp.ones((), dtype), jnp.zeros((), dtype), jnp.full((), 100, dtype))
    assert_allclose(at_pi, -3 * math.exp(-100), rtol=1e-10, atol=1e-42)  # so far from Haar is IGSO(3) at scale 10
