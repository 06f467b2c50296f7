"""Entropic transport among many marginals: message passing where the costs form a tree, a dense tensor elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import logsumexp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from lie import check, record, smooth
from ot import _batch, _inputs, costs

Points = Any
Edges = tuple[tuple[int, int], ...]

_SWEEPS_PER_CHECK = 10  # the error of all marginals costs about one sweep


@record.register("potentials", "log_weights", "matrices", "epsilon", "value", "error", "steps", "converged")
@dataclass(frozen=True)
class MultiMarginal:
    """The plan P = Π_k a_k exp((Σ_k f_k − C)/ε) and how the iteration ended.

    potentials: one f_k (*batch, n_k) per marginal, in the unit of the cost. value: the dual objective, at convergence
    that of min <C, P> + ε KL(P | a_1 ⊗ ... ⊗ a_K). error: the true L1 violation, summed over all marginals. steps:
    sweeps over all marginals. matrices: the costs of the `edges`, or the whole tensor where edges is None.
    """

    potentials: tuple[Float[Array, "..."], ...]
    log_weights: tuple[Float[Array, "..."], ...]
    matrices: tuple[Float[Array, "..."], ...]
    edges: Edges | None
    epsilon: Float[Array, "*batch"]
    value: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    steps: Int[Array, "*batch"]
    converged: Bool[Array, "*batch"]

    def plan(self) -> Float[Array, "..."]:
        """The dense plan (*batch, n_1, ..., n_K): as large as the product of all sizes."""
        fields = self._fields()
        tensor = self.matrices[0] if self.edges is None else _sum_over_edges(self.matrices, self.edges, len(fields))
        return jnp.exp(_log_plan(fields, tensor, self.epsilon))

    def pair(self, i: int, j: int) -> Float[Array, "*batch n_i n_j"]:
        """The joint law of marginals i and j, along the tree where there is one. Raises ValueError unless i != j."""
        count = len(self.potentials)
        if not (0 <= i < count and 0 <= j < count) or i == j:
            raise ValueError(f"i and j: expected two different marginals of 0..{count - 1}, got {i} and {j}")
        if self.edges is not None:
            return jnp.exp(_log_pair(self._fields(), self.matrices, self.edges, self.epsilon, i, j))
        plan = self.plan()
        joint = jnp.sum(plan, axis=tuple(k - count for k in range(count) if k not in (i, j)))
        return joint if i < j else jnp.swapaxes(joint, -1, -2)

    def _fields(self) -> tuple[Array, ...]:
        return _fields(self.potentials, self.log_weights, self.epsilon)


def solve(
    points: Sequence[Points],
    weights: Sequence[ArrayLike | None] | None = None,
    *,
    cost: Any = None,
    edges: str | Sequence[tuple[int, int]] | None = None,
    joint_cost: Callable[..., Array] | None = None,
    epsilon: ArrayLike,
    tolerance: float = 1e-3,
    max_steps: int = 2000,
) -> MultiMarginal:
    """min <C, P> + ε KL(P | a_1 ⊗ ... ⊗ a_K) over couplings P of K clouds, by Sinkhorn's iteration in logarithms.

    C(x_1, ..., x_K) = Σ c(x_i, x_j) over `edges`: "chain", "star" (from cloud 0), pairs of indices, or None for all
    pairs. `cost` is one cost of `ot.costs` (default squared Euclidean) or one per edge. Edges that form a tree cost
    K − 1 messages of n² each way per sweep and memory O(K n²), linear in K; other graphs need the tensor of Π n_k
    entries, as does `joint_cost`, a function of K single points (d,) -> scalar. Points (*batch, n_k, *event), weights
    (*batch, n_k), uniform where None. Stops when the L1 violation of all marginals together is <= tolerance.
    Differentiable in points, weights, costs and epsilon by the envelope theorem, to first order.
    Raises ValueError and TypeError that name points, weights, edges, cost or epsilon.
    Sources: Benamou et al. 2015, SISC 37:A1111; Haasler et al. 2021, SICON 59:2428 (messages on trees).
    """
    points = [_inputs.points(f"points[{k}]", cloud) for k, cloud in enumerate(points)]
    count = len(points)
    if count < 2:
        raise ValueError(f"points: expected two clouds or more, got {count}")
    if joint_cost is not None:
        if cost is not None or edges is not None:
            raise ValueError("joint_cost: expected neither cost nor edges beside it")
        matrices, graph = (_on_grid(joint_cost, points),), None
    else:
        graph = _edges_of(edges, count)
        matrices = _matrices(points, cost, graph)
        if not _is_tree(graph, count):
            matrices, graph = (_sum_over_edges(matrices, graph, count),), None
    matrices = [_inputs.cost("points", C) for C in matrices]
    sizes = matrices[0].shape[-count:] if graph is None else _sizes(matrices, graph, count)
    dtype = matrices[0].dtype
    if weights is not None and len(weights) != count:
        raise ValueError(f"weights: expected {count} entries, one per cloud, got {len(weights)}")
    given = [None] * count if weights is None else weights
    a = [_inputs.weights(f"weights[{k}]", w, n, dtype) for k, (w, n) in enumerate(zip(given, sizes, strict=True))]

    return _solve(_inputs.scalar("epsilon", epsilon, dtype), tuple(a), tuple(matrices), graph, tolerance, max_steps)


@partial(jax.jit, static_argnames="edges")
def _solve(
    epsilon: Array,
    a: tuple[Array, ...],
    matrices: tuple[Array, ...],
    edges: Edges | None,
    tolerance: Any,
    max_steps: Any,
) -> MultiMarginal:
    count = len(a)

    def one(epsilon, *arrays):
        return _solve_one(epsilon, arrays[:count], arrays[count:], edges, tolerance, max_steps)

    event_axes = [0] + [1] * count + [count if edges is None else 2] * len(matrices)
    return _batch.over(one, [epsilon, *a, *matrices], event_axes)


def _edges_of(edges: str | Sequence[tuple[int, int]] | None, count: int) -> Edges:
    if edges is None:
        return tuple((i, j) for i in range(count) for j in range(i + 1, count))
    if edges in ("chain", "star"):
        return tuple((k if edges == "chain" else 0, k + 1) for k in range(count - 1))
    if isinstance(edges, str):
        raise ValueError(f'edges: expected None, "chain", "star" or pairs of indices, got {edges!r}')
    pairs = tuple((int(i), int(j)) for i, j in edges)
    if not pairs or any(not (0 <= i < count and 0 <= j < count) or i == j for i, j in pairs):
        raise ValueError(f"edges: expected pairs of different clouds of 0..{count - 1}, got {pairs}")
    if len({frozenset(pair) for pair in pairs}) < len(pairs):
        raise ValueError(f"edges: expected each pair once, got {pairs}")
    return pairs


def _is_tree(edges: Edges, count: int) -> bool:
    return len(edges) == count - 1 and len({0, *(v for _, v in _tour(edges))}) == count


def _matrices(points: list[Points], cost: Any, edges: Edges) -> tuple[Array, ...]:
    several = cost if isinstance(cost, list | tuple) else [cost] * len(edges)
    if len(several) != len(edges):
        raise ValueError(f"cost: expected one cost or {len(edges)}, one per edge, got {len(several)}")
    records = [costs.SquaredEuclidean() if c is None else costs.wrap(c) for c in several]
    return tuple(c(points[i], points[j]) for c, (i, j) in zip(records, edges, strict=True))


def _sizes(matrices: Sequence[Array], edges: Edges, count: int) -> list[int]:
    found = {}
    for C, (i, j) in zip(matrices, edges, strict=True):
        for k, size in ((i, C.shape[-2]), (j, C.shape[-1])):
            if found.setdefault(k, size) != size:
                raise ValueError(f"cost: its matrices give cloud {k} both {found[k]} and {size} points")
    return [found[k] for k in range(count)]


def _on_grid(joint_cost: Callable[..., Array], points: list[Points]) -> Array:
    """The tensor (*batch, n_1, ..., n_K) of a function of K single points."""
    clouds = [check.array(f"points[{k}]", cloud, None, None) for k, cloud in enumerate(points)]
    count = len(clouds)
    on_grid = joint_cost
    for k in reversed(range(count)):
        on_grid = jax.vmap(on_grid, [0 if j == k else None for j in range(count)])
    tensor = _batch.over(on_grid, clouds, [2] * count)
    if not isinstance(tensor, Array) or tensor.shape[tensor.ndim - count :] != tuple(x.shape[-2] for x in clouds):
        raise ValueError("joint_cost: expected a function of single points, one per cloud, that returns a scalar")
    return tensor


def _sum_over_edges(matrices: Sequence[Array], edges: Edges, count: int) -> Array:
    """The tensor Σ c(x_i, x_j)."""
    _sizes(matrices, edges, count)
    total = jnp.zeros((), matrices[0].dtype)
    for C, (i, j) in zip(matrices, edges, strict=True):
        C, (first, second) = (C, (i, j)) if i < j else (jnp.swapaxes(C, -1, -2), (j, i))
        shape = [1] * count
        shape[first], shape[second] = C.shape[-2:]
        total = total + C.reshape(*C.shape[:-2], *shape)
    return total


def _log_plan(h: tuple[Array, ...], tensor: Array, epsilon: Array, but: int | None = None) -> Array:
    """Σ_k h_k − C/ε over the grid, leaving out h_k for k = `but`."""
    count = len(h)
    total = -tensor / epsilon.reshape(*epsilon.shape, *[1] * count)
    for k, field in enumerate(h):
        if k != but:
            total = total + field.reshape(*field.shape[:-1], *[1] * k, field.shape[-1], *[1] * (count - k - 1))
    return total


def _marginal(h: tuple[Array, ...], k: int, tensor: Array, epsilon: Array) -> Array:
    others = tuple(j - len(h) for j in range(len(h)) if j != k)
    return logsumexp(_log_plan(h, tensor, epsilon, but=k), axis=others)


def _solve_one(
    epsilon: Array,
    a: tuple[Array, ...],
    matrices: tuple[Array, ...],
    edges: Edges | None,
    tolerance: Any,
    max_steps: Any,
) -> MultiMarginal:
    log_a = tuple(smooth.log(a_k) for a_k in a)
    eps, weights, log_weights, C = jax.lax.stop_gradient((epsilon, a, log_a, matrices))

    def assess(f):
        """All messages, and Σ_k Σ_x |P_k − a_k| with P_k = a_k exp(f_k/ε + M_k)."""
        messages = _messages(_fields(f, log_weights, eps), C, edges, eps)
        parts = zip(weights, f, _incoming(messages, edges), strict=True)
        return messages, jnp.stack([jnp.sum(a_k * jnp.abs(jnp.expm1(f_k / eps + M))) for a_k, f_k, M in parts]).sum()

    def advance(state):
        f, messages, _, steps = state
        sweep = lambda _, inner: _sweep(inner[0], inner[1], log_weights, C, edges, eps)
        f, _ = jax.lax.fori_loop(0, _SWEEPS_PER_CHECK, sweep, (f, messages))
        return f, *assess(f), steps + _SWEEPS_PER_CHECK

    def unfinished(state):
        return ~(state[2] <= tolerance) & (state[3] < max_steps)

    start = tuple(jnp.zeros_like(a_k) for a_k in weights)
    f, _, error, steps = jax.lax.while_loop(unfinished, advance, (start, *assess(start), jnp.int32(0)))
    # The dual objective at potentials held fixed has the derivatives of the optimum (envelope); its mass term carries
    # those in C and ε, the first term those in the weights.
    live = _messages(_fields(f, log_weights, epsilon), matrices, edges, epsilon)
    mass = jnp.sum(weights[0] * jnp.exp(f[0] / epsilon + _incoming(live, edges)[0]))
    gains = jnp.stack([jnp.sum(f_k * a_k) for f_k, a_k in zip(f, a, strict=True)])
    value = jnp.sum(gains) - epsilon * (mass - 1)
    return MultiMarginal(f, log_a, matrices, edges, epsilon, value, error, steps, error <= tolerance)


def _fields(f: tuple[Array, ...], log_a: tuple[Array, ...], epsilon: Array) -> tuple[Array, ...]:
    """h_k = f_k/ε + log a_k: the plan is exp(Σ h_k − C/ε)."""
    return tuple(f_k / epsilon[..., None] + log_w for f_k, log_w in zip(f, log_a, strict=True))


def _incoming(messages: Any, edges: Edges | None) -> tuple[Array, ...]:
    """M_k(x_k) = log Σ over all other points of exp(Σ_{j≠k} h_j − C/ε): the k-th marginal is exp(h_k + M_k)."""
    if edges is None:
        return messages
    return tuple(_gathered(messages, k) for k in range(len(edges) + 1))


def _messages(h: tuple[Array, ...], matrices: tuple[Array, ...], edges: Edges | None, epsilon: Array) -> Any:
    """For a tensor the M_k themselves; for a tree the messages (u, v), what u's side says about each point of v."""
    if edges is None:
        return tuple(_marginal(h, k, matrices[0], epsilon) for k in range(len(h)))
    messages = {}
    outward = _outward(edges)
    for u, v in [(v, u) for u, v in reversed(outward)] + outward:
        messages[u, v] = _message(h, messages, u, v, matrices, edges, epsilon)
    return messages


