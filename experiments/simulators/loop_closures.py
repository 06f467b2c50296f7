"""Pose graphs drawn, not read: false loop closures, a loop with local minima, estimates against their covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax import Array

from lie import optimizers, se3, so3
from lie.optimizers import factor_graph, normal_equations, pose_graph


def measured(graph: pose_graph.PoseGraph, poses: se3.Pose, *, key: Array) -> se3.Pose:
    """What the graph's edges would measure at `poses`, with the noise of its weights.

    The noise is the model's to first order: rotation vectors of variance 1/(2 κ), translations of variance 1/τ.
    """
    first, second = (jax.tree.map(lambda a, n=n: a[n], poses) for n in (graph.first, graph.second))
    exact = se3.compose(se3.inverse(first), second)
    noise_R, noise_t = jax.random.normal(key, (2, len(graph.first), 3), exact.translation.dtype)
    R = so3.retract(exact.rotation, noise_R / np.sqrt(2 * graph.kappa)[:, None])
    return se3.Pose(R, exact.translation + noise_t / np.sqrt(graph.tau)[:, None])


def with_outliers(graph: pose_graph.PoseGraph, count: int, *, key: Array) -> pose_graph.PoseGraph:
    """`count` more loop closures between random poses, Haar rotations, translations of the true length."""
    key_ends, key_R, key_t = jax.random.split(key, 3)
    first = np.asarray(jax.random.randint(key_ends, (count,), 0, graph.nodes))
    second = (first + 2 + np.asarray(jax.random.randint(key_t, (count,), 0, graph.nodes - 3))) % graph.nodes
    R = np.asarray(so3.sample((count,), jnp.float64, key=key_R))
    length = np.sqrt(np.mean(graph.translation**2))
    t = length * np.asarray(jax.random.normal(key_t, (count, 3), jnp.float64))
    weights = [np.full(count, np.median(w)) for w in (graph.kappa, graph.tau)]
    more = (first, second, R, t, *weights)
    names = pose_graph.PoseGraph._fields[1:]
    return graph._replace(
        **{name: np.concatenate([getattr(graph, name), x]) for name, x in zip(names, more, strict=True)}
    )


def ring(count: int) -> tuple[pose_graph.PoseGraph, se3.Pose]:
    """A closed loop of measurements that all say "one step ahead, no turn but the circle's", and the poses they mean.

    A further full turn spread over the loop cannot be undone continuously, so it is a local minimum.
    """
    first = np.arange(count)
    turns = np.zeros((count, 3))
    turns[:, 2] = 2 * np.pi * first / count
    R = np.asarray(so3.exp(jnp.asarray(turns)))
    t = np.stack([np.sin(turns[:, 2]), 1 - np.cos(turns[:, 2]), 0 * turns[:, 2]], axis=1)
    poses = se3.Pose(jnp.asarray(R), jnp.asarray(t))
    ahead = jax.tree.map(lambda a: jnp.roll(a, -1, axis=0), poses)
    measured = se3.compose(se3.inverse(poses), ahead)
    ones = np.ones(count)
    return pose_graph.PoseGraph(
        count, first, (first + 1) % count, np.asarray(measured.rotation), np.asarray(measured.translation), ones, ones
    ), poses


def marginals(graph: pose_graph.PoseGraph, poses: se3.Pose, nodes: np.ndarray) -> np.ndarray:
    """Posterior covariances (nodes, 6, 6) in the body frames, the first pose known: blocks of the inverse of JᵀJ.

    -log posterior = f/2 + constant, and f = |r|², so JᵀJ is the precision (Laplace).
    """
    factors = pose_graph.factors(graph)
    unknowns = factor_graph.columns(factors, poses, se3)
    (block,) = factor_graph.linearise(factors, poses, se3, unknowns).blocks
    at = np.asarray(unknowns[0])
    rows, across = (np.broadcast_to(a, block.shape).ravel() for a in (at[:, :, None], at[:, None, :]))
    size = 6 * graph.nodes
    precision = scipy.sparse.csc_matrix((np.asarray(block).ravel(), (rows, across)), shape=(size, size))
    wanted = (6 * nodes[:, None] + np.arange(6)).ravel() - 6
    units = np.zeros((size - 6, len(wanted)))
    units[wanted, np.arange(len(wanted))] = 1
    columns = normal_equations.factorise(precision[6:, 6:], "MMD_AT_PLUS_A").solve(units)
    return np.stack([columns[wanted[k : k + 6], k : k + 6] for k in range(0, len(wanted), 6)])


def distances(graph: pose_graph.PoseGraph, truth: se3.Pose, count: int, *, key: Array) -> Array:
    """Mahalanobis distances² (count, poses) of estimates from data drawn at `truth`: chi-squared, of mean 6."""
    (pattern,) = pose_graph.factors(graph)
    precisions = np.linalg.inv(marginals(graph, truth, np.arange(1, graph.nodes)))

    def one(key: Array) -> Array:
        drawn = measured(graph, truth, key=key)
        factor = factor_graph.Factor(pattern.residual, pattern.nodes, (drawn, *pattern.data[1:]))
        estimate = optimizers.levenberg_marquardt([factor], truth, se3, tolerance=1e-12, linear_solver="cg").x
        aligned = se3.compose(anchor(truth, estimate), estimate)
        offset = se3.local(truth, aligned)[1:]
        return jnp.einsum("ni,nij,nj->n", offset, jnp.asarray(precisions), offset)

    return jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))(jax.random.split(key, count))


def anchor(reference: se3.Pose, poses: se3.Pose) -> se3.Pose:
    """The motion that brings the first pose onto the first of the reference."""
    origin, moved = (jax.tree.map(lambda a: a[:1], p) for p in (reference, poses))
    return se3.compose(origin, se3.inverse(moved))
