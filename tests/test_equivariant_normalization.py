"""Layer normalisation: commutes with O(3), the published formulas written out, finite to second order at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant import normalization
from equivariant.equivariance import equivariance_error

C, L, EPSILON = 5, 2, 1e-5
OVER = ["degree", "all", "separable"]


def _inputs(dtype, parities=1, batch=(4,)):
    keys = jax.random.split(jax.random.key(parities), 3)
    x = jax.random.normal(keys[0], (*batch, parities, (L + 1) ** 2, C), dtype)
    return x, jax.random.normal(keys[1], (parities, L + 1, C), dtype), jax.random.normal(keys[2], (C,), dtype)


@pytest.mark.parametrize("parities", [1, 2])
@pytest.mark.parametrize("over", OVER)
def test_commutes_with_rotations_and_reflections(over, parities, dtype):
    x, weight, bias = _inputs(dtype, parities)
    layer = jax.jit(lambda x: normalization.layer_norm(x, weight, bias, over=over))
    assert layer(x).dtype == dtype
    report = equivariance_error(layer, x, inputs="features", outputs="features")
    assert report.error < 8 * float(jnp.finfo(dtype).eps), report


def published(x, weight, bias, over):
    """The formulas of Equiformer(V2), one node and one degree at a time, for one parity."""
    x = np.array(x)
    x[:, 0] -= x[:, 0].mean(axis=-1, keepdims=True)
    rows = [slice(l * l, (l + 1) ** 2) for l in range(L + 1)]
    size = [np.mean(x[:, r] ** 2, axis=(1, 2)) for r in rows]
    groups = {"degree": [[0], [1], [2]], "all": [[0, 1, 2]], "separable": [[0], [1, 2]]}[over]
    y = np.zeros_like(x)
    for group in groups:
        scale = (np.mean([size[l] for l in group], axis=0) + EPSILON) ** -0.5
        for l in group:
            y[:, rows[l]] = x[:, rows[l]] * scale[:, None, None] * weight[l]
    y[:, 0] += bias
    return y


@pytest.mark.parametrize("over", OVER)
def test_is_the_published_formula(over):
    x, weight, bias = map(np.asarray, _inputs(jnp.float64))
    ours = jax.jit(lambda x: normalization.layer_norm(x, weight, bias, over=over))(x)
    np.testing.assert_allclose(ours[:, 0], published(x[:, 0], weight[0], bias, over), rtol=1e-12, atol=1e-13)


def test_scalars_of_the_separable_form_are_an_ordinary_layer_norm():
    x, *_ = _inputs(jnp.float64)
    scalars = np.asarray(x[:, 0, 0])
    ordinary = (scalars - scalars.mean(-1, keepdims=True)) / np.sqrt(scalars.var(-1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(normalization.layer_norm(x, over="separable")[:, 0, 0], ordinary, rtol=1e-12)


@pytest.mark.parametrize("epsilon", [EPSILON, 0.0])
@pytest.mark.parametrize("over", OVER)
def test_finite_to_second_order_at_zero_with_neighbours_untouched(over, epsilon):
    """Zero rows give 0; the slope there is w/√epsilon, 0 without epsilon; ordinary rows do not notice."""
    x, weight, _ = _inputs(jnp.float64, 2, batch=(3,))
    x = x.at[1].set(0)
    function = lambda x: normalization.layer_norm(x, weight, over=over, epsilon=epsilon, center=False)
    loss = lambda x: jnp.sum(function(x) ** 2 * jnp.arange(x.size, dtype=x.dtype).reshape(x.shape))
    slope = lambda x: jax.jvp(function, (x,), (jnp.ones_like(x),))[1]
    curvature = lambda x: jax.jvp(jax.grad(loss), (x,), (jnp.ones_like(x),))[1]
    y, alone, tangent, second = jax.jit(lambda x: (function(x), function(x[:1]), slope(x), curvature(x)))(x)
    np.testing.assert_array_equal(y[1], 0)
    np.testing.assert_allclose(y[:1], alone, rtol=1e-14)
    assert bool(jnp.isfinite(second).all())
    degree = np.repeat(np.arange(L + 1), 2 * np.arange(L + 1) + 1)
    expected = np.asarray(weight)[:, degree] / np.sqrt(epsilon) if epsilon else np.zeros(x.shape[1:])
    np.testing.assert_allclose(tangent[1], expected, rtol=1e-12)


@pytest.mark.parametrize("over", OVER)
def test_the_module_starts_with_unit_variance_and_keeps_half_precision(over):
    layer = normalization.LayerNorm(L, C, over=over)
    x, *_ = _inputs(jnp.float32, batch=(500,))
    y = jax.jit(layer)(7 * x)
    np.testing.assert_allclose(jnp.mean(y * y, axis=(0, 1, 3)), 1, atol=0.3)
    large = jnp.full((1, 9, C), 300, jnp.float16)  # 300² overflows float16
    assert layer(large).dtype == jnp.float16
    np.testing.assert_allclose(layer(large)[:, 1:], 1, rtol=0.3)
    plain = normalization.LayerNorm(L, C, over=over, affine=False)
    np.testing.assert_array_equal(jax.jit(plain)(x), jax.jit(layer)(x))


def test_two_leading_axes_and_no_higher_degree():
    x, weight, bias = _inputs(jnp.float32, batch=(2, 3))
    for over in OVER:
        both = jax.jit(
            lambda x, over=over: [normalization.layer_norm(a, weight, bias, over=over) for a in (x, x[1, 2])]
        )
        together, alone = both(x)
        np.testing.assert_allclose(together[1, 2], alone, rtol=1e-6, atol=1e-6)
        assert bool(jnp.isfinite(normalization.layer_norm(x[..., :1, :], over=over)).all())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": jnp.zeros((2, 1, 8, C))}, ValueError, "x: expected features"),
        ({"x": jnp.zeros((2, 1, 9, C), jnp.int32)}, TypeError, "x: expected a floating-point"),
        ({"x": jnp.full((2, 1, 9, C), jnp.nan)}, ValueError, "x: expected only finite"),
        ({"weight": jnp.zeros((1, 3, C + 1))}, ValueError, "weight: expected shape"),
        ({"weight": jnp.zeros((1, 3, C), jnp.float32)}, TypeError, "one dtype"),
        ({"bias": jnp.zeros(C + 1)}, ValueError, "bias: expected shape"),
        ({"over": "degrees"}, ValueError, "over: expected one of"),
        ({"epsilon": -1.0}, ValueError, "epsilon: expected"),
    ],
)
def test_bad_input_is_named(change, error, message, own_checks):
    good = {"x": jnp.zeros((2, 1, 9, C)), "weight": jnp.ones((1, 3, C)), "bias": jnp.zeros(C)}
    with pytest.raises(error, match=message):
        normalization.layer_norm(**(good | change))


def test_a_layer_refuses_features_of_another_layout(own_checks):
    with pytest.raises(ValueError, match="x: expected features"):
        normalization.LayerNorm(L, C)(jnp.zeros((1, 4, C)))