def _sweep(
    f: tuple[Array, ...],
    messages: Any,
    log_a: tuple[Array, ...],
    matrices: tuple[Array, ...],
    edges: Edges | None,
    epsilon: Array,
) -> tuple[tuple[Array, ...], Any]:
    """Each f_k ← −ε M_k, after which the k-th marginal is exact; on a tree in the order of a walk around it."""
    new = list(f)
    if edges is None:
        for k in range(len(new)):
            new[k] = -epsilon * _marginal(_fields(tuple(new), log_a, epsilon), k, matrices[0], epsilon)
        return tuple(new), messages
    messages = dict(messages)
    new[0] = -epsilon * _gathered(messages, 0)
    for u, v in _tour(edges):  # messages that point to where the walk stands are up to date
        messages[u, v] = _message(_fields(tuple(new), log_a, epsilon), messages, u, v, matrices, edges, epsilon)
        new[v] = -epsilon * _gathered(messages, v)
    return tuple(new), messages


def _message(
    h: tuple[Array, ...], messages: dict, u: int, v: int, matrices: tuple[Array, ...], edges: Edges, epsilon: Array
) -> Array:
    return logsumexp(
        _step(u, v, matrices, edges, epsilon) + (h[u] + _gathered(messages, u, [v]))[..., :, None], axis=-2
    )


