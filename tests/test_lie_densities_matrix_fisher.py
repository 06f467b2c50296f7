"""Matrix Fisher: normaliser against mpmath and the truth table, laws of an exponential family, exact samples."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import precisions
import pytest
from jax import export
from numpy.testing import assert_allclose

from lie import densities, so3, svd3
from lie.densities import fisher_normalizer

# Repeated, zero, negative, s2 + s3 = 0, and the two ends of the range at once.
SINGULAR = [(0, 0, 0), (1, 1, 1), (3, 1, -0.5), (40, 2, -2), (1e3, 0, 0), (1e4, 9999, -9998.9), (1e4, 1e4, 1e4)]
PARAMETERS = np.stack(
    [
        np.array([[1.0, -2.0, 0.3], [0.5, 3.0, -1.0], [2.0, 0.1, 0.7]]),
        np.diag([5.0, 5.0, -5.0]),
        np.zeros((3, 3)),
        np.diag([2.0, 2.0, 2.0]),
    ]
)


def moments_exactly(s):
    """log c − tr S and 1 − E[Q_11] by quadrature of the same law in another coordinate: v = 2 sin² a, in 30 digits."""
    with mpmath.workdps(30):
        s1, s2, s3 = (mpmath.mpf(float(x)) for x in s)

        def density(a):
            v = 2 * mpmath.sin(a) ** 2
            scaled = [mpmath.exp(-k) * mpmath.besseli(0, k) for k in ((s2 - s3) * v / 2, (s2 + s3) * (2 - v) / 2)]
            return scaled[0] * scaled[1] * mpmath.exp(-(s1 + s3) * v) * mpmath.sin(2 * a)

        knots = [0, *(mpmath.pi / 2 * mpmath.mpf(2) ** -k for k in range(10, -1, -1))]
        total: Any = mpmath.quad(density, knots)
        moment: Any = mpmath.quad(lambda a: 2 * mpmath.sin(a) ** 2 * density(a), knots)
        return [float(mpmath.log(total)), float(moment / total)]


def test_normalizer_agrees_with_mpmath(dtype):
    s = jnp.array(SINGULAR, dtype)
    want = np.array([moments_exactly(row) for row in np.asarray(s)])
    eps = float(jnp.finfo(dtype).eps)
    value, deviation = (
        jax.jit(fisher_normalizer.scaled_log_normalizer)(s),
        jax.jit(fisher_normalizer.expected_deviation)(s),
    )
    assert value.dtype == deviation.dtype == dtype
    assert np.max(np.abs(np.asarray(value, float) - want[:, 0]) / np.maximum(1, np.abs(want[:, 0]))) <= 16 * eps
    assert_allclose(deviation[:, 0], want[:, 1], rtol=1e-6 if dtype == jnp.float32 else 1e-12)


def test_normalizer_agrees_with_the_truth_table(truth, dtype):
    rows = truth("matrix_fisher")["rows"]
    with mpmath.workdps(50):
        s = [[mpmath.mpf(x) for x in row["s"]] for row in rows]
        scaled = np.array([float(mpmath.mpf(row["logc"]) - sum(x)) for row, x in zip(rows, s, strict=True)])
        deviation = np.array([[float(1 - mpmath.mpf(x)) for x in row["grad"]] for row in rows])
    tolerance, relative = (1e-5, 1e-4) if dtype == jnp.float32 else (1e-10, 1e-9)
    density = densities.MatrixFisher(jnp.array(np.array(s, float)[:, :, None] * np.eye(3), dtype))
    assert np.all(
        np.abs(np.asarray(density.scaled_log_normalizer(), float) - scaled) <= tolerance * np.maximum(1, np.abs(scaled))
    )
    assert_allclose(density.expected_deviation(), deviation, rtol=relative)
    log_c = np.array([float(row["logc"]) for row in rows])
    assert_allclose(density.log_normalizer(), log_c, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_moments_are_derivatives_of_the_normalizer():
    """In float64: mean and Hessian against central differences, at repeated and vanishing singular values as well."""
    h = 1e-5

    def log_c(F):
        return densities.MatrixFisher(F).log_normalizer()

    gradient, hessian = (jax.jit(jax.vmap(f(log_c))) for f in (jax.grad, jax.hessian))
    F = jnp.asarray(PARAMETERS)
    assert_allclose(gradient(F), densities.MatrixFisher(F).mean, atol=1e-15)
    H = hessian(F)
    for i, j in itertools.product(range(3), range(3)):
        step = jnp.zeros((3, 3)).at[i, j].set(h)
        assert_allclose(H[:, i, j], (gradient(F + step) - gradient(F - step)) / (2 * h), atol=1e-9)


@precisions.float64_is_slow
def test_score_is_the_gradient_in_the_body_frame_and_the_hessian_is_finite(dtype):
    F = jnp.concatenate([jnp.array(PARAMETERS, dtype), jnp.array([np.diag([1e4, 9e3, -8e3])], dtype)])
    R = so3.sample((5,), dtype, key=jax.random.key(0)).at[4].set(jnp.eye(3, dtype=dtype))

    def log_prob(u, F, R):
        return densities.MatrixFisher(F).log_prob(so3.retract(R, u))

    zero = jnp.zeros((5, 3), dtype)
    gradient = jax.jit(jax.vmap(jax.grad(log_prob)))(zero, F, R)
    size = 1 + jnp.sum(jnp.abs(F), axis=(-2, -1))
    score = densities.MatrixFisher(F).score(R)
    assert bool((jnp.abs(score - gradient).max(-1) <= 16 * jnp.finfo(dtype).eps * size).all())
    assert float(jnp.abs(score[4]).max()) == 0  # the mode itself
    second = jax.jit(jax.vmap(jax.hessian(log_prob, (0, 1))))(zero, F, R)
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(second))


def test_density_integrates_to_one():
    """Over quaternions with a product rule in Hopf's coordinates, exact for the degrees that matter at s <= 3."""
    density = densities.MatrixFisher(jnp.asarray(PARAMETERS[0]))
    x, weights = np.polynomial.legendre.leggauss(24)
    a, b = np.arange(32) * 2 * np.pi / 32, np.arange(32) * 2 * np.pi / 32
    v, a, b = np.meshgrid((1 + x) / 2, a, b, indexing="ij")
    q = np.stack(
        [np.sqrt(1 - v) * np.cos(a), np.sqrt(1 - v) * np.sin(a), np.sqrt(v) * np.cos(b), np.sqrt(v) * np.sin(b)]
    )
    w, i, j, k = q
    R = np.array(
        [
            [1 - 2 * (j * j + k * k), 2 * (i * j - w * k), 2 * (i * k + w * j)],
            [2 * (i * j + w * k), 1 - 2 * (i * i + k * k), 2 * (j * k - w * i)],
            [2 * (i * k - w * j), 2 * (j * k + w * i), 1 - 2 * (i * i + j * j)],
        ]
    )
    values = jnp.exp(jax.jit(density.log_prob)(jnp.asarray(np.moveaxis(R, (0, 1), (-2, -1)))))
    assert_allclose(np.sum(np.asarray(values).mean(axis=(1, 2)) * weights / 2), 1, rtol=1e-10)


