"""Harmonics against extended precision, e3nn and rotations; grids and transforms against direct sums and Parseval."""

import math

import e3nn_jax
import jax
import jax.export
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from numpy.testing import assert_allclose

from lie import harmonics, so3, wigner

DIRECTIONS = np.array(
    [
        *[[1e-4, 1e-4, -1], [0, 1, 0], [0, -1, 0], [1e-4, -1, 1e-4], [1e-3, 1, 2e-3], [1e-8, 1, 0], [1, 0, 0]],
        *[[0, 0, 1], [0.1, 0.99, 0.03], [0.05, -3, 0.02], [1e-2, 7, 1e-2], [3e-2, 1, 0], [0.2, 1, 0.1], [1, 1e-3, 1]],
        *np.random.default_rng(0).normal(size=(12, 3)),
    ]
)


def exact(x, max_degree, normalize=True):
    """Harmonics at one point by the definition: mpmath, 40 digits, three-term recursion in the degree."""
    with mpmath.workdps(40):
        x = [entry if isinstance(entry, mpmath.mpf) else mpmath.mpf(float(entry)) for entry in x]
        radius = mpmath.sqrt(sum(entry**2 for entry in x))
        u = [entry / radius for entry in x]
        values = [mpmath.mpf(0)] * (max_degree + 1) ** 2
        for m in range(max_degree + 1):
            phase, factor = mpmath.mpc(u[2], u[0]) ** m, {m - 1: 0, m: mpmath.fac2(2 * m - 1)}
            for l in range(m, max_degree + 1):
                if l > m:
                    factor[l] = ((2 * l - 1) * u[1] * factor[l - 1] - (l + m - 1) * factor[l - 2]) / (l - m)
                size = (2 - (m == 0)) * (2 * l + 1) * mpmath.factorial(l - m) / mpmath.factorial(l + m)
                value = mpmath.sqrt(size) * factor[l] * phase * (1 if normalize else radius**l)
                values[l * l + l + m] = value.real
                if m:
                    values[l * l + l - m] = value.imag
        return values


def peak(max_degree):
    """√(2l + 1) for each of the orders: the largest value that a harmonic of degree l takes."""
    return np.concatenate([np.full(2 * l + 1, math.sqrt(2 * l + 1)) for l in range(max_degree + 1)])


@pytest.mark.parametrize("normalize", [True, False])
def test_values_to_degree_20_at_the_poles_and_everywhere(normalize, dtype):
    x = (
        DIRECTIONS.astype(dtype)
        if normalize
        else (DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1)[:, None]).astype(dtype)
    )
    ours = np.asarray(harmonics.evaluate(jnp.asarray(x), 20, normalize))
    assert ours.dtype == dtype
    difference = [
        [float(mpmath.mpf(float(a)) - b) for a, b in zip(row, exact(point, 20, normalize), strict=True)]
        for row, point in zip(ours, x, strict=True)
    ]
    error = np.abs(difference) / peak(20) / float(jnp.finfo(dtype).eps)
    assert error[:, :25].max() <= 3
    assert error[:, : 13**2].max() <= 8
    assert error.max() <= 12


@pytest.mark.parametrize("normalize", [True, False])
def test_basis_is_that_of_e3nn(normalize):
    x = jax.random.normal(jax.random.key(0), (2, 5, 3), jnp.float64)
    x = x / jnp.linalg.norm(x, axis=-1, keepdims=True) * jnp.linspace(0.5, 2, 5)[:, None]
    irreps = e3nn_jax.Irreps.spherical_harmonics(8)
    theirs = e3nn_jax.spherical_harmonics(irreps, x, normalize, "component").array
    ours = harmonics.evaluate(x, 8, normalize)
    assert ours.shape == (2, 5, 81)
    assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    assert_allclose(harmonics.evaluate(x, 1, False)[..., 1:], math.sqrt(3) * x, rtol=1e-15)


