"""Radial functions: closed forms and their derivatives, smooth ends, and a perceptron that keeps its scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from flax import nnx
from mpmath import mp
from numpy.testing import assert_allclose, assert_array_equal

from equivariant import radial

CUTOFF = 5.0
R = np.array([0.0, 1e-12, 1e-4, 0.3, 1.0, 2.5, 4.0, 4.9, 4.999, CUTOFF, 5.2, 40.0])
INSIDE = R[R <= CUTOFF]


def jet(f, r, dtype):
    """(f, f', f'') at each r."""
    r = jnp.asarray(r, dtype)
    first = lambda r: jax.jvp(f, (r,), (jnp.ones_like(r),))[1]
    second = lambda r: jax.jvp(first, (r,), (jnp.ones_like(r),))[1]
    return [np.asarray(a, np.float64) for a in jax.jit(lambda r: (f(r), first(r), second(r)))(r)]


def exact_jet(f, r, dtype):
    """The same by mpmath, at the r that the dtype holds."""
    with mp.workdps(60):
        nudged = [mp.mpf(float(dtype(value))) for value in r]
        return [np.array([float(mp.diff(f, value, order)) for value in nudged]) for order in (0, 1, 2)]


def exact_polynomial(p):
    return lambda r: (
        1
        - mp.mpf((p + 1) * (p + 2)) / 2 * (r / CUTOFF) ** p
        + p * (p + 2) * (r / CUTOFF) ** (p + 1)
        - mp.mpf(p * (p + 1)) / 2 * (r / CUTOFF) ** (p + 2)
    )


FUNCTIONS = {  # ours, the formula, which column, scale of the error in eps for value, slope, curvature
    "bessel 1": (
        lambda r: radial.bessel(r, 8, CUTOFF)[..., 0],
        lambda r: mp.sqrt(0.4) * mp.pi / 5 * mp.sinc(mp.pi * r / 5),
        4,
    ),
    "bessel 8": (
        lambda r: radial.bessel(r, 8, CUTOFF)[..., 7],
        lambda r: mp.sqrt(0.4) * 8 * mp.pi / 5 * mp.sinc(8 * mp.pi * r / 5),
        250,
    ),
    "gaussian": (lambda r: radial.gaussian(r, 6, CUTOFF)[..., 2], lambda r: mp.exp(-((r - 2) ** 2) / 2), 2),
    "bernstein": (
        lambda r: radial.bernstein(r, 5, 0.7)[..., 3],
        lambda r: 4 * mp.exp(-2.1 * r) * (1 - mp.exp(-0.7 * r)),
        16,
    ),
    "polynomial 6": (lambda r: radial.polynomial_cutoff(r, CUTOFF), exact_polynomial(6), 12),
    "polynomial 2": (lambda r: radial.polynomial_cutoff(r, CUTOFF, 2), exact_polynomial(2), 4),
    "bump": (
        lambda r: radial.bump_cutoff(r, CUTOFF),
        lambda r: mp.exp(-(r * r) / (25 - r * r)) if r < 5 else mp.zero,
        8,
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_slopes_and_curvatures_are_those_of_the_formula(name, dtype):
    ours, formula, scale = FUNCTIONS[name]
    r = INSIDE[:-1]
    for found, wanted in zip(jet(ours, r, dtype), exact_jet(formula, r, np.dtype(dtype).type), strict=True):
        assert_allclose(found, wanted, rtol=0, atol=scale * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_derivatives_are_finite_everywhere(name, dtype):
    assert np.isfinite(jet(FUNCTIONS[name][0], R, dtype)).all()
    assert FUNCTIONS[name][0](jnp.ones((2, 3), dtype)).dtype == dtype


@pytest.mark.parametrize(
    "cut", [lambda r: radial.polynomial_cutoff(r, CUTOFF, 5), lambda r: radial.bump_cutoff(r, CUTOFF)]
)
def test_cutoffs_end_with_zero_slope_and_curvature(cut, dtype):
    value, slope, curvature = jet(cut, R, dtype)
    assert_array_equal(np.array([value, slope, curvature])[:, R >= CUTOFF], 0)
    assert_allclose(value[:2], 1, atol=float(jnp.finfo(dtype).eps))
    assert (np.diff(value) <= 0).all()
    below = np.nextafter(np.dtype(dtype).type(CUTOFF), np.dtype(dtype).type(0))
    # third order: |f''| <= 60 (1 − x)/c², where the distance to the cutoff is one rounding
    assert (np.abs(jet(cut, [below], dtype)) < 64 * jnp.finfo(dtype).eps).all()


def test_polynomial_keeps_its_digits_up_to_the_cutoff():
    r = np.float32(CUTOFF) - np.float32(2.0) ** np.arange(-20, -2).astype(np.float32)
    with mp.workdps(40):
        exact = np.array([float(exact_polynomial(6)(mp.mpf(float(x)))) for x in r])
    # x = r/c is rounded once: (1 − x)³ loses what that rounding costs, and nothing else
    allowed = 12 + 3 * (r / CUTOFF) / (2 * (1 - r.astype(np.float64) / CUTOFF))
    error = np.abs(np.asarray(radial.polynomial_cutoff(jnp.asarray(r), CUTOFF), np.float64) / exact - 1)
    assert (error <= allowed * np.finfo(np.float32).eps).all()


def test_bessel_functions_are_orthonormal_and_bernstein_polynomials_sum_to_one():
    r = np.linspace(0, CUTOFF, 2001)
    values = np.asarray(radial.bessel(jnp.asarray(r), 8, CUTOFF))
    gram = scipy.integrate.simpson(values[:, :, None] * values[:, None] * (r * r)[:, None, None], x=r, axis=0)
    assert_allclose(gram, np.eye(8), atol=1e-6)
    assert_allclose(jnp.sum(radial.bernstein(jnp.asarray(r), 16), axis=-1), 1, rtol=1e-14)


def test_perceptron_is_the_formula_and_keeps_unit_second_moments():
    net = radial.Perceptron((8, 64, 64, 32), rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(4096, 8))
    hidden = x
    for k, weight in enumerate(net.weights()):
        hidden = hidden if k == 0 else hidden / (1 + np.exp(-hidden)) * radial.SILU_GAIN
        hidden = hidden @ np.asarray(weight, np.float64) / np.sqrt(len(weight))
    found = net(jnp.asarray(x))
    assert found.dtype == jnp.float64
    assert_allclose(found, hidden, atol=1e-12)
    assert net(jnp.asarray(x, jnp.float32)).dtype == jnp.float32
    assert 0.6 < np.mean(np.square(found)) < 1.6  # one draw of the weights
    second_moment, _ = scipy.integrate.quad(
        lambda z: (z / (1 + np.exp(-z))) ** 2 * np.exp(-z * z / 2) / np.sqrt(2 * np.pi), -30, 30
    )
    assert_allclose(radial.SILU_GAIN, second_moment**-0.5, rtol=1e-9)


def test_bad_arguments_are_named(own_checks):
    with pytest.raises(TypeError, match="r: expected a floating-point array"):
        radial.bessel(jnp.arange(3), 8, CUTOFF)
    with pytest.raises(ValueError, match="size: expected at least 1, got 0"):
        radial.bessel(jnp.ones(3), 0, CUTOFF)
    with pytest.raises(ValueError, match="r: expected only finite values"):
        radial.bump_cutoff(jnp.array([1.0, jnp.nan]), CUTOFF)
    with pytest.raises(ValueError, match=r"weights\[1\]: expected shape \(5, any\), got \(4, 2\)"):
        radial.perceptron((jnp.ones((3, 5)), jnp.ones((4, 2))), jnp.ones((7, 3)))
    with pytest.raises(ValueError, match="sizes: expected at least inputs and outputs"):
        radial.Perceptron((3,), rngs=nnx.Rngs(0))
