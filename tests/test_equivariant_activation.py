"""Gate, norm and grid activations: commute with O(3), exact at zero features, equal to e3nn-jax and to closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from equivariant import activation, features
from equivariant.equivariance import equivariance_error

C = 3


def _features(dtype, parities=1, max_degree=2, batch=(4,), seed=0):
    return jax.random.normal(jax.random.key(seed), (*batch, parities, (max_degree + 1) ** 2, C), dtype)


def _gates(dtype, parities=1, max_degree=2, batch=(4,)):
    return jax.random.normal(jax.random.key(9), (*batch, parities * max_degree * C), dtype)


def _norm(parities, unit=False):
    layer = activation.NormActivation(2, C, parities, unit=unit)
    layer.bias[...] = jax.random.normal(jax.random.key(5), layer.bias.shape, jnp.float32)
    return layer


LAYERS = {
    "gate": lambda p: lambda x: activation.gate(x, _gates(x.dtype, p)),
    "gate shared": lambda p: lambda x: activation.gate(x, _gates(x.dtype, 1, 1)),
    "gate own": lambda p: activation.Gate(),
    "norm": lambda p: _norm(p),
    "norm unit": lambda p: _norm(p, unit=True),
    # (f³ is a polynomial of degree 3: exact on a grid of degree 4)
    "grid cubed": lambda p: activation.GridActivation(activation=lambda f: f**3, grid_degree=4),
    "grid odd mixture": lambda p: activation.GridActivation(activation=lambda f: f**3 - f * f + f, grid_degree=4),
}


@pytest.mark.parametrize("parities", [1, 2])
@pytest.mark.parametrize("name", LAYERS)
def test_commutes_with_rotations_and_reflections_and_keeps_the_dtype(name, parities, dtype):
    layer, x = jax.jit(LAYERS[name](parities)), _features(dtype, parities)
    assert layer(x).dtype == dtype
    report = equivariance_error(layer, x, inputs="features", outputs="features")
    assert report.error < 8 * float(jnp.finfo(dtype).eps), report


@pytest.mark.parametrize("parities", [1, 2])
def test_values_and_two_derivatives_are_finite_and_right_at_zero(parities):
    """At x = 0 gate and norm have the gradient η I on degrees >= 1, and all second derivatives are finite."""
    shape = (parities, 9, C)
    zero, gates = jnp.zeros(shape, jnp.float64), jnp.linspace(-1, 1, parities * 2 * C)
    functions = {
        "gate": lambda x: activation.gate(x, gates, normalize=False),
        "own": lambda x: activation.gate(x, normalize=False),
        "norm": lambda x: activation.norm_activation(x, jnp.full((parities, 3, C), 0.3)),
        "unit": lambda x: activation.norm_activation(x, jnp.full((parities, 3, C), 0.3), unit=True),
        "grid": lambda x: activation.grid_activation(x, activation=lambda f: jnp.sin(f) + f * f),
    }
    weights = jax.random.normal(jax.random.key(1), shape, jnp.float64)

    @jax.jit
    def all_at(x):
        both = lambda f: (f(x), jax.jacfwd(f)(x), jax.hessian(lambda x: jnp.sum(f(x) * weights))(x))
        return {name: both(f) for name, f in functions.items()}

    found = all_at(zero)
    for name, parts in found.items():
        assert all(bool(jnp.isfinite(part).all()) for part in parts), name
    size = parities * 9 * C
    logistic = lambda g: 1 / (1 + np.exp(-np.asarray(g)))
    degree = np.concatenate([[l] * (2 * l + 1) for l in range(3)])
    expected = {
        "gate": np.where(
            degree[:, None] == 0,
            np.array([0.5, 1.0])[:parities, None, None],  # silu'(0), tanh'(0)
            logistic(gates).reshape(parities, 2, C)[:, np.maximum(degree, 1) - 1],
        ),
        "own": np.full(shape, 0.5),
        "norm": np.full(shape, logistic(0.3)),
        "grid": np.ones(shape),
    }
    expected["norm"][0, 0] = logistic(0.3) * (1 - logistic(0.3))  # the slope of the sigmoid at 0.3: a true scalar
    for name, diagonal in expected.items():
        jacobian = np.asarray(found[name][1]).reshape(size, size)
        np.testing.assert_allclose(jacobian, np.diag(diagonal.ravel()), atol=1e-14, err_msg=name)
    np.testing.assert_allclose(found["norm"][2][:, 1:, :, :, 1:], 0, atol=1e-14)


def test_mixed_batches_leave_neighbours_alone(dtype):
    """A zero row and a row of 1e-20 beside ordinary ones: the others as alone, gradients finite."""
    x, weights = _features(dtype).at[1].set(0).at[2].set(jnp.asarray(1e-20, dtype)), _features(dtype, seed=1)
    loss = lambda unit, x: jnp.sum(_norm(1, unit)(x) * weights)
    both = jax.jit(lambda x: [(_norm(1, unit)(x), jax.grad(loss, argnums=1)(unit, x)) for unit in (False, True)])
    for (y, gradient), (alone, _) in zip(both(x), both(jnp.repeat(x[:1], 4, axis=0)), strict=True):
        np.testing.assert_array_equal(y[0], alone[0])
        assert bool(jnp.isfinite(gradient).all())


@pytest.mark.parametrize("parities", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_gate_equals_e3nn(parities):
    e3nn_jax = pytest.importorskip("e3nn_jax")
    x, gates = np.asarray(_features(jnp.float32, parities)), np.asarray(_gates(jnp.float32, parities))
    flat = lambda x, p, l: np.swapaxes(x[:, p, l * l : (l + 1) ** 2], -1, -2).reshape(4, -1)
    irrep = lambda p, l: f"{C}x{l}{'eo'[(l + p) % 2]}"
    scalars, tensors = [(0, 0), (1, 0)][:parities], [(p, l) for p in range(parities) for l in (1, 2)]
    array = np.concatenate([flat(x, *b) for b in scalars] + [gates] + [flat(x, *b) for b in tensors], axis=-1)
    irreps = [irrep(*b) for b in scalars] + [f"{gates.shape[-1]}x0e"] + [irrep(*b) for b in tensors]
    acts = {"even_act": jax.nn.silu, "odd_act": jnp.tanh, "even_gate_act": jax.nn.sigmoid}
    theirs = jax.jit(lambda a: e3nn_jax.gate(e3nn_jax.IrrepsArray(" + ".join(irreps), a), **acts).array)(array)
    ours = np.asarray(jax.jit(activation.gate)(x, gates))
    ours = np.concatenate([flat(ours, *b) for b in scalars + tensors], axis=-1)
    np.testing.assert_allclose(ours, theirs, rtol=5e-5, atol=1e-6)


def test_gate_written_out_and_its_unit_variance():
    x, gates = _features(jnp.float64, batch=(2, 3)), _gates(jnp.float64, batch=(2, 3))
    y = np.asarray(jax.jit(lambda x, g: activation.gate(x, g, normalize=False))(x, gates))
    for l in (1, 2):
        g = 1 / (1 + np.exp(-np.asarray(gates).reshape(2, 3, 2, C)[:, :, l - 1]))
        rows = slice(l * l, (l + 1) ** 2)
        np.testing.assert_allclose(y[:, :, 0, rows], g[:, :, None] * x[:, :, 0, rows], rtol=1e-14)
    many = _features(jnp.float32, 2, batch=(20_000,))
    scaled = jax.jit(activation.gate)(many, jax.random.normal(jax.random.key(3), (20_000, 4 * C), jnp.float32))
    np.testing.assert_allclose(jnp.mean(scaled**2, axis=(0, 3)), 1, atol=0.05)


def test_norm_activation_written_out():
    x, bias = _features(jnp.float64), jax.random.normal(jax.random.key(2), (1, 3, C), jnp.float64)
    logistic = lambda g: 1 / (1 + np.exp(-g))
    for unit in (False, True):
        y = np.asarray(jax.jit(partial(activation.norm_activation, unit=unit))(x, bias))
        for l in (1, 2):
            block = np.asarray(x)[:, 0, l * l : (l + 1) ** 2]
            length = np.sqrt(np.mean(block**2, axis=1, keepdims=True))
            factor = logistic(length + np.asarray(bias)[0, l]) / (length if unit else 1)
            np.testing.assert_allclose(y[:, 0, l * l : (l + 1) ** 2], block * factor, rtol=1e-13)
        np.testing.assert_allclose(y[:, 0, 0], logistic(np.asarray(x)[:, 0, 0] + np.asarray(bias)[0, 0]), rtol=1e-13)


def test_grid_activation_converges_and_leaves_the_stated_error():
    """silu is no polynomial: at L = 2 the error falls from 8 % (grid 2 L) to 0.7 % (4 L), as the docstring says."""
    x = jax.random.normal(jax.random.key(0), (20, 1, 9, 8), jnp.float32)
    for grid_degree, bound in ((4, 0.12), (8, 0.012)):
        layer = jax.jit(activation.GridActivation(grid_degree=grid_degree))
        error = equivariance_error(layer, x, inputs="features", outputs="features", samples=8).error
        assert bound / 10 < error < bound


def test_grid_activation_takes_scalars_apart_and_is_linear_for_the_identity(dtype):
    x, scalars = _features(dtype, 2), _features(dtype)[:, 0, 0]
    same = jax.jit(partial(activation.grid_activation, activation=lambda f: f))(x)
    np.testing.assert_allclose(same, x, atol=32 * float(jnp.finfo(dtype).eps))
    separable, plain = jax.jit(lambda x: (activation.grid_activation(x, scalars), activation.grid_activation(x)))(x)
    np.testing.assert_allclose(separable[:, 0, 0], jax.nn.silu(scalars), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(separable[:, :, 1:], plain[:, :, 1:])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays_half(dtype):
    x = _features(dtype)
    layers = (activation.Gate(), activation.NormActivation(2, C), activation.GridActivation())
    outputs = jax.eval_shape(lambda x: [layer(x) for layer in layers] + [activation.gate(x, _gates(dtype))], x)
    assert all(output.dtype == dtype for output in outputs)


def test_two_leading_axes_and_no_higher_degree():
    x = _features(jnp.float32, batch=(2, 5))
    for layer in (activation.Gate(), activation.NormActivation(2, C), activation.GridActivation()):
        together, alone = jax.jit(lambda x, layer=layer: (layer(x), layer(x[1, 3])))(x)
        np.testing.assert_allclose(together[1, 3], alone, rtol=1e-5, atol=1e-6)
    scalars = x[..., :1, :]
    assert activation.gate(scalars, jnp.zeros((2, 5, 0), jnp.float32)).shape == scalars.shape
    assert nnx.state(activation.NormActivation(0, C)).flat_state()  # its bias
    assert features.of(activation.GridActivation()(scalars)).max_degree == 0


@pytest.mark.parametrize(
    ("function", "arguments", "error", "message"),
    [
        (activation.gate, (jnp.zeros((4, 3, 9, C)),), ValueError, "x: expected features"),
        (activation.gate, (jnp.zeros((4, 1, 8, C)),), ValueError, "x: expected features"),
        (activation.gate, (jnp.zeros((4, 1, 9, C), jnp.int32),), TypeError, "x: expected a floating-point"),
        (activation.gate, (jnp.zeros((4, 1, 9, C)), jnp.zeros((4, 5))), ValueError, r"gates: expected .*\(..., 6\)"),
        (activation.gate, (jnp.zeros((4, 1, 9, C)), jnp.zeros((4, 6), jnp.float32)), TypeError, "one dtype"),
        (activation.gate, (jnp.full((4, 1, 9, C), jnp.nan),), ValueError, "x: expected only finite"),
        (activation.norm_activation, (jnp.zeros((1, 9, C)), jnp.zeros((1, 2, C))), ValueError, "bias: expected shape"),
        (
            activation.grid_activation,
            (jnp.zeros((1, 9, C)), jnp.zeros((C + 1,))),
            ValueError,
            "scalars: expected shape",
        ),
        (activation.NormActivation, (2, C, 3), ValueError, "parities: expected"),
    ],
)
def test_bad_input_is_named(function, arguments, error, message, own_checks):
    with pytest.raises(error, match=message):
        function(*arguments)


def test_a_grid_too_coarse_is_refused():
    with pytest.raises(ValueError, match="grid_degree"):
        activation.grid_activation(_features(jnp.float32), grid_degree=1)