def test_samples_have_the_moments_of_the_density(dtype):
    """Mean within four standard errors, entropy likewise, and the law of 1 − Q_11 = 2(y² + z²) by its mean."""
    density, count = densities.MatrixFisher(jnp.array(PARAMETERS, dtype)), 20000
    R = jax.jit(lambda d, key: d.sample((count,), key=key))(density, jax.random.key(1))
    assert R.shape == (count, 4, 3, 3)
    assert R.dtype == dtype
    check = np.asarray(R, float)
    assert np.abs(np.swapaxes(check, -1, -2) @ check - np.eye(3)).max() <= 64 * float(jnp.finfo(dtype).eps)
    error = np.abs(check.mean(axis=0) - np.asarray(density.mean, float))
    assert np.all(error <= 4.5 * check.std(axis=0) / np.sqrt(count) + 1e-6)
    log_prob = np.asarray(jax.jit(density.log_prob)(R), float)
    entropy = np.asarray(density.entropy(), float)
    assert np.all(np.abs(-log_prob.mean(axis=0) - entropy) <= 4.5 * log_prob.std(axis=0) / np.sqrt(count) + 1e-5)


def test_concentrated_samples_are_gaussian_in_the_tangent_space():
    """s = 1e4: the rotation vector has variances 1/(s_j + s_k); and a batch of mixed laws leaves each element alone."""
    F = jnp.asarray(np.stack([np.diag([1e4, 5e3, 2e3]), np.zeros((3, 3))]))
    R = jax.jit(lambda F: densities.MatrixFisher(F).sample((20000,), key=jax.random.key(2)))(F)
    omega = np.asarray(so3.log(R[:, 0]))
    assert_allclose(omega.var(axis=0), 1 / np.array([7e3, 1.2e4, 1.5e4]), rtol=0.05)


