"""Frame averaging: eigenvectors beside LAPACK's, laws under rotations and reflections, clouds without distinct axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from equivariant import frames
from lie import so3


def cloud(dtype=jnp.float64, shape=(2, 7)):
    x = np.random.default_rng(0).normal(size=(*shape, 3)) * [1.0, 1.7, 2.9] + 3.0
    return jnp.asarray(x, dtype)


def network(x):
    """An ordinary function of the points, with no symmetry at all."""
    weights = np.random.default_rng(1).normal(size=(2, 3, 3))
    return jnp.tanh(x @ jnp.asarray(weights[0], x.dtype) + 0.3) @ jnp.asarray(weights[1], x.dtype)


R = so3.sample((), jnp.float64, key=jax.random.key(0))
SHIFT = jnp.array([0.3, -2.0, 1.0])


@pytest.mark.parametrize(("group", "elements"), [("SO(3)", (R,)), ("O(3)", (R, -R))])
def test_means_over_frames_are_invariant_or_equivariant(group, elements):
    x = cloud()
    averages = jax.jit(
        lambda x: [frames.average(network, x, group=group, output=o) for o in ("scalars", "vectors", "points")]
    )
    scalars, vectors, points = averages(x)
    assert frames.frames(x, group=group).axes.shape == (2, {"SO(3)": 4, "O(3)": 8}[group], 3, 3)
    for element in elements:
        turned = averages(x @ element.T + SHIFT)
        assert_allclose(turned[0], scalars, atol=1e-12)
        assert_allclose(turned[1], vectors @ element.T, atol=1e-12)
        assert_allclose(turned[2], points @ element.T + SHIFT, atol=1e-12)
    assert float(jnp.abs(network(x @ R.T) - network(x)).max()) > 0.1  # which the network alone is not
    mirrored = averages(-x)[0]
    assert (float(jnp.abs(mirrored - scalars).max()) < 1e-12) == (group == "O(3)")
    assert_allclose(averages(x[:, ::-1])[0][:, ::-1], scalars, atol=1e-12)


def test_float32_stays_and_absent_points_do_not_count():
    x = cloud(jnp.float32)
    mask = jnp.arange(7) < 5
    y = frames.average(network, x, mask=jnp.broadcast_to(mask, (2, 7)))
    assert y.dtype == jnp.float32
    assert_allclose(y[:, :5], frames.average(network, x[:, :5]), atol=2e-5)


def test_eigenvectors_are_lapacks_up_to_sign_with_exact_derivatives(dtype):
    random = np.random.default_rng(2)
    A = random.normal(size=(64, 3, 3))
    A = A @ A.swapaxes(-1, -2) * np.logspace(-12, 12, 64)[:, None, None]
    A = np.asarray(jnp.asarray(A, dtype), np.float64)
    values, V = frames.principal_axes(jnp.asarray(A, dtype))
    assert V.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    largest = np.linalg.eigvalsh(A)[:, -1:]
    assert_allclose(np.asarray(values, np.float64) / largest, np.linalg.eigvalsh(A) / largest, atol=6 * eps)
    V = np.asarray(V, np.float64)
    assert_allclose(V.swapaxes(-1, -2) @ V, np.broadcast_to(np.eye(3), V.shape), atol=8 * eps)
    residual = A @ V - V * np.asarray(values, np.float64)[:, None]
    assert_allclose(residual / largest[..., None], 0, atol=8 * eps)


def test_derivatives_are_those_of_differences():
    A = jnp.asarray(np.diag([1.0, 2.0, 4.0]) + 0.3 * np.ones((3, 3)))
    E = jnp.asarray(np.random.default_rng(3).normal(size=(3, 3)))
    E = E + E.T
    along = lambda t: frames.principal_axes(A + t * E)
    slope = jax.jacfwd(along)
    step = 1e-4
    for order, f in ((1, along), (2, slope)):
        exact = jax.jacfwd(f)(0.0)
        moved = jax.tree.map(lambda a, b: (a - b) / (2 * step), f(step), f(-step))
        for found, wanted in zip(exact, moved, strict=True):
            assert_allclose(found, wanted, atol=1e-5 * 10**order)


def test_clouds_without_distinct_axes_stay_finite_and_say_so():
    clouds = [
        np.zeros((1, 3)),
        np.ones((4, 3)),
        np.outer([-1.0, 0.0, 3.0], [0.6, 0.0, 0.8]),
        np.array([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]),
        np.array([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]),
    ]
    x = jnp.asarray(np.stack([np.pad(cloud, ((0, 4 - len(cloud)), (0, 0))) for cloud in clouds]))
    mask = jnp.arange(4) < jnp.array([len(cloud) for cloud in clouds])[:, None]

    @jax.jit
    def loss(x):
        y = frames.average(network, x, mask=mask)
        return jnp.sum(jnp.where(mask[..., None], y, 0) ** 2, axis=(1, 2)), frames.frames(x, mask=mask)

    values, found = loss(x)
    assert (np.asarray(found.gap) < 1e-14).all()
    assert_allclose(found.axes.swapaxes(-1, -2) @ found.axes, np.broadcast_to(np.eye(3), (5, 4, 3, 3)), atol=1e-14)
    assert np.isfinite(values).all()
    assert np.isfinite(jax.jit(jax.grad(lambda x: jnp.sum(loss(x)[0])))(x)).all()
    # Points on a line share the symmetry of their axes: nothing is lost.
    assert_allclose(loss(x @ R.T)[0][:3], values[:3], rtol=1e-6)


def test_gap_is_large_where_axes_are_distinct():
    assert (np.asarray(frames.frames(cloud()).gap) > 0.05).all()


def test_bad_arguments_are_named(own_checks):
    x = cloud()
    with pytest.raises(ValueError, match="group: expected one of"):
        frames.frames(x, group="SU(2)")
    with pytest.raises(ValueError, match=r"x: expected shape \(..., any, 3\)"):
        frames.frames(x[..., :2])
    with pytest.raises(ValueError, match="output: expected 'scalars'"):
        frames.average(network, x, output="tensors")
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 7\)"):
        frames.frames(x, mask=jnp.ones(7, bool))
    with pytest.raises(ValueError, match="function: expected a result of shape"):
        frames.average(lambda x: x[..., :2], x, output="vectors")
