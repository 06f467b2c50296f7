"""Pose graphs: the g2o reader, both starting points, certified optima of public graphs, and what is not certified."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.spatial.transform import Rotation

from lie import optimizers, se3, so3
from lie.optimizers import certificate, pose_graph

# Objective at the chordal start and at the optimum. Source: SE-Sync (Rosen et al. 2019) on its own data.
OPTIMA = {"tinyGrid3D": (28.6765, 18.51936642), "smallGrid3D": (1561.385, 1025.398056)}


def eps_of(dtype):
    return float(jnp.finfo(dtype).eps)


@pytest.fixture
def graph_of(data_folder):
    def load(name):
        path = data_folder / "posegraph" / f"{name}.g2o.gz"
        if not path.exists():
            pytest.skip(f"{path.name} is not there")
        return pose_graph.read_g2o(path)

    return load


def ring(count, tau=1.0):
    """A loop whose measurements all say: no motion. Optimum 0; a full turn spread over the loop is a local minimum."""
    i = np.arange(count)
    eye = np.tile(np.eye(3), (count, 1, 1))
    return pose_graph.PoseGraph(
        count, i, (i + 1) % count, eye, np.zeros((count, 3)), np.ones(count), np.full(count, tau)
    )


def noisy(count=10, noise=0.05):
    rng = np.random.default_rng(0)
    R, t = Rotation.random(count, rng=np.random.default_rng(2)).as_matrix(), rng.standard_normal((count, 3))
    i = np.concatenate([np.arange(count - 1), [0, 2, 4]])
    j = np.concatenate([np.arange(1, count), [count - 1, 7, 9]])
    turned = Rotation.from_rotvec(noise * rng.standard_normal((len(i), 3))).as_matrix()
    rotation = np.swapaxes(R[i], -1, -2) @ R[j] @ turned
    translation = np.einsum("eji,ej->ei", R[i], t[j] - t[i]) + noise * rng.standard_normal((len(i), 3))
    return pose_graph.PoseGraph(count, i, j, rotation, translation, np.full(len(i), 3.0), np.full(len(i), 2.0))


def cost(graph, R, t):
    """The objective, spelled out edge by edge."""
    total = 0.0
    for e, (i, j) in enumerate(zip(graph.first, graph.second, strict=True)):
        total += graph.kappa[e] * np.sum((R[j] - R[i] @ graph.rotation[e]) ** 2)
        total += graph.tau[e] * np.sum((t[j] - t[i] - R[i] @ graph.translation[e]) ** 2)
    return total


def test_objective_is_its_formula(dtype):
    graph = noisy()
    poses = se3.sample((graph.nodes,), dtype, key=jax.random.key(0))
    R, t = (np.asarray(leaf, np.float64) for leaf in poses)
    assert pose_graph.objective(graph, poses).dtype == dtype
    assert_allclose(pose_graph.objective(graph, poses), cost(graph, R, t), rtol=64 * eps_of(dtype))
    B, A = pose_graph.difference_operators(graph)
    Y = np.swapaxes(R, -1, -2).reshape(-1, 3)
    quadratic = np.sum((B @ Y) ** 2) + np.sum((A @ np.concatenate([t, Y])) ** 2)
    assert_allclose(quadratic, cost(graph, R, t), rtol=1e-12)


def test_starting_points_are_exact_without_noise():
    graph = noisy(noise=0.0)
    for start in (pose_graph.odometry(graph), pose_graph.chordal(graph)):
        assert_allclose(start.rotation[0], np.eye(3), atol=1e-12)
        assert float(pose_graph.objective(graph, start)) < 1e-20
    assert pose_graph.chordal(graph, jnp.float32).rotation.dtype == jnp.float32


def test_best_translations_leave_no_gradient():
    graph = noisy()
    R = Rotation.random(graph.nodes, rng=np.random.default_rng(3)).as_matrix()
    t = pose_graph.best_translations(graph, R)
    poses = se3.Pose(jnp.asarray(R), jnp.asarray(t))
    gradient = optimizers.value_and_grad(lambda T: pose_graph.objective(graph, T), se3)(poses)[1]
    assert_allclose(gradient[:, :3], 0, atol=1e-11)


@pytest.mark.parametrize("method", [optimizers.levenberg_marquardt, optimizers.trust_region])
def test_a_small_optimum_is_certified_and_rival_starts_agree(method):
    graph = noisy()
    starts = [pose_graph.chordal(graph), pose_graph.odometry(graph)]
    found = [method(pose_graph.factors(graph), start, se3, tolerance=1e-20) for start in starts]
    assert all(bool(one.converged) for one in found)
    proof = certificate.certify(graph, found[0].x)
    assert proof.certified
    assert abs(proof.smallest_eigenvalue) < 1e-10
    assert_allclose([proof.value, proof.lower_bound, found[1].value], found[0].value, rtol=1e-10)


def test_smallest_eigenvalue_is_that_of_the_dense_matrix():
    """S = Q − Λ built densely, at a point that is no optimum, so that the eigenvalue is not zero."""
    graph = noisy()
    R = Rotation.random(graph.nodes, rng=np.random.default_rng(4)).as_matrix()
    B, A = (operator.toarray() for operator in pose_graph.difference_operators(graph))
    n, Y = graph.nodes, np.swapaxes(R, -1, -2).reshape(-1, 3)
    M = A.T @ A
    Q = B.T @ B + M[n:, n:] - M[n:, :n] @ np.linalg.pinv(M[:n, :n]) @ M[:n, n:]
    blocks = (Q @ Y).reshape(n, 3, 3) @ R
    S = Q.copy()
    for k, block in enumerate(blocks):
        S[3 * k : 3 * k + 3, 3 * k : 3 * k + 3] -= (block + block.T) / 2
    proof = certificate.certify(graph, se3.Pose(jnp.asarray(R), jnp.zeros((n, 3), jnp.float64)))
    assert_allclose(proof.smallest_eigenvalue, np.linalg.eigvalsh(S)[0], rtol=1e-9)
    assert not proof.certified
    optimum = optimizers.levenberg_marquardt(pose_graph.factors(graph), pose_graph.chordal(graph), se3).value
    assert proof.lower_bound < float(optimum) < proof.value


@pytest.mark.slow
def test_a_local_minimum_is_rejected():
    """A turn of 2π spread over a loop of 12 cannot be undone continuously (SO(3) is not simply connected)."""
    graph = ring(12)
    turns = 2 * np.pi * np.arange(12) / 12
    start = se3.Pose(
        jnp.asarray(Rotation.from_rotvec(turns[:, None] * [0, 0, 1]).as_matrix()), jnp.zeros((12, 3), jnp.float64)
    )
    start = se3.retract(start, 0.05 * jax.random.normal(jax.random.key(0), (12, 6), jnp.float64))
    stuck = optimizers.levenberg_marquardt(pose_graph.factors(graph), start, se3, tolerance=1e-20)
    assert bool(stuck.converged)
    assert float(stuck.value) > 1
    hessian_is_positive = jax.hessian(lambda xi: pose_graph.objective(graph, se3.retract(stuck.x, xi.reshape(12, 6))))(
        jnp.zeros(72, jnp.float64)
    )
    assert np.linalg.eigvalsh(hessian_is_positive)[0] > -1e-9  # a minimum indeed
    proof = certificate.certify(graph, stuck.x)
    assert not proof.certified
    assert proof.smallest_eigenvalue < -0.1
    assert proof.lower_bound <= 0
    good = optimizers.levenberg_marquardt(pose_graph.factors(graph), pose_graph.chordal(graph), se3)
    assert certificate.certify(graph, good.x).certified


@pytest.mark.parametrize("name", OPTIMA)
def test_grids_reach_their_certified_optimum(name, graph_of):
    graph, (chordal, optimum) = graph_of(name), OPTIMA[name]
    start = pose_graph.chordal(graph)
    assert_allclose(pose_graph.objective(graph, start), chordal, rtol=2e-6)  # as many digits as are published
    for poses in (start, pose_graph.odometry(graph)):
        found = optimizers.levenberg_marquardt(pose_graph.factors(graph), poses, se3)
        assert bool(found.converged)
        assert_allclose(found.value, optimum, rtol=1e-9)
        assert certificate.certify(graph, found.x).certified


@pytest.mark.slow
@pytest.mark.parametrize("start", [pose_graph.chordal, pose_graph.odometry], ids=["chordal", "odometry"])
def test_sphere2500_reaches_its_certified_optimum(start, graph_of):
    graph = graph_of("sphere2500")
    poses = start(graph)
    if start is pose_graph.chordal:
        assert_allclose(pose_graph.objective(graph, poses), 1971.175, rtol=1e-6)
    found = optimizers.levenberg_marquardt(pose_graph.factors(graph), poses, se3)
    assert bool(found.converged)
    assert_allclose(found.value, 1687.005814, rtol=1e-9)
    proof = certificate.certify(graph, found.x)
    assert proof.certified
    assert_allclose(proof.lower_bound, proof.value, rtol=1e-9)


def test_reader_understands_the_format(tmp_path):
    information = np.diag([4.0, 4, 4, 10, 10, 10])[np.triu_indices(6)]
    q = Rotation.from_euler("z", 90, degrees=True).as_quat()  # xyzw
    numbers = [7, 3, 1.0, 2.0, 3.0, *(2 * q), *information]  # identifiers with gaps; a quaternion of length 2
    text = "VERTEX_SE3:QUAT 3 0 0 0 0 0 0 1\nEDGE_SE3:QUAT " + " ".join(map(str, numbers)) + "\n"
    plain, packed = tmp_path / "graph.g2o", tmp_path / "graph.g2o.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))
    for path in (plain, packed):
        graph = pose_graph.read_g2o(path)
        assert (graph.nodes, graph.first.tolist(), graph.second.tolist()) == (2, [1], [0])
        assert_allclose(graph.rotation[0], [[0, -1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-15)
        assert_allclose(graph.translation[0], [1, 2, 3])
        assert_allclose([graph.tau[0], graph.kappa[0]], [4, 5])


def test_bad_graphs_are_named(tmp_path):
    path = tmp_path / "graph.g2o"
    path.write_text("EDGE_SE2 0 1 0 0 0\n")
    with pytest.raises(ValueError, match=r"EDGE_SE3:QUAT lines of 30 numbers"):
        pose_graph.read_g2o(path)
    graph = noisy()
    apart = graph._replace(first=graph.first % 2, second=graph.second % 2)
    with pytest.raises(ValueError, match="one connected graph"):
        pose_graph.chordal(apart)
    with pytest.raises(ValueError, match="none leaves node 11"):
        pose_graph.odometry(ring(13)._replace(second=np.roll(np.arange(13), -1) * (np.arange(13) != 11)))
    with pytest.raises(ValueError, match="poses: expected rotations with shape"):
        certificate.certify(graph, se3.identity((3,)))
    with pytest.raises(ValueError, match="finite"):
        certificate.certify(graph, se3.Pose(jnp.full((graph.nodes, 3, 3), jnp.nan), jnp.zeros((graph.nodes, 3))))
    assert so3.dimension == 3
