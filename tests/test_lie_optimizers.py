"""optimizers: tangent gradients, optax on groups, and the symmetry that each optimizer keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import export
from numpy.testing import assert_allclose

from lie import euclidean, optimizers, se3, so3, su2
from lie.group import product

POSED = {"pose": se3, "scale": None}


def eps_of(dtype):
    return float(jnp.finfo(dtype).eps)


@pytest.fixture(autouse=True)
def _optax_promotes():
    """optax's own Adam multiplies a Python float by an int32 count: it does not run under strict promotion."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def posed(dtype, shape=(2, 5)):
    return {"pose": se3.sample(shape, dtype, key=jax.random.key(0)), "scale": {"a": jnp.ones((3,), dtype)}}


def posed_loss(parameters):
    (R, t), scale = parameters["pose"], parameters["scale"]["a"]
    points = jnp.asarray([[1.0, 2.0, -1.0], [0.5, -0.3, 0.7]], scale.dtype)
    moved = jnp.sum(R[..., None, :, :] * points[:, None, :], axis=-1) + t[..., None, :]
    return jnp.mean((moved * scale - 1) ** 2)


def wahba(R, a, b):
    """Σ |R a − b|² over pairs of vectors: the simplest loss on SO(3) without symmetry."""
    return jnp.sum((jnp.sum(R[..., None, :, :] * a[:, None, :], axis=-1) - b) ** 2)


def pairs(dtype, count=6):
    key_a, key_b, key_R = jax.random.split(jax.random.key(1), 3)
    a = jax.random.normal(key_a, (count, 3), dtype)
    R = so3.sample((), dtype, key=key_R)
    return a, jnp.sum(R * a[:, None, :], axis=-1) + 0.1 * jax.random.normal(key_b, (count, 3), dtype)


def test_tangent_gradient_is_the_slope_along_retract():
    parameters = posed(jnp.float64)
    value, gradient = jax.jit(optimizers.value_and_grad(posed_loss, POSED))(parameters)
    assert gradient["pose"].shape == (2, 5, 6)
    assert gradient["scale"]["a"].shape == (3,)
    assert_allclose(value, posed_loss(parameters), rtol=1e-15)
    step, direction = 1e-5, jax.tree.map(lambda g: jax.random.normal(jax.random.key(g.ndim), g.shape), gradient)
    ahead, behind = (
        posed_loss(optimizers.apply_updates(parameters, jax.tree.map(lambda d, s=s: s * step * d, direction), POSED))
        for s in (1, -1)
    )
    slope = sum(jnp.sum(g * d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    assert_allclose((ahead - behind) / (2 * step), slope, rtol=1e-8)  # central differences: step² and eps/step


def test_tangent_gradient_is_the_projected_matrix_gradient(dtype):
    """∂/∂ω f(R exp ω̂) = vee(RᵀG − GᵀR) with G = ∂f/∂R, for SO(3); double cover: half of it turned by the same frame."""
    a, b = pairs(dtype)
    R = so3.sample((4,), dtype, key=jax.random.key(2))
    _, gradient = optimizers.value_and_grad(lambda R: wahba(R, a, b), so3)(R)
    G = jax.grad(lambda R: wahba(R, a, b))(R)
    pulled = np.swapaxes(np.asarray(R, np.float64), -1, -2) @ np.asarray(G, np.float64)
    expected = np.stack(
        [pulled[:, 2, 1] - pulled[:, 1, 2], pulled[:, 0, 2] - pulled[:, 2, 0], pulled[:, 1, 0] - pulled[:, 0, 1]], -1
    )
    assert gradient.dtype == dtype
    assert_allclose(gradient, expected, rtol=0, atol=64 * eps_of(dtype) * np.abs(expected).max())


def test_aux_comes_through():
    (value, aux), gradient = optimizers.value_and_grad(lambda x, s: (s * jnp.sum(x), "seen"), None, has_aux=True)(
        jnp.ones(3), 2.0
    )
    assert (float(value), aux) == (6.0, "seen")
    assert_allclose(gradient, 2.0)


@pytest.mark.parametrize(
    "transformation",
    [optax.sgd(0.05), optax.sgd(0.02, momentum=0.9), optax.adam(0.01), optax.chain(optax.clip(0.1), optax.adamw(0.01))],
    ids=["sgd", "momentum", "adam", "chain"],
)
def test_any_transformation_descends_and_keeps_dtype_and_group(transformation, dtype):
    optimizer = optimizers.riemannian(transformation, POSED)
    start = posed(dtype)

    def step(carry, _):
        parameters, state = carry
        value, gradient = optimizers.value_and_grad(posed_loss, POSED)(parameters)
        updates, state = optimizer.update(gradient, state, parameters)
        return (optimizers.apply_updates(parameters, updates, POSED), state), value

    (end, _), values = jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), length=100))(start)
    assert values[-1] < 0.5 * values[0]
    assert {leaf.dtype for leaf in jax.tree.leaves(end)} == {jnp.dtype(dtype)}
    R = np.asarray(end["pose"].rotation, np.float64)
    assert_allclose(np.swapaxes(R, -1, -2) @ R, np.broadcast_to(np.eye(3), R.shape), rtol=0, atol=64 * eps_of(dtype))


