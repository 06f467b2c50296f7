"""Pose graphs: relative measurements between rigid motions, their cost, two starting points, and the g2o text format.

The cost is that of the maximum-likelihood model with isotropic noise (Langevin rotations, Gaussian translations),

    f(R, t) = Σ_ij κ_ij |R_j − R_i R_ij|_F² + τ_ij |t_j − t_i − R_i t_ij|²,

for which `certificate` can prove a global optimum. Source: Rosen, Carlone, Bandeira & Leonard 2019, problem 1.
"""

import gzip
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jax import Array
from scipy.spatial.transform import Rotation

from lie import se3, so3
from lie.optimizers import factor_graph, normal_equations


class PoseGraph(NamedTuple):
    """Edge e says: node second[e], seen from node first[e], is at (rotation[e], translation[e]). NumPy, float64."""

    nodes: int
    first: np.ndarray  # (edges,) integers
    second: np.ndarray
    rotation: np.ndarray  # (edges, 3, 3)
    translation: np.ndarray  # (edges, 3)
    kappa: np.ndarray  # (edges,) weight of the rotation
    tau: np.ndarray  # (edges,) weight of the translation


def read_g2o(path: str | Path) -> PoseGraph:
    """The EDGE_SE3:QUAT lines of a g2o file, gzip or plain; vertices are numbered by the order of their identifiers.

    A line holds two identifiers, the translation, the quaternion xyzw and the upper triangle of the 6x6 information
    matrix, translation first. Isotropic weights: τ = 3 / tr Ω_t⁻¹ and κ = 3 / (2 tr Ω_R⁻¹), as in SE-Sync.
    Raises ValueError for a file without such edges or a line of another length.
    """
    path = Path(path)
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    rows = [line.split()[1:] for line in text.splitlines() if line.startswith("EDGE_SE3:QUAT")]
    if not rows or any(len(row) != 30 for row in rows):
        raise ValueError(f"{path}: expected EDGE_SE3:QUAT lines of 30 numbers, got {len(rows)} such lines")
    table = np.array(rows, np.float64)
    identifiers, ends = np.unique(table[:, :2].astype(np.int64), return_inverse=True)
    ends = ends.reshape(-1, 2)
    information = np.zeros((len(table), 6, 6))
    above = np.triu_indices(6)
    information[:, above[0], above[1]] = information[:, above[1], above[0]] = table[:, 9:]
    covariance_t, covariance_R = np.linalg.inv(information[:, :3, :3]), np.linalg.inv(information[:, 3:, 3:])
    return PoseGraph(
        nodes=len(identifiers),
        first=ends[:, 0],
        second=ends[:, 1],
        rotation=Rotation.from_quat(table[:, 5:9]).as_matrix(),
        translation=table[:, 2:5],
        kappa=1.5 / np.trace(covariance_R, axis1=1, axis2=2),
        tau=3 / np.trace(covariance_t, axis1=1, axis2=2),
    )


def residual(first: se3.Pose, second: se3.Pose, measured: se3.Pose, root_kappa: Array, root_tau: Array) -> Array:
    """√κ (R_iᵀR_j − R_ij) and √τ (R_iᵀ(t_j − t_i) − t_ij), 12 numbers whose squares sum to the cost of the edge."""
    relative = se3.compose(se3.inverse(first), second)
    rotation = root_kappa * (relative.rotation - measured.rotation)
    return jnp.concatenate([rotation.reshape(9), root_tau * (relative.translation - measured.translation)])


def factors(graph: PoseGraph, dtype: Any = jnp.float64) -> list[factor_graph.Factor]:
    """The graph as factors, for `levenberg_marquardt(factors, poses, se3)` with poses a batch of `nodes` elements."""
    measured = se3.Pose(jnp.asarray(graph.rotation, dtype), jnp.asarray(graph.translation, dtype))
    weights = jnp.asarray(np.sqrt(graph.kappa), dtype), jnp.asarray(np.sqrt(graph.tau), dtype)
    ends = jnp.asarray(graph.first, jnp.int32), jnp.asarray(graph.second, jnp.int32)
    return [factor_graph.Factor(residual, ends, (measured, *weights))]


def objective(graph: PoseGraph, poses: se3.Pose) -> Array:
    """f at the poses, a batch of `nodes` rigid motions."""
    return factor_graph.value(factors(graph, poses.translation.dtype), poses, se3)