def _step(u: int, v: int, matrices: tuple[Array, ...], edges: Edges, epsilon: Array) -> Array:
    """−c(x_u, x_v)/ε as (n_u, n_v), whichever way round the edge was given."""
    C = matrices[edges.index((u, v))] if (u, v) in edges else jnp.swapaxes(matrices[edges.index((v, u))], -1, -2)
    return -C / epsilon[..., None, None]


def _gathered(messages: dict, v: int, but: Sequence[int] = ()) -> Any:
    """The sum of the messages into v, leaving out those from `but`; 0 if there is none."""
    return sum(message for (u, w), message in messages.items() if w == v and u not in but)


def _tour(edges: Edges) -> list[tuple[int, int]]:
    """The walk from 0 around the tree and back, each edge once in each direction."""
    steps, seen = [], {0}

    def visit(u):
        for edge in edges:
            v = edge[1] if edge[0] == u else edge[0]
            if u in edge and v not in seen:
                seen.add(v)
                steps.append((u, v))
                visit(v)
                steps.append((v, u))

    visit(0)
    return steps


def _outward(edges: Edges) -> list[tuple[int, int]]:
    """Each edge as it is first crossed, away from 0."""
    first = {}
    for step in _tour(edges):
        first.setdefault(frozenset(step), step)
    return list(first.values())


def _log_pair(h: tuple[Array, ...], matrices: tuple[Array, ...], edges: Edges, epsilon: Array, i: int, j: int) -> Array:
    messages = _messages(h, matrices, edges, epsilon)
    path = _path(edges, i, j)
    joint = (h[i] + _gathered(messages, i, path[1:2]))[..., :, None] + _step(i, path[1], matrices, edges, epsilon)
    for before, v, after in zip(path, path[1:], path[2:], strict=False):
        joint = joint + (h[v] + _gathered(messages, v, (before, after)))[..., None, :]
        joint = logsumexp(joint[..., None] + _step(v, after, matrices, edges, epsilon)[..., None, :, :], axis=-2)
    return joint + (h[j] + _gathered(messages, j, path[-2:-1]))[..., None, :]


def _path(edges: Edges, i: int, j: int) -> list[int]:
    parent = {v: u for u, v in _outward(edges)}

    def to_root(v):
        return [v, *to_root(parent[v])] if v in parent else [v]

    up, down = to_root(i), to_root(j)
    meeting = next(v for v in up if v in down)
    return [*up[: up.index(meeting)], *reversed(down[: down.index(meeting) + 1])]