def test_plain_gradient_steps_decrease_every_time():
    a, b = pairs(jnp.float64)
    optimizer = optimizers.riemannian(optax.sgd(0.01), so3)
    R, values = so3.sample((3,), jnp.float64, key=jax.random.key(3)), []
    state = optimizer.init(R)
    gradient_of = jax.jit(optimizers.value_and_grad(lambda R: wahba(R, a, b), so3))
    for _ in range(20):
        value, gradient = gradient_of(R)
        updates, state = optimizer.update(gradient, state, R)
        R = optimizers.apply_updates(R, updates, so3)
        values.append(float(value))
    assert (np.diff(values) < 0).all()


def path(optimizer, start, loss, group, steps=25):
    def step(carry, _):
        x, state = carry
        _, gradient = optimizers.value_and_grad(loss, group)(x)
        updates, state = optimizer.update(gradient, state, x)
        x = optimizers.apply_updates(x, updates, group)
        return (x, state), x

    return jax.jit(lambda x: jax.lax.scan(step, (x, optimizer.init(x)), length=steps)[1])(start)


ADAMS = {
    "vector": lambda group: optimizers.vector_norm_adam(0.05, group),
    "component": lambda group: optimizers.riemannian(optax.adam(0.05), group),
}


@pytest.mark.parametrize("adam", ["vector", "component"])
@pytest.mark.parametrize("group", [so3, se3, su2], ids=["so3", "se3", "su2"])
def test_every_optimizer_commutes_with_left_multiplication(adam, group):
    """The loss moved by h, x -> f(h⁻¹x), makes the path h x_k: body-frame gradients do not see h."""
    x, h, target = (group.sample((3,), jnp.float64, key=jax.random.key(k)) for k in (4, 5, 6))

    def loss(x):
        return jnp.sum(
            jnp.tanh(group.log(group.compose(group.inverse(target), x))) ** 2
        )  # tanh: no symmetry of its own

    optimizer = ADAMS[adam](group)
    plain = path(optimizer, x, loss, group)
    moved = path(optimizer, group.compose(h, x), lambda x: loss(group.compose(group.inverse(h), x)), group)
    for left, right in zip(
        jax.tree.leaves(jax.vmap(lambda x: group.compose(h, x))(plain)), jax.tree.leaves(moved), strict=True
    ):
        assert_allclose(left, right, rtol=0, atol=1e-12)  # 25 steps, each multiplies rounding by about 1.1


def test_vector_norm_adam_commutes_with_a_change_of_the_body_frame_and_adam_does_not():
    a, b = pairs(jnp.float64)
    R, h = (so3.sample((3,), jnp.float64, key=jax.random.key(k)) for k in (7, 8))

    def distance_of_paths(optimizer):
        plain = path(optimizer, R, lambda R: wahba(R, a, b), so3)
        turned = path(optimizer, so3.compose(R, h), lambda R: wahba(so3.compose(R, so3.inverse(h)), a, b), so3)
        return np.abs(so3.compose(plain, h) - turned).max()

    assert distance_of_paths(ADAMS["vector"](so3)) < 1e-12
    assert distance_of_paths(ADAMS["component"](so3)) > 1e-3


