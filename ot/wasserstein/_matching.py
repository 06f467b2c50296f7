"""On the host: an optimal plan over few edges, its potentials, and the pricing of all other edges, until none improves.

Uniform weights of equally many points: SciPy's assignment, then the potentials as shortest paths. Any other weights:
SciPy's HiGHS, whose simplex gives both. Either is optimal over all edges once no edge prices out.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, sparse

from ot.wasserstein import _pruning

_NEGLIGIBLE = 1e-12  # of the mean cost: an edge cheaper by less does not count as an improvement


class Plan(NamedTuple):
    """Edges (i, j) with their mass, potentials f + g <= C, value − Σ a f − Σ b g = gap >= 0, and rounds of pricing."""

    i: np.ndarray
    j: np.ndarray
    mass: np.ndarray
    f: np.ndarray
    g: np.ndarray
    value: float
    gap: float
    rounds: int


def solve(C: np.ndarray, a: np.ndarray, b: np.ndarray, max_rounds: int) -> Plan:
    """The optimal plan of C (n, m) float64 between weights a and b of one total; the gap is float64's rounding."""
    present = np.flatnonzero(a > 0), np.flatnonzero(b > 0)
    whole = all(len(kept) == size for kept, size in zip(present, C.shape, strict=True))
    core, inner_a, inner_b = (C, a, b) if whole else (C[np.ix_(*present)], a[present[0]], b[present[1]])
    total = inner_a.sum()
    offset, scale = _offset_and_scale(core)
    inner_b = inner_b * (total / inner_b.sum())
    uniform = len(inner_a) == len(inner_b) and all(np.ptp(w) <= 1e-6 * w.max() for w in (inner_a, inner_b))
    reduced = ((core - offset) / scale).astype(np.float32)
    g = _pruning.column_potential(reduced, *((w / total).astype(np.float32) for w in (inner_a, inner_b)))
    edges = _pruning.candidates(reduced, g) if core.size > 4096 else np.arange(core.size)
    g = scale * g.astype(np.float64)
    partner = _assign(core, g) if uniform else None
    rounds, improved = 0, True
    while improved and rounds < max_rounds:
        rounds += 1
        if partner is None:
            i, j, mass, f, g = _transport(core, edges, inner_a, inner_b, g, scale)
        else:
            i, j, mass = np.arange(len(partner)), partner, (inner_a + inner_b[partner]) / 2
            f, g = _potentials(core, edges, partner, g, scale)
        lower, better = _price(core, f, g, scale)
        value = float(np.sum(mass * core[i, j]))
        gap = value - float(inner_a @ lower + inner_b @ g)
        improved = len(better) > 0
        edges = np.union1d(edges, better)
    return _with_absent_points(C, a, b, present, Plan(i, j, mass, lower, g, value, gap, rounds))


def _assign(C, g):
    """The optimal assignment: SciPy's shortest augmenting paths, which are short once costs are reduced by g.

    Its sparse variant is faster on good potentials (20 ms for n = 4096), but took minutes on poor ones.
    """
    reduced = np.empty_like(C)
    for rows in _pruning.blocks(C.shape):
        np.subtract(C[rows], g, out=reduced[rows])
        reduced[rows] -= reduced[rows].min(axis=1, keepdims=True)
    return optimize.linear_sum_assignment(reduced)[1]


def _potentials(C, edges, partner, g, scale):
    """Potentials that are tight on the assignment and feasible on the edges: shortest paths among the columns."""
    n = len(partner)
    edges = np.union1d(edges, np.arange(n) * n + partner)
    i, j = np.divmod(edges, n)
    own = C[np.arange(n), partner]
    g = _shortest_paths(C.ravel()[edges] - own[i], j, partner[i], g, scale)
    return own - g[partner], g


def _shortest_paths(length, target, source, g, scale):
    """g_j = min over edges (g_source + length), by sweeps (Bellman-Ford) from g; all edges of a column at once."""
    order = np.argsort(target, kind="stable")
    length, source = length[order], source[order]
    starts = np.searchsorted(target[order], np.arange(len(g)))
    for _ in range(4 * len(g)):
        reached = np.minimum.reduceat(length + g[source], starts)
        if (reached >= g - 1e-14 * scale).all():
            break
        g = np.minimum(g, reached)
    return g


def _transport(C, edges, a, b, g, scale):
    """The optimal plan on the edges and on those of the north-west corner rule, which always hold one."""
    n, m = C.shape
    edges = np.union1d(edges, _corner_rule(a, b))
    i, j = np.divmod(edges, m)
    f = np.full(n, np.inf)
    reduced = C.ravel()[edges] - g[j]
    np.minimum.at(f, i, reduced)
    reduced = (reduced - f[i]) / scale
    count = np.arange(len(edges))
    incidence = sparse.csc_array(
        (np.ones(2 * len(edges)), (np.concatenate([i, n + j]), np.concatenate([count, count]))), (n + m, len(edges))
    )
    unit = a.sum() / max(n, m)  # masses of order one: HiGHS's tolerances are absolute
    found = optimize.linprog(
        reduced,
        A_eq=incidence,
        b_eq=np.concatenate([a, b]) / unit,
        method="highs-ds",
        options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10},
    )
    if found.x is None:
        raise RuntimeError(f"HiGHS found no plan: {found.message}")
    potentials = scale * found.eqlin.marginals
    used = found.x > 0
    return i[used], j[used], unit * found.x[used], f + potentials[:n], g + potentials[n:]


def _corner_rule(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Flat indices of a feasible plan: both sides are used up in their order."""
    ends = np.sort(np.concatenate([np.cumsum(a), np.cumsum(b)]))
    middle = np.concatenate([[0.0], ends[:-1]]) / 2 + ends / 2
    i, j = (np.minimum(np.searchsorted(np.cumsum(w), middle), len(w) - 1) for w in (a, b))
    steps = np.flatnonzero((np.diff(i) != 0) & (np.diff(j) != 0))  # rounding may skip the corner between two cells
    return np.unique(np.concatenate([i * len(b) + j, i[steps] * len(b) + j[steps + 1]]))


def _price(C, f, g, scale):
    """min_j C_ij − g_j for each row, and the flat indices of edges that undercut f + g."""
    lower, better = np.empty(len(f)), []
    for rows in _pruning.blocks(C.shape):
        reduced = C[rows] - g
        lower[rows] = reduced.min(axis=1)
        bad = np.flatnonzero(lower[rows] < f[rows] - _NEGLIGIBLE * scale)
        if len(bad):
            i, j = np.nonzero(reduced[bad] < (f[rows][bad] - _NEGLIGIBLE * scale)[:, None])
            better.append((rows.start + bad[i]) * C.shape[1] + j)
    return lower, np.concatenate(better) if better else np.empty(0, np.int64)


def _with_absent_points(C, a, b, present, plan: Plan) -> Plan:
    """Potentials for points of weight 0 too, as large as the constraint f + g <= C lets them be."""
    rows, columns = present
    if len(rows) == len(a) and len(columns) == len(b):
        return plan
    g = np.full(len(b), np.inf)
    g[columns] = plan.g
    f = np.min(C[:, columns] - plan.g, axis=1)
    f[rows] = plan.f
    absent = np.isinf(g)
    g[absent] = np.min(C[:, absent] - f[:, None], axis=0)
    return plan._replace(i=rows[plan.i], j=columns[plan.j], f=f, g=g)


def _offset_and_scale(C: np.ndarray) -> tuple[float, float]:
    least, mean = float(C.min()), float(C.mean())
    return least, (mean - least) if mean > least else 1.0
