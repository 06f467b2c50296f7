"""Solvers of (H + λ diag H) δ = −g for a linearised least-squares problem: sparse LU, conjugate gradients, Cholesky.

The sparse factorisation is SciPy's and runs on the host, outside jit. Conjugate gradients and Cholesky are traceable.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jax import Array

from lie.optimizers import elements, factor_graph


class SparseDirect:
    """Factorisation of the sparse normal matrix in float64; its pattern and its ordering are found once.

    The minimum-degree ordering that SuperLU finds for the first matrix serves all later ones, because the pattern never
    changes. No pivoting: H + λ diag H is positive definite.
    """

    def __init__(self, unknowns: Sequence[Array], size: int):
        at = [np.asarray(columns, np.int64) for columns in unknowns]
        rows = [np.broadcast_to(a[:, :, None], (*a.shape, a.shape[1])).ravel() for a in at]
        across = [np.broadcast_to(a[:, None, :], (*a.shape, a.shape[1])).ravel() for a in at]
        # Column-major keys of all entries, the diagonal included, so that damping meets no missing entry.
        keys = [c * size + r for r, c in zip(rows, across, strict=True)] + [np.arange(size) * (size + 1)]
        unique, self._slots = np.unique(np.concatenate(keys), return_inverse=True)
        self._rows, starts = unique % size, np.searchsorted(unique, np.arange(size + 1) * size)
        self._pattern, self._size, self._order = (self._rows, starts), size, None

    def __call__(self, linearisation: factor_graph.Linearisation, damping: float) -> np.ndarray:
        entries = [np.asarray(block, np.float64).ravel() for block in linearisation.blocks]
        added = float(damping) * np.asarray(linearisation.diagonal, np.float64)
        summed = np.bincount(self._slots, weights=np.concatenate([*entries, added]), minlength=len(self._rows))
        matrix = scipy.sparse.csc_matrix((summed, *self._pattern), shape=(self._size, self._size))
        b = -np.asarray(linearisation.gradient, np.float64)
        if self._order is None:
            factor = factorise(matrix, "MMD_AT_PLUS_A")
            self._order = np.argsort(factor.perm_c)
            return factor.solve(b)
        delta = np.empty_like(b)
        delta[self._order] = factorise(matrix[self._order][:, self._order], "NATURAL").solve(b[self._order])
        return delta


def factorise(matrix: scipy.sparse.csc_matrix, ordering: str) -> scipy.sparse.linalg.SuperLU:
    """LU of a symmetric matrix with pivots taken from the diagonal."""
    return scipy.sparse.linalg.splu(matrix, permc_spec=ordering, diag_pivot_thresh=0.0, options={"SymmetricMode": True})


def conjugate_gradients(
    factors: Sequence[factor_graph.Factor],
    x: elements.Parameters,
    groups: elements.Groups,
    unknowns: Sequence[Array],
    linearisation: factor_graph.Linearisation,
    damping: Array,
    tolerance: float,
    max_steps: int,
) -> Array:
    """Preconditioned by each node's diagonal block; stops at |residual| <= tolerance · |g| or after `max_steps`."""
    found = factor_graph.variables(x, groups)
    blocks = _node_blocks(factors, found, linearisation)
    scaling = damping * linearisation.diagonal
    lower = [
        jnp.linalg.cholesky(block + _part(v, scaling)[:, :, None] * jnp.eye(v.dimension, dtype=block.dtype))
        for v, block in zip(found, blocks, strict=True)
    ]

    def precondition(r):
        solved = [
            jax.scipy.linalg.cho_solve((factor, True), _part(v, r)[..., None]).reshape(-1)
            for v, factor in zip(found, lower, strict=True)
        ]
        return jnp.concatenate(solved)

    def operator(v):
        return factor_graph.multiply(linearisation, unknowns, v) + scaling * v

    delta, _ = jax.scipy.sparse.linalg.cg(
        operator, -linearisation.gradient, tol=tolerance, maxiter=max_steps, M=precondition
    )
    return delta


def dense(linearisation: factor_graph.Linearisation, damping: Array) -> Array:
    """Cholesky of the one block that a problem without structure has."""
    (block,) = linearisation.blocks
    matrix = block[0] + jnp.diag(damping * linearisation.diagonal)
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), -linearisation.gradient)


def _part(variable: factor_graph.Variable, v: Array) -> Array:
    """The entries (count, dimension) of one variable."""
    size = variable.count * variable.dimension
    return v[variable.offset : variable.offset + size].reshape(variable.count, variable.dimension)


def _node_blocks(
    factors: Sequence[factor_graph.Factor],
    found: Sequence[factor_graph.Variable],
    linearisation: factor_graph.Linearisation,
) -> list[Array]:
    """The diagonal blocks (count, dimension, dimension) of H, one array per variable."""
    by_name = {variable.name: variable for variable in found}
    dtype = linearisation.gradient.dtype
    blocks = {v.name: jnp.zeros((v.count, v.dimension, v.dimension), dtype) for v in found}
    for factor, block in zip(factors, linearisation.blocks, strict=True):
        start = 0
        for variable, nodes in factor_graph.touched(factor, by_name):
            end = start + variable.dimension
            blocks[variable.name] = blocks[variable.name].at[nodes].add(block[:, start:end, start:end])
            start = end
    return [blocks[variable.name] for variable in found]