def test_harmonics_turn_as_wigner_says(dtype):
    R = so3.sample((), dtype, key=jax.random.key(1))
    x = jax.random.normal(jax.random.key(2), (10, 3), dtype)
    for improper in (R, -R):
        turned = harmonics.evaluate(so3.act(R, x) * (1 if improper is R else -1), 6)
        expected = jnp.einsum("ij,nj->ni", wigner.d_all(improper, 6), harmonics.evaluate(x, 6))
        assert_allclose(
            turned, expected, rtol=0, atol=100 * float(jnp.finfo(dtype).eps)
        )  # 13 terms, |Y| <= 3.6, D to 8 eps


def test_zero_vector(dtype):
    x = jnp.asarray([[0, 0, 0], [0.3, -0.2, 0.9], [0, 1, 0]], dtype)
    values = harmonics.evaluate(x, 3)
    assert_allclose(values[0], np.eye(16)[0], rtol=0, atol=0)
    jacobian = jax.jit(jax.vmap(jax.jacrev(lambda x: harmonics.evaluate(x, 3))))(x)
    hessian = jax.jit(jax.vmap(jax.hessian(lambda x: harmonics.evaluate(x, 3))))(x)
    assert np.isfinite(jacobian).all()
    assert np.isfinite(hessian).all()
    assert not np.asarray(jacobian[0]).any()
    assert not np.asarray(hessian[0]).any()
    solid = jax.jacfwd(lambda x: harmonics.evaluate(x, 3, False))(x[0])
    assert_allclose(
        solid, np.pad(math.sqrt(3) * np.eye(3), ((1, 12), (0, 0))), rtol=0, atol=2 * float(jnp.finfo(dtype).eps)
    )


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e15, 1e18])
def test_extreme_lengths(scale):
    x = jnp.asarray(DIRECTIONS[-3:] * scale, jnp.float32)
    reference = harmonics.evaluate(jnp.asarray(DIRECTIONS[-3:], jnp.float32), 4)
    assert_allclose(harmonics.evaluate(x, 4), reference, rtol=0, atol=3e-6)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(harmonics.evaluate(x, 4) ** 3)))(x)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("normalize", [True, False])
def test_derivatives(normalize, dtype):
    """First and second derivatives, forward and reverse, against differences in 40 digits."""
    points = DIRECTIONS[[0, 1, 3, 6, 9, -1]].astype(dtype)
    function = lambda x: harmonics.evaluate(x, 5, normalize)
    jacobian = np.asarray(jax.jit(jax.vmap(jax.jacfwd(function)))(points), np.float64)
    reverse = np.asarray(jax.jit(jax.vmap(jax.jacrev(function)))(points), np.float64)
    hessian = np.asarray(jax.jit(jax.vmap(jax.hessian(function)))(points), np.float64)
    eps = float(jnp.finfo(dtype).eps)
    for n, point in enumerate(points):
        for k in range(3):
            slope, curvature = differences(point, k, normalize)
            scale, size = max(1, np.abs(slope).max()), max(1, np.abs(curvature).max())
            assert_allclose(jacobian[n, :, k], slope, rtol=0, atol=20 * eps * scale)
            assert_allclose(reverse[n, :, k], slope, rtol=0, atol=20 * eps * scale)
            assert_allclose(hessian[n, :, k, k], curvature, rtol=0, atol=100 * eps * size)


def differences(point, k, normalize):
    """First and second central differences along axis k at degree 5, with more digits than differencing eats."""
    with mpmath.workdps(40):
        h, x = mpmath.mpf(10) ** -10, [mpmath.mpf(float(entry)) for entry in point]
        up, here, down = (
            exact([entry + shift * h * (j == k) for j, entry in enumerate(x)], 5, normalize) for shift in (1, 0, -1)
        )
        first = [float((a - c) / (2 * h)) for a, c in zip(up, down, strict=True)]
        second = [float((a - 2 * b + c) / h**2) for a, b, c in zip(up, here, down, strict=True)]
    return np.array(first), np.array(second)


