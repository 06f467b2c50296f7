"""A proof that a pose graph's solution is globally optimal: the dual matrix S = Q − Λ(X) is positive semidefinite.

With Y the stacked R_nᵀ and the translations eliminated, f = tr(Yᵀ Q Y). For any symmetric 3x3 blocks Λ_n, the matrix
S = Q − diag(Λ_n) bounds all feasible points from below, f >= tr Λ + 3 nodes · min(λ_min(S), 0), because Y_n Y_nᵀ = I.
At a critical point Λ_n = sym((Q Y)_n Y_nᵀ) gives S Y = 0 and tr Λ = f, so λ_min(S) = 0 proves optimality. A negative
λ_min says that the proof fails: a local minimum, or noise so large that no proof of this kind exists.
Source: Rosen, Carlone, Bandeira & Leonard 2019 (SE-Sync), theorem 7.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from lie import se3
from lie.optimizers import normal_equations, pose_graph


class Certificate(NamedTuple):
    """`certified` means smallest_eigenvalue >= −tolerance; the optimum lies between lower_bound and value."""

    value: float
    lower_bound: float
    smallest_eigenvalue: float  # of S, in the unit of κ
    certified: bool


def certify(graph: pose_graph.PoseGraph, poses: se3.Pose, tolerance: float = 1e-5) -> Certificate:
    """Runs on the host in float64: one or a few sparse factorisations and a Lanczos iteration.

    S + σ I is factorised for σ = tolerance, 10 tolerance, ... until all pivots are positive, which proves λ_min > −σ.
    Shifted and inverted there the smallest eigenvalue is the dominant one, so Lanczos cannot miss it. S is dense: the
    translations, optimal for the given rotations, stay in the factorised matrix, whose Schur complement S is.
    Give poses in float64 and converged well below `tolerance`: λ_min is off by the norm of the gradient.
    Raises ValueError for poses of another shape or a graph in several pieces.
    """
    if poses.rotation.shape != (graph.nodes, 3, 3):
        raise ValueError(f"poses: expected rotations with shape {(graph.nodes, 3, 3)}, got {poses.rotation.shape}")
    if not np.isfinite(np.asarray(poses.rotation)).all():
        raise ValueError("poses: expected only finite values")
    n = graph.nodes
    Y = np.swapaxes(np.asarray(poses.rotation, np.float64), -1, -2)
    t = pose_graph.best_translations(graph, np.swapaxes(Y, -1, -2))
    stacked = np.concatenate([t, Y.reshape(-1, 3)])
    B, A = pose_graph.difference_operators(graph)
    data = scipy.sparse.csc_matrix(A.T @ A + scipy.sparse.block_diag([scipy.sparse.csc_matrix((n, n)), B.T @ B]))
    gradient = np.asarray(data @ stacked)[n:].reshape(n, 3, 3)
    multipliers = gradient @ np.swapaxes(Y, -1, -2)
    multipliers = (multipliers + np.swapaxes(multipliers, -1, -2)) / 2
    blocks = scipy.sparse.bsr_matrix((multipliers, np.arange(n), np.arange(n + 1)))
    lagrangian = scipy.sparse.block_diag([scipy.sparse.csc_matrix((n, n)), blocks])
    # The first translation is pinned: shifting all of them changes nothing, and the rest is positive definite.
    dual: Any = scipy.sparse.csc_matrix(data - lagrangian)
    smallest = _smallest_eigenvalue(dual[1:, 1:], n - 1, tolerance)
    bound = float(np.trace(multipliers, axis1=1, axis2=2).sum()) + 3 * n * min(smallest, 0.0)
    value = float(np.sum(stacked * (data @ stacked)))
    return Certificate(value, bound, smallest, smallest >= -tolerance)


def _smallest_eigenvalue(matrix: Any, eliminated: int, tolerance: float) -> float:
    """Of the Schur complement that is left when the first `eliminated` unknowns are eliminated."""
    size = matrix.shape[0]
    kept = size - eliminated
    tail = scipy.sparse.diags(np.concatenate([np.zeros(eliminated), np.ones(kept)]), format="csc")
    shift = tolerance
    while (factor := _positive_definite(matrix + shift * tail)) is None:
        shift *= 10

    def inverse(x):
        return factor.solve(np.concatenate([np.zeros(eliminated), np.ravel(x)]))[eliminated:]

    make: Any = scipy.sparse.linalg.LinearOperator
    operator = make((kept, kept), matvec=inverse, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(kept)
    largest = scipy.sparse.linalg.eigsh(operator, k=1, which="LA", v0=start, return_eigenvectors=False)
    return 1 / float(np.ravel(largest)[0]) - shift


def _positive_definite(matrix: scipy.sparse.csc_matrix) -> scipy.sparse.linalg.SuperLU | None:
    """The factorisation if all its pivots are positive and none had to leave the diagonal, else None."""
    try:
        factor = normal_equations.factorise(scipy.sparse.csc_matrix(matrix), "MMD_AT_PLUS_A")
    except RuntimeError:  # an exactly zero pivot
        return None
    symmetric = np.array_equal(factor.perm_r, factor.perm_c)
    return factor if symmetric and bool((factor.U.diagonal() > 0).all()) else None
