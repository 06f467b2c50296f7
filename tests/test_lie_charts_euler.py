"""Euler angles against SciPy in all 24 sequences: values, ranges, gimbal lock and the neighbourhood of it."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.spatial.transform import Rotation

from lie import charts, so3

SEQUENCES = [a + b + c for a, b, c in itertools.product("xyz", repeat=3) if a != b != c]
SEQUENCES += [sequence.upper() for sequence in SEQUENCES]


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def locked(sequence):
    """The two second angles at which the first and third axes coincide."""
    return (0.0, np.pi) if sequence[0] == sequence[2] else (-np.pi / 2, np.pi / 2)


def all_sequences(function):
    """One compilation for all 24 sequences: {sequence: function(., sequence)}."""
    return jax.jit(lambda x: {sequence: function(x[sequence], sequence) for sequence in SEQUENCES})


def euler_angles(count, dtype):
    """Regular angles for each sequence: the second away from lock by at least 1e-2."""
    generator, found = np.random.default_rng(0), {}
    for sequence in SEQUENCES:
        low, high = locked(sequence)
        first, third = generator.uniform(-np.pi, np.pi, (2, count))
        second = generator.uniform(low + 1e-2, high - 1e-2, count)
        found[sequence] = jnp.asarray(np.stack([first, second, third], -1), dtype)
    return found


def test_euler_angles_equal_scipys(dtype):
    angles = euler_angles(20, dtype)
    R = all_sequences(charts.matrix_from_euler)(angles)
    back = all_sequences(charts.euler_from_matrix)(R)
    for sequence in SEQUENCES:
        wide = np.asarray(angles[sequence], float)
        truth = Rotation.from_euler(sequence, wide).as_matrix()
        error = np.linalg.norm(np.asarray(R[sequence], float) - truth, axis=(1, 2))
        assert error.max() <= (6.5 + 4 * (dtype == jnp.float64)) * eps(dtype), sequence  # SciPy rounds to float64 too
        turned = (np.asarray(back[sequence], float) - wide + np.pi) % (2 * np.pi) - np.pi
        lock_distance = np.min(np.abs(wide[:, 1:2] - np.array(locked(sequence))), axis=1)
        error = np.linalg.norm(turned, axis=1) * np.sin(lock_distance)
        assert error.max() <= 8 * eps(dtype) * np.pi, sequence


def test_euler_ranges_are_scipys():
    R = Rotation.random(200, rng=np.random.default_rng(0)).as_matrix()
    found = all_sequences(charts.euler_from_matrix)(dict.fromkeys(SEQUENCES, jnp.asarray(R)))
    for sequence in SEQUENCES:
        angles = np.asarray(found[sequence])
        low, high = locked(sequence)
        assert (np.abs(angles[:, ::2]) <= np.pi).all()
        assert (low <= angles[:, 1]).all()
        assert (angles[:, 1] <= high).all()
        assert np.abs(angles - Rotation.from_matrix(R).as_euler(sequence)).max() <= 1e-12


def test_rotations_come_back_at_and_near_gimbal_lock(dtype):
    """From 1 rad away down to lock itself, at both locks, the rotation is right to rounding, whatever the angles do."""
    away = np.array([0, *10.0 ** -np.arange(0, 18)])
    angles = {}
    for sequence in SEQUENCES:
        low, high = locked(sequence)
        second = np.concatenate([low + away, high - away])
        angles[sequence] = jnp.asarray(np.stack([0.7 + 0 * second, second, -2.1 + 0 * second], -1), dtype)
    R = all_sequences(charts.matrix_from_euler)(angles)
    written = all_sequences(charts.euler_from_matrix)(R)
    back = all_sequences(charts.matrix_from_euler)(written)
    for sequence in SEQUENCES:
        assert np.isfinite(np.asarray(written[sequence])).all()
        error = np.linalg.norm(np.asarray(back[sequence] - R[sequence], float), axis=(1, 2))
        assert error.max() <= 16 * eps(dtype), (sequence, error.max() / eps(dtype))


def test_euler_derivatives_are_exact_and_finite_at_lock(dtype):
    """d matrix_from_euler(euler_from_matrix(R exp u)) = R û in regular points; at lock all derivatives are finite."""
    for sequence in ["ZXZ"] if dtype == jnp.float32 else ["xyz"]:  # compiling takes all the time
        low, high = locked(sequence)
        seconds = [(low + high) / 2 + 0.3, low, high, low + 1e-7, high - 1e-3]
        angles = jnp.asarray([[0.7, second, -2.1] for second in seconds] + [[0, low, 0], [0, high, 0]], dtype)
        R = charts.matrix_from_euler(angles, sequence)
        u = jnp.zeros((len(R), 3), dtype)

        def written(u, R, sequence=sequence):
            return charts.euler_from_matrix(so3.retract(R, u), sequence)

        first = np.asarray(jax.jit(jax.vmap(jax.jacrev(written)))(u, R))
        second = np.asarray(jax.jit(jax.vmap(jax.jacfwd(jax.jacrev(written))))(u, R))
        assert np.isfinite(first).all()
        assert np.isfinite(second).all()
        slope = jax.jacfwd(lambda x: charts.matrix_from_euler(x, sequence))(angles[0])  # noqa: B023, used at once
        product = np.einsum("ija,ab->ijb", np.asarray(slope, float), first[0].astype(float))
        truth = np.einsum("ik,bkj->ijb", np.asarray(R[0], float), np.asarray(so3.hat(jnp.eye(3, dtype=dtype)), float))
        assert np.linalg.norm(product - truth) <= 8 * eps(dtype) * np.linalg.norm(truth)


def test_gimbal_lock_is_shared_evenly():
    for sequence in SEQUENCES:
        for second in locked(sequence):
            found = charts.euler_from_matrix(
                charts.matrix_from_euler(jnp.array([0.3, second, 0.5]), sequence), sequence
            )
            assert abs(abs(found[0]) - abs(found[2])) <= 4 * eps(jnp.float64), sequence


def test_short_sequences_are_single_turns():
    assert_array_equal(
        charts.matrix_from_euler(jnp.array([np.pi / 2]), "z").round(15), [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    )
    angles = jnp.array([0.3, -1.1])
    for sequence in ("zy", "YX"):
        truth = Rotation.from_euler(sequence, np.asarray(angles)).as_matrix()
        assert np.abs(charts.matrix_from_euler(angles, sequence) - truth).max() <= 1e-15


@pytest.mark.parametrize("sequence", ["xx", "xyy", "xYz", "abc", "", "xyzx", "w", None])
def test_bad_sequences_are_named(sequence, own_checks):
    with pytest.raises(ValueError, match="sequence: expected one to three letters"):
        charts.matrix_from_euler(jnp.zeros(3), sequence)
    with pytest.raises(ValueError, match="sequence: expected three letters"):
        charts.euler_from_matrix(jnp.eye(3), sequence)