def test_vector_norm_adam_is_adam_on_flat_leaves_and_survives_zero_gradients(dtype):
    start = {"w": jnp.asarray([1.0, -2.0, 0.0], dtype)}
    ours, theirs = optimizers.vector_norm_adam(0.1, None), optax.adam(0.1)
    x, y = (
        start,
        jax.tree.map(lambda leaf: leaf.astype(jnp.float64), start),
    )  # theirs in float64: its 1 - 0.999^n cancels
    state, other = ours.init(x), theirs.init(y)
    for _ in range(5):
        updates, state = ours.update(x, state, x)
        x = optimizers.apply_updates(x, updates, None)
        updates, other = theirs.update(y, other, y)
        y = optax.apply_updates(y, updates)
    assert_allclose(jnp.stack(jax.tree.leaves(x)), jnp.stack(jax.tree.leaves(y)), rtol=16 * eps_of(dtype))
    exact = optimizers.vector_norm_adam(0.1, so3, epsilon=0.0)
    R = so3.identity((2,), dtype)
    updates, _ = exact.update(jnp.zeros((2, 3), dtype), exact.init(R), R)
    assert_allclose(np.asarray(updates), 0)


def test_weight_decay_contracts_along_the_geodesic_to_the_identity(dtype):
    group = product(so3, euclidean)
    x = (so3.exp(jnp.asarray([0.3, -1.0, 0.4], dtype)), jnp.asarray([1.0, 2.0], dtype))
    optimizer = optimizers.riemannian(optax.chain(optax.add_decayed_weights(0.5), optax.sgd(0.1)), group)
    gradient = jnp.zeros(5, dtype)
    updates, _ = optimizer.update(gradient, optimizer.init(x), x)
    moved = optimizers.apply_updates(x, updates, group)
    assert_allclose(group.log(moved), 0.95 * group.log(x), rtol=0, atol=16 * eps_of(dtype))


def test_a_group_covers_every_element_below_it():
    parameters = {"list": [so3.identity((2,)), so3.identity()], "pair": (so3.identity(), jnp.zeros(2, jnp.float32))}
    groups = {"list": so3, "pair": product(so3, euclidean.Space(2))}
    _, gradient = optimizers.value_and_grad(lambda p: jnp.sum(p["list"][0]) + jnp.sum(p["pair"][1]), groups)(parameters)
    assert jax.tree.map(jnp.shape, gradient) == {"list": [(2, 3), (3,)], "pair": (5,)}


def test_project_brings_back_what_rounding_moved():
    drifted = {"R": so3.identity((4,)) * 1.001, "w": jnp.ones(2)}
    back = optimizers.project(drifted, {"R": so3, "w": None})
    assert_allclose(back["R"], so3.identity((4,)), rtol=0, atol=1e-6)
    assert_allclose(back["w"], 1.0)


def test_one_step_exports_to_every_platform():
    optimizer = optimizers.vector_norm_adam(0.1, POSED)

    def step(parameters, state):
        _, gradient = optimizers.value_and_grad(posed_loss, POSED)(parameters)
        updates, state = optimizer.update(gradient, state, parameters)
        return optimizers.apply_updates(parameters, updates, POSED), state

    parameters = posed(jnp.float32, (2,))
    exported = export.export(jax.jit(step), platforms=["cpu", "cuda", "tpu"])(parameters, optimizer.init(parameters))
    assert exported.platforms == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize(
    ("groups", "parameters", "words"),
    [
        ({"pose": se3}, {"poses": jnp.zeros(3)}, "prefix"),
        (se3, {"R": jnp.zeros((3, 3))}, "T"),
        (so3, jnp.zeros((3, 4)), "'R'(.|\n)*3 3"),
    ],
    ids=["names", "element", "shape"],
)
def test_mismatched_groups_are_named(groups, parameters, words):
    with pytest.raises((ValueError, TypeError), match=words):
        optimizers.value_and_grad(lambda p: 0.0, groups)(parameters)


def test_integer_parameters_are_refused():
    with pytest.raises(TypeError, match="i32"):
        optimizers.apply_updates(jnp.eye(3, dtype=jnp.int32), jnp.zeros(3), so3)
