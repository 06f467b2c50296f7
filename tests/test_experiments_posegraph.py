"""The pose-graph experiment: drawn graphs, marginal covariances, refused local minima, false loop closures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from experiments import rosen2019_posegraph as posegraph
from experiments.engine import exits
from experiments.simulators import loop_closures
from lie import se3, so3
from lie.optimizers import certificate, pose_graph


def chain(count):
    """Steps of one metre along x without turns: no loop, so the posterior is the odometry's own propagation."""
    i = np.arange(count - 1)
    ahead = np.tile([1.0, 0, 0], (count - 1, 1))
    eye = np.tile(np.eye(3), (count - 1, 1, 1))
    graph = pose_graph.PoseGraph(count, i, i + 1, eye, ahead, np.full(count - 1, 8.0), np.full(count - 1, 25.0))
    return graph, pose_graph.odometry(graph)


def test_marginals_of_a_chain_are_propagated_odometry():
    """Pose k is a product of k steps with independent noise: rotation k/(2 κ), forward k/τ, sideways lever arms too."""
    graph, poses = chain(5)
    covariances = loop_closures.marginals(graph, poses, np.array([1, 4]))
    for k, covariance in zip((1, 4), covariances, strict=True):
        sideways = k / 25 + sum((k - j) ** 2 for j in range(1, k + 1)) / 16
        assert_allclose(np.diag(covariance), [k / 25, sideways, sideways, *[k / 16] * 3], rtol=1e-10)
        assert_allclose(covariance, covariance.T, atol=1e-12)


def test_a_turn_around_the_loop_is_refused_and_its_optimum_proved():
    loop, poses = loop_closures.ring(12)
    assert float(pose_graph.objective(loop, poses)) < 1e-24
    assert certificate.certify(loop, poses).certified
    turn = 2 * np.pi * np.arange(12)[:, None] / 12 * [0.0, 0, 1]
    R = so3.compose(poses.rotation, so3.exp(jnp.asarray(turn)))
    wound = se3.Pose(R, jnp.asarray(pose_graph.best_translations(loop, np.asarray(R))))
    end = posegraph.solve(loop, wound)
    assert bool(end.converged)
    assert float(end.value) > 0.1
    proof = certificate.certify(loop, end.x)
    assert not proof.certified
    assert proof.smallest_eigenvalue < -1e-3


def test_noise_free_measurements_are_those_of_the_poses():
    graph, poses = chain(6)
    exact = graph._replace(kappa=np.full(5, 1e30), tau=np.full(5, 1e30))
    measured = loop_closures.measured(exact, poses, key=jax.random.key(0))
    assert_allclose(measured.rotation, graph.rotation, atol=1e-12)
    assert_allclose(measured.translation, graph.translation, atol=1e-12)


def test_outliers_join_poses_that_are_not_neighbours():
    loop, _ = loop_closures.ring(30)
    spoiled = loop_closures.with_outliers(loop, 200, key=jax.random.key(1))
    apart = np.abs(spoiled.second[30:] - spoiled.first[30:])
    assert len(spoiled.first) == 230
    assert np.all(apart >= 2)
    assert np.all(spoiled.second < 30)
    assert_allclose(np.linalg.det(spoiled.rotation), 1, atol=1e-12)


def test_missing_graphs_are_named(tmp_path):
    with pytest.raises(exits.Refused, match="no data folder is given"):
        posegraph.data(posegraph.Config(), None)
    with pytest.raises(exits.Refused, match=r"nowhere\.g2o\.gz"):
        posegraph.data(posegraph.Config(graphs=("nowhere",)), tmp_path)


@pytest.mark.slow
def test_smoke_preset_reaches_its_gates(data_folder):
    config = posegraph.PRESETS["smoke"]
    data = posegraph.data(config, data_folder)
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a Python float to an integer power
        state = posegraph.init(config, jax.random.key(3), data)
    state, found = posegraph.advance(config, state, data)
    assert posegraph.done(config, state)
    metrics = {name: np.asarray(value)[None] for name, value in found.items()}
    rows = posegraph.result(config, metrics, state, data).rows
    for row in rows:
        if "loop" not in row.name:  # six starts need not find a local minimum
            assert row.low <= row.value <= row.high, row
    posegraph.figure({name: value[None] for name, value in metrics.items()})
