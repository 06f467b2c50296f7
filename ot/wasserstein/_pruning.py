"""On the host: entropic potentials in float32, and the few edges of low reduced cost that an optimal plan may use."""

import numpy as np

_COARSE = 1024  # points: above, a random subset of so many finds the potentials of the first levels
_LEVELS = np.geomspace(0.3, 1e-3, 6)  # epsilon in units of the mean cost
_COARSE_LEVELS = np.geomspace(0.3, 1e-2, 5)
_FINE_LEVELS = (1e-2, 3e-3, 1e-3)
_STEPS, _FINE_STEPS = 10, 15
_PER_ROW, _AT_LEAST = 12, 6  # edges kept: on average, and of each row and column
_BLOCK = 1 << 19  # entries of a matrix that are worked on at once: they stay in the cache


def blocks(shape: tuple[int, int]) -> list[slice]:
    """Rows in groups that fit the cache."""
    step = max(1, _BLOCK // shape[1])
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def column_potential(C: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """g (m,) of entropic transport with C (n, m) float32 of mean 1, at epsilon 1e-3, to a few steps' accuracy."""
    n, m = C.shape
    if max(n, m) <= _COARSE:
        return _descend(C, a, b, np.zeros(m, np.float32), _LEVELS, _STEPS)
    rng = np.random.default_rng(0)  # a subset of the rows and columns, the same each time
    i, j = (rng.permutation(size)[:_COARSE] for size in (n, m))
    g = _descend(
        C[np.ix_(i, j)], a[i] / a[i].sum(), b[j] / b[j].sum(), np.zeros(len(j), np.float32), _COARSE_LEVELS, 10
    )
    f = _soft_minimum(C[np.ix_(i, j)].T - g[:, None])
    return _descend(C, a, b, _soft_minimum(C[i] - f[:, None]), _FINE_LEVELS, _FINE_STEPS)


def candidates(C: np.ndarray, g: np.ndarray) -> np.ndarray:
    """Sorted flat indices of the edges of C (n, m) float32 worth a look; C becomes its reduced costs, in place.

    All edges below one threshold, and the best few of each row and column.
    """
    n, m = C.shape
    least = np.full(m, np.inf, np.float32)
    for rows in blocks(C.shape):
        C[rows] -= g
        C[rows] -= C[rows].min(axis=1, keepdims=True)
        np.minimum(least, C[rows].min(axis=0), out=least)
    for rows in blocks(C.shape):
        C[rows] -= least
    sample = C[np.random.default_rng(0).integers(0, n, 32)].ravel()
    rank = min(len(sample) - 1, 32 * _PER_ROW)
    kept = np.flatnonzero((np.partition(sample, rank)[rank] >= C).ravel())
    i, j = np.divmod(kept, m)
    rows = np.flatnonzero(np.bincount(i, minlength=n) < min(_AT_LEAST, m))
    columns = np.flatnonzero(np.bincount(j, minlength=m) < min(_AT_LEAST, n))
    in_rows = rows[:, None] * m + np.argpartition(C[rows], min(_AT_LEAST, m) - 1, axis=1)[:, :_AT_LEAST]
    turned = np.ascontiguousarray(C.T[columns])
    in_columns = np.argpartition(turned, min(_AT_LEAST, n) - 1, axis=1)[:, :_AT_LEAST] * m + columns[:, None]
    return np.unique(np.concatenate([kept, in_rows.ravel(), in_columns.ravel()]))


def _descend(C: np.ndarray, a: np.ndarray, b: np.ndarray, g: np.ndarray, levels, steps: int) -> np.ndarray:
    """A few Sinkhorn steps at each epsilon, on a kernel whose rows and columns all have the largest entry 1.

    Dots by einsum, on one thread: the threads of BLAS wait for each other where the machine has other work, and took up
    to twenty times longer.
    """
    K = np.empty_like(C)
    for epsilon in levels:
        f, tight = np.empty(len(a), np.float32), np.full(len(b), np.inf, np.float32)
        for rows in blocks(C.shape):
            reduced = C[rows] - g
            f[rows] = reduced.min(axis=1)
            np.minimum(tight, (C[rows] - f[rows, None]).min(axis=0), out=tight)
        for rows in blocks(C.shape):
            block = np.subtract(tight, C[rows], out=K[rows])
            block += f[rows, None]
            block *= np.float32(1 / epsilon)
            np.exp(block, out=block)
        u, v = np.ones_like(f), np.ones_like(tight)
        with np.errstate(all="ignore"):
            for _ in range(steps):
                v = b / np.einsum("i,ij->j", u, K)
                u = a / np.einsum("ij,j->i", K, v)
            moved = tight + np.float32(epsilon) * np.log(v)
        if not np.isfinite(moved).all():  # out of float32's range: what the level before found will do
            return g
        g = moved
    return g


def _soft_minimum(reduced: np.ndarray) -> np.ndarray:
    """−ε log Σ_i exp(−reduced_ij/ε) at the ε of the coarse levels' end, up to a constant."""
    epsilon, least = np.float32(_COARSE_LEVELS[-1]), reduced.min(axis=0)
    return least - epsilon * np.log(np.exp((least - reduced) / epsilon).sum(axis=0))
