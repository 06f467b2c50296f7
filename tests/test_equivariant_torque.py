"""Infinitesimal turns of features against dense generators, and turns into the frame of an edge against rotations."""

import jax
import jax.numpy as jnp
import numpy as np
from precisions import float64_is_slow

from equivariant import features, torque, turns
from lie import wigner


@float64_is_slow
def test_torque_is_the_form_of_the_generators_and_so_are_its_derivatives(dtype):
    """<y, G_k x> for every k, value, gradient and the gradient of a gradient, rows of y being cut off."""
    G = wigner.generators(2)
    x, y, weight = (_normal(seed, shape, dtype) for seed, shape in enumerate([(3, 2, 5, 10), (3, 2, 4, 10), (3, 3)]))
    dense = lambda x, y: jnp.einsum("epic,kij,epjc->ek", y, G[:, :4].astype(dtype), x)
    ours = lambda x, y: torque.over_channels(torque.torque(torque.generators(G), x, y))

    def twice(form):
        def slope(x, y):
            return sum(jnp.sum(jnp.sin(g)) for g in jax.grad(lambda x, y: jnp.sum(weight * form(x, y)), (0, 1))(x, y))

        return jax.jit(lambda x, y: (form(x, y), jax.grad(slope, (0, 1))(x, y)))

    for got, expected in zip(*(jax.tree.leaves(twice(form)(x, y)) for form in (ours, dense)), strict=True):
        np.testing.assert_allclose(got, expected, atol=_rounding(100, dtype, expected), rtol=0)
        assert got.dtype == dtype


@float64_is_slow
def test_a_turn_is_a_rotation_that_takes_the_edge_to_the_axis(dtype):
    """There and back gives the features again; a vector along the edge has its one number at m = 0, row 1."""
    r = jnp.array([[0.3, -0.8, 0.5], [0, 1, 0], [0, -2, 0], [1, 0, 0], [0, 0, -3], [0, 0, 0]], dtype)
    x = _normal(0, (6, 2, 9, 4), dtype)
    there = jax.jit(lambda r, x: turns.into(2, turns.turn(2, r), x))(r, x)
    again = jax.jit(lambda r, y: turns.back(2, 2, turns.turn(2, r), y))(r, there)
    tolerance = 20 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(again, x, atol=_rounding(20, dtype, x), rtol=0)
    np.testing.assert_allclose(jnp.sum(there**2, axis=(1, 2)), jnp.sum(x**2, axis=(1, 2)), rtol=tolerance)
    along = jnp.zeros((6, 1, 4, 1), dtype).at[:, 0, 1:, 0].set(r)
    aligned = turns.into(1, turns.turn(1, r), along)[:, 0, :, 0]
    expected = jnp.zeros((6, 4), dtype).at[:, 1].set(jnp.linalg.norm(r, axis=1))
    np.testing.assert_allclose(aligned, expected, atol=3 * tolerance)


def test_orders_left_out_are_those_beyond_the_largest():
    """Fewer orders are the first rows of all, and what comes back from them is their share."""
    r, x = _normal(1, (5, 3), jnp.float32), _normal(2, (5, 1, 9, 2), jnp.float32)
    turn = turns.turn(2, r)
    few, all_rows = turns.into(1, turn, x), turns.into(2, turn, x)
    kept = len(turns.rows(2, 1))
    np.testing.assert_array_equal(few, all_rows[:, :, :kept])
    share = turns.back(2, 2, turn, all_rows.at[:, :, kept:].set(0))
    np.testing.assert_allclose(turns.back(2, 1, turn, few), share, atol=1e-6)
    assert features.of(share).max_degree == 2


def _rounding(k, dtype, of):
    return k * float(jnp.finfo(dtype).eps * np.abs(of).max())


def _normal(seed, shape, dtype):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)