def test_large_batches_agree_with_small_ones(dtype):
    rows = 9 * 2013
    x = jax.random.normal(jax.random.key(3), (9, 2013, 3), dtype)
    function = jax.jit(lambda x: harmonics.evaluate(x, 7))
    some = np.arange(0, rows, 997)
    expected = function(x.reshape(-1, 3)[some])
    assert_allclose(function(x).reshape(rows, -1)[some], expected, rtol=0, atol=8 * float(jnp.finfo(dtype).eps))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(harmonics.evaluate(x, 7) ** 3)))
    whole, part = gradient(x).reshape(rows, 3)[some], gradient(x.reshape(-1, 3)[some])
    assert_allclose(whole, part, rtol=0, atol=64 * float(jnp.finfo(dtype).eps) * np.abs(part).max())


def test_the_rule_leaves_the_value_alone(dtype):
    x = jnp.asarray([*DIRECTIONS, [0, 0, 0]], dtype)
    value, _ = jax.jvp(lambda x: harmonics.evaluate(x, 4), (x,), (jnp.ones_like(x),))
    assert_allclose(value, harmonics.evaluate(x, 4), rtol=0, atol=0)
    mapped = jax.vmap(lambda x: harmonics.evaluate(x, 4))(x)
    assert_allclose(mapped, value, rtol=0, atol=4 * float(jnp.finfo(dtype).eps))


def test_narrow_dtypes_stay_narrow():
    x = jnp.ones((2, 3), jnp.bfloat16)
    assert harmonics.evaluate(x, 2).dtype == jnp.bfloat16


@pytest.mark.parametrize(("max_degree", "grid_degree"), [(0, 0), (3, 3), (4, 7)])
def test_sphere_grid_round_trip_and_parseval(max_degree, grid_degree, dtype):
    x = jax.random.normal(jax.random.key(4), (2, 1, (max_degree + 1) ** 2, 3), dtype)
    values = harmonics.to_grid(x, grid_degree)
    points, weights = harmonics.sphere_grid(grid_degree)
    assert values.shape == (2, 1, grid_degree + 1, 2 * grid_degree + 1, 3)
    assert values.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    harmonic = np.asarray(harmonics.evaluate(jnp.asarray(points), max_degree))
    direct = np.einsum("bak,npkc->npbac", harmonic, np.asarray(x, np.float64))
    assert_allclose(values, direct, rtol=0, atol=8 * eps * np.abs(direct).max())
    assert_allclose(harmonics.from_grid(values, max_degree), x, rtol=0, atol=16 * eps * np.abs(x).max())
    mean_square = np.einsum("ba,npbac->npc", weights, np.asarray(values, np.float64) ** 2)
    assert_allclose(mean_square, np.sum(np.asarray(x, np.float64) ** 2, axis=2), rtol=32 * eps)


def test_sphere_quadrature_is_exact_to_twice_the_degree():
    points, weights = harmonics.sphere_grid(3)
    Y = np.asarray(harmonics.evaluate(jnp.asarray(points), 6))
    assert_allclose(np.einsum("ba,bak->k", weights, Y), np.eye(49)[0], rtol=0, atol=1e-14)


def rotation_function(max_degree, dtype, seed, batch=(2,)):
    keys = jax.random.split(jax.random.key(seed), max_degree + 1)
    return tuple(jax.random.normal(keys[l], (*batch, 2 * l + 1, 2 * l + 1), dtype) for l in range(max_degree + 1))


@pytest.mark.parametrize(("max_degree", "grid_degree"), [(0, 0), (3, 3), (2, 4)])
def test_so3_transform_round_trip_and_parseval(max_degree, grid_degree, dtype):
    F = rotation_function(max_degree, dtype, 5)
    values = harmonics.inverse_fourier_so3(F, grid_degree)
    rotations, weights = harmonics.rotation_grid(grid_degree)
    assert values.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    direct = sum(
        (2 * l + 1) * np.einsum("nij,abcij->nabc", np.asarray(F[l], np.float64), wigner.d(rotations, l))
        for l in range(max_degree + 1)
    )
    assert_allclose(values, direct, rtol=0, atol=8 * eps * np.abs(direct).max())
    for mine, back in zip(F, harmonics.fourier_so3(values, max_degree), strict=True):
        assert_allclose(back, mine, rtol=0, atol=16 * eps * np.abs(values).max())
    energy = sum((2 * l + 1) * np.sum(np.asarray(F[l], np.float64) ** 2, axis=(1, 2)) for l in range(max_degree + 1))
    mean_square = np.einsum("abc,nabc->n", weights, np.asarray(values, np.float64) ** 2)
    assert_allclose(mean_square, energy, rtol=32 * eps)