@pytest.mark.slow
def test_entropy_is_minus_the_mean_log_density_and_has_a_gradient():
    F, h = jnp.asarray(PARAMETERS), 1e-5

    def entropy(F):
        return densities.MatrixFisher(F).entropy()

    gradient = jax.jit(jax.vmap(jax.grad(entropy)))(F)
    step = jnp.asarray(np.array([[1.0, 0.5, -0.2], [0.3, -1.0, 0.7], [0.1, 0.2, 0.4]]))
    difference = (entropy(F + h * step) - entropy(F - h * step)) / (2 * h)
    assert_allclose(jnp.sum(gradient * step, axis=(-2, -1)), difference, atol=1e-8)
    with pytest.raises(NotImplementedError, match="repeat"):
        jax.hessian(entropy)(F[0])


def test_svd_is_proper_for_every_matrix(dtype):
    generator = np.random.default_rng(0)
    hard = [np.outer([1, 2, 3], [0, 1, 0]), np.diag([-1.0, -1, -1]), np.diag([1e-3, 1e4, -1e-5]), np.eye(3)[[1, 2, 0]]]
    F = jnp.array(np.concatenate([generator.normal(size=(30, 3, 3)), PARAMETERS, hard]), dtype)
    U, s, V = (np.asarray(x, float) for x in jax.jit(svd3.svd)(F))
    eps, largest = float(jnp.finfo(dtype).eps), s[:, 0]
    assert np.all(
        np.abs(np.einsum("nij,nj,nkj->nik", U, s, V) - np.asarray(F, float)).max((1, 2)) <= 12 * eps * largest
    )
    for W in (U, V):
        assert np.abs(np.swapaxes(W, 1, 2) @ W - np.eye(3)).max() <= 12 * eps
        assert np.all(np.linalg.det(W) > 0)
    assert np.all((s[:, 0] >= s[:, 1]) & (s[:, 1] >= np.abs(s[:, 2])))
    assert np.all(
        np.abs(np.abs(s) - np.linalg.svd(np.asarray(F, float), compute_uv=False)) <= 12 * eps * largest[:, None]
    )


def test_bad_input_is_named(dtype):
    with pytest.raises(ValueError, match=r"parameter: expected shape \(\.\.\., 3, 3\), got \(4,\)"):
        densities.MatrixFisher(jnp.ones(4, dtype))
    with pytest.raises(TypeError, match="parameter: expected a floating-point array"):
        densities.MatrixFisher(jnp.ones((3, 3), jnp.int32))
    with pytest.raises(ValueError, match="R: expected rotation matrices"):
        densities.MatrixFisher(jnp.eye(3, dtype=dtype)).log_prob(2 * jnp.eye(3, dtype=dtype))
    with pytest.raises(ValueError, match="s1 >= s2"):
        fisher_normalizer.expected_deviation(jnp.array([1.0, 2.0, 0.0], dtype))


def test_exports_to_every_platform():
    def everything(F, R, key):
        d = densities.MatrixFisher(F)
        return d.log_prob(R), d.score(R), d.entropy(), d.log_normalizer(), d.mode, d.mean, d.sample((2,), key=key)

    eye = jnp.eye(3, dtype=jnp.float32)
    export.export(jax.jit(everything), platforms=["cpu", "cuda", "tpu"])(eye, eye, jax.random.key(0))


def test_score_moves_with_parameter_and_rotation_as_its_differences_do():
    keys = jax.random.split(jax.random.key(3), 4)
    F, F_dot = (jax.random.normal(key, (3, 3), jnp.float64) for key in keys[:2])
    R, xi = so3.sample((), jnp.float64, key=keys[2]), jax.random.normal(keys[3], (3,), jnp.float64)

    def along(t):
        return densities.MatrixFisher(F + t * F_dot).score(so3.retract(R, t * xi))

    slope = jax.jvp(along, (jnp.float64(0),), (jnp.float64(1),))[1]
    np.testing.assert_allclose(slope, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-8, atol=1e-8)


def test_every_row_of_many_samples_has_its_own_log_density():
    """Compiled at a size where a compiler once mixed up the rows: 100 samples of each of 400 laws."""
    key_F, key_R = jax.random.split(jax.random.key(5))
    F = 10 * jax.random.normal(key_F, (400, 3, 3), jnp.float32)
    R = so3.sample((100, 400), jnp.float32, key=key_R)
    found = np.asarray(jax.jit(lambda law, R: law.log_prob(R))(densities.MatrixFisher(F), R))
    R, F = np.asarray(R, np.float64), np.asarray(F, np.float64)
    assert_allclose(found - found[0], np.einsum("nij,snij->sn", F, R - R[0]), atol=2e-4)
