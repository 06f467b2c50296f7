"""The clouds that bench_ot solves, and true errors of solutions: in float64 by NumPy, apart from every solver."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Matrix = Callable[[slice, slice], Doubles]
"""Rows and columns of a cost matrix, as a block in float64."""

_BLOCK_ENTRIES = 2**24


def clouds(n: int, d: int, batch: tuple[int, ...] = ()) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """x uniform in the unit cube, y uniform and squared coordinate by coordinate, so that mass has to move."""
    generator = np.random.default_rng(0)
    x, y = (generator.random((*batch, n, d)).astype(np.float32) for _ in range(2))
    return x, y**2


def mean_cost(x: NDArray, y: NDArray) -> float:
    """Mean over all pairs, and all problems of a batch, of |x − y|²."""
    x, y = (np.asarray(points, np.float64) for points in (x, y))
    squares = np.mean(np.sum(x * x, axis=-1)) + np.mean(np.sum(y * y, axis=-1))
    return float(squares - 2 * np.mean(np.sum(x.mean(axis=-2) * y.mean(axis=-2), axis=-1)))


def squared_euclidean(x: NDArray, y: NDArray) -> Matrix:
    """|x_i − y_j|² block by block: a sum of squares, or a product of matrices for points with many coordinates."""
    x, y = (np.asarray(points, np.float64) for points in (x, y))

    def block(rows: slice, columns: slice) -> Doubles:
        p, q = x[rows], y[columns]
        if x.shape[1] <= 8:
            return sum(np.square(p[:, None, k] - q[:, k]) for k in range(x.shape[1]))  # type: ignore[return-value]
        return np.sum(p * p, axis=1)[:, None] + np.sum(q * q, axis=1) - 2 * p @ q.T

    return block


def given(C: NDArray) -> Matrix:
    """Blocks of a matrix that is there."""
    return lambda rows, columns: np.asarray(C[rows, columns], np.float64)


def true_error(C: Matrix, f: Doubles, g: Doubles, epsilon: float, stride: int = 1) -> float:
    """Σ_i |Σ_j P_ij − 1/n| + Σ_j |Σ_i P_ij − 1/m| of P = exp((f_i + g_j − C_ij)/ε)/(n m), in float64.

    With a `stride`, each sum runs over every stride-th row (column) and is scaled up: an estimate for clouds whose
    kernel takes minutes to visit.
    """
    by_rows = _violation(C, f, g, epsilon, stride)
    return by_rows + _violation(lambda rows, columns: C(columns, rows).T, g, f, epsilon, stride)


def _violation(C: Matrix, f: Doubles, g: Doubles, epsilon: float, stride: int) -> float:
    height = max(1, _BLOCK_ENTRIES // len(g)) * stride
    found = []
    for begin in range(0, len(f), height):
        rows = slice(begin, begin + height, stride)
        found.append(np.mean(np.exp((f[rows, None] + g - C(rows, slice(None))) / epsilon), axis=1))
    return float(np.mean(np.abs(np.concatenate(found) - 1)))


def divergence_gradient(x: Doubles, y: Doubles, epsilon: float) -> Doubles:
    """Gradient in x of OT_ε(x, y) − (OT_ε(x, x) + OT_ε(y, y))/2, squared Euclidean, from float64 plans at 1e-11.

    The derivative of OT_ε(x, y) in x_i is 2 Σ_j P_ij (x_i − y_j), that of OT_ε(x, x)/2 the same with y = x.
    """
    return _pull(x, y, epsilon) - _pull(x, x, epsilon)


def _pull(x: Doubles, y: Doubles, epsilon: float) -> Doubles:
    K = np.exp(-squared_euclidean(x, y)(slice(None), slice(None)) / epsilon)
    n, m = K.shape
    u, v = np.ones(n), np.ones(m)
    for _ in range(20_000):
        u = 1 / (K @ v) / n
        rest = u @ K
        if np.sum(np.abs(v * rest - 1 / m)) < 1e-11:
            P = u[:, None] * K * v
            return 2 * (np.sum(P, axis=1)[:, None] * x - P @ y)
        v = 1 / rest / m
    raise RuntimeError(f"the reference did not converge at epsilon {epsilon}")


def divergence_hessian_product(x: Doubles, y: Doubles, epsilon: float, v: Doubles, step: float = 1e-4) -> Doubles:
    """The Hessian of the divergence in x times v: central differences of `divergence_gradient`, error about step²."""
    ahead, behind = (divergence_gradient(x + s * step * v, y, epsilon) for s in (1, -1))
    return (ahead - behind) / (2 * step)