def odometry(graph: PoseGraph, dtype: Any = jnp.float64) -> se3.Pose:
    """Starting point: the measurements n -> n+1 composed one after the other from the identity.

    Raises ValueError where one of these measurements is missing.
    """
    step = {int(i): e for e, (i, j) in enumerate(zip(graph.first, graph.second, strict=True)) if j == i + 1}
    if missing := [n for n in range(graph.nodes - 1) if n not in step]:
        raise ValueError(f"graph: expected a measurement from each node to the next, none leaves node {missing[0]}")
    R, t = np.tile(np.eye(3), (graph.nodes, 1, 1)), np.zeros((graph.nodes, 3))
    for n in range(graph.nodes - 1):
        R[n + 1], t[n + 1] = R[n] @ graph.rotation[step[n]], t[n] + R[n] @ graph.translation[step[n]]
    return se3.Pose(jnp.asarray(R, dtype), jnp.asarray(t, dtype))


def chordal(graph: PoseGraph, dtype: Any = jnp.float64) -> se3.Pose:
    """Starting point: f minimised over free 3x3 matrices (the first one I), projected on SO(3), then over translations.

    Two sparse linear systems. Source: Martinec & Pajdla 2007; Carlone et al. 2015.
    """
    rotations, _ = difference_operators(graph)
    pinned = _solve_pinned(rotations.T @ rotations, np.eye(3), 3)
    R = np.asarray(so3.project(jnp.asarray(np.swapaxes(pinned.reshape(-1, 3, 3), -1, -2))), np.float64)
    return se3.Pose(jnp.asarray(R, dtype), jnp.asarray(best_translations(graph, R), dtype))


def best_translations(graph: PoseGraph, R: np.ndarray) -> np.ndarray:
    """The translations (nodes, 3) that minimise f for given rotations, the first at the origin."""
    _, translations = difference_operators(graph)
    n = graph.nodes
    laplacian = translations[:, :n].T @ translations[:, :n]
    coupling = translations[:, :n].T @ translations[:, n:]
    known = coupling @ np.swapaxes(R, -1, -2).reshape(-1, 3)
    return _solve_pinned(laplacian, np.zeros((1, 3)), 1, known)


def difference_operators(graph: PoseGraph) -> tuple[scipy.sparse.csc_matrix, scipy.sparse.csc_matrix]:
    """Sparse B and A with f = |B Y|² + |A [t; Y]|², where Y, (3 nodes, 3), stacks the R_nᵀ and t, (nodes, 3), the t_n.

    An edge has the rows √κ (R_jᵀ − R_ijᵀ R_iᵀ) in B and √τ (t_j − t_i − R_i t_ij)ᵀ in A.
    Raises ValueError for a graph in several pieces: their relative positions are unknown.
    """
    edges, n = len(graph.first), graph.nodes
    links = scipy.sparse.coo_matrix((np.ones(edges), (graph.first, graph.second)), shape=(n, n))
    pieces = scipy.sparse.csgraph.connected_components(links, directed=False, return_labels=False)
    if pieces != 1:
        raise ValueError(f"graph: expected one connected graph, got {pieces} pieces")
    e, axis = np.arange(edges), np.arange(3)
    root_kappa, root_tau = np.sqrt(graph.kappa), np.sqrt(graph.tau)
    rows = np.broadcast_to(3 * e[:, None, None] + axis[:, None], (edges, 3, 3))
    columns = np.broadcast_to(3 * graph.first[:, None, None] + axis, (edges, 3, 3))
    measured = -root_kappa[:, None, None] * np.swapaxes(graph.rotation, -1, -2)
    ahead = 3 * graph.second[:, None] + axis
    B = _sparse(
        [(measured, rows, columns), (np.repeat(root_kappa, 3), np.arange(3 * edges), ahead)], (3 * edges, 3 * n)
    )
    rotated = n + 3 * graph.first[:, None] + axis
    A = _sparse(
        [
            (root_tau, e, graph.second),
            (-root_tau, e, graph.first),
            (-root_tau[:, None] * graph.translation, np.repeat(e, 3), rotated),
        ],
        (edges, 4 * n),
    )
    return B, A


def _sparse(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]], shape: tuple[int, int]) -> scipy.sparse.csc_matrix:
    values, rows, columns = (np.concatenate([part[k].ravel() for part in parts]) for k in range(3))
    return scipy.sparse.csc_matrix((values, (rows, columns)), shape=shape)


def _solve_pinned(matrix: Any, first: np.ndarray, pinned: int, known: np.ndarray | float = 0.0) -> np.ndarray:
    """x minimising xᵀ matrix x + 2 xᵀ known whose first `pinned` rows are `first`."""
    matrix = scipy.sparse.csc_matrix(matrix)
    right = -(matrix[:, :pinned] @ first + known)[pinned:]
    rest = normal_equations.factorise(matrix[pinned:, pinned:], "MMD_AT_PLUS_A").solve(np.ascontiguousarray(right))
    return np.concatenate([first, rest])