def test_convolution_is_the_product_of_coefficients():
    F, G = (rotation_function(2, jnp.float64, seed, ()) for seed in (6, 7))
    rotations, weights = harmonics.rotation_grid(2)
    at = so3.sample((5,), jnp.float64, key=jax.random.key(8))

    def value(F, R):
        return sum((2 * l + 1) * jnp.einsum("ij,...ij->...", F[l], wigner.d(R, l)) for l in range(3))

    # (f * g)(R) = ∫ f(Q) g(Q⁻¹ R) dQ, summed over the grid without any transform
    turned = np.einsum("abcji,njk->nabcik", rotations, at)
    direct = np.einsum("abc,abc,nabc->n", weights, value(F, rotations), value(G, turned))
    product = tuple(f @ g for f, g in zip(F, G, strict=True))
    assert_allclose(value(product, at), direct, rtol=1e-13, atol=1e-12)


def test_transforms_are_transposes_under_grad_and_vmap():
    F = rotation_function(2, jnp.float32, 9, (3,))
    mapped = jax.vmap(lambda F: harmonics.fourier_so3(harmonics.inverse_fourier_so3(F)))(F)
    gradient = jax.grad(lambda F: jnp.mean(harmonics.inverse_fourier_so3(F, 2) ** 2))(F)
    assert all(np.isfinite(g).all() for g in gradient)
    for mine, back in zip(F, mapped, strict=True):
        assert_allclose(back, mine, rtol=0, atol=1e-4)


def test_everything_exports_for_every_platform():
    platforms = ["cpu", "cuda", "tpu"]
    shapes = {
        "evaluate": (lambda x: jax.grad(lambda x: jnp.sum(harmonics.evaluate(x, 4) ** 2))(x), (20_000, 3)),
        "to_grid": (lambda x: harmonics.to_grid(x, 4), (2, 16, 3)),
        "from_grid": (lambda v: harmonics.from_grid(v, 3), (2, 5, 9, 3)),
        "fourier_so3": (lambda v: harmonics.inverse_fourier_so3(harmonics.fourier_so3(v)), (2, 5, 3, 5)),
    }
    for function, shape in shapes.values():
        exported = jax.export.export(jax.jit(function), platforms=platforms)(jax.ShapeDtypeStruct(shape, jnp.float32))
        assert exported.platforms == tuple(platforms)


def test_bad_input_is_named(own_checks):
    with pytest.raises(ValueError, match=r"x: expected shape \(\.\.\., 3\), got \(2, 4\)"):
        harmonics.evaluate(jnp.ones((2, 4)), 2)
    with pytest.raises(TypeError, match="x: expected a floating-point array"):
        harmonics.evaluate(jnp.ones(3, jnp.int32), 2)
    with pytest.raises(ValueError, match="x: expected only finite values"):
        harmonics.evaluate(jnp.full(3, jnp.nan), 2)
    with pytest.raises(ValueError, match="max_degree: expected a degree >= 0, got -1"):
        harmonics.evaluate(jnp.ones(3), -1)
    with pytest.raises(ValueError, match=r"x: expected \(max_degree \+ 1\)\*\*2 orders"):
        harmonics.to_grid(jnp.ones((8, 1)))
    with pytest.raises(ValueError, match="grid_degree: expected at least max_degree = 2, got 1"):
        harmonics.to_grid(jnp.ones((9, 1)), 1)
    with pytest.raises(ValueError, match="values: expected shape"):
        harmonics.from_grid(jnp.ones((4, 6, 1)), 2)
    with pytest.raises(ValueError, match="values: expected shape"):
        harmonics.fourier_so3(jnp.ones((5, 4, 5)))
    with pytest.raises(ValueError, match=r"coefficients\[1\]: expected shape \(\.\.\., 3, 3\), got \(2, 2\)"):
        harmonics.inverse_fourier_so3((jnp.ones((1, 1)), jnp.ones((2, 2))))
