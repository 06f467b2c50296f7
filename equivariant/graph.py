"""Graphs: padded edge lists with masks, from lists, from positions within a cutoff, or several structures as one.

Messages go from sender to receiver along the vector x_receiver − x_sender (+ the shift of a periodic image). Edges are
ordered by receiver, so that sums over a receiver's edges read memory once, in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from lie import check, record


@record.register("senders", "receivers", "edge_mask", "node_mask", "shifts", "overflow", "structure")
@dataclass(frozen=True)
class Graph:
    """Edges in ascending order of their receivers, padding included; `from_edges`, `radius_graph` and `batch` make it.

    Padding edges join the last node to itself with edge_mask False: every index may be used to gather. `structure` says
    which of the `structures` (molecules, cells) each node belongs to; edges never join two of them.
    """

    senders: Array  # (E,) int32
    receivers: Array  # (E,) int32
    edge_mask: Array  # (E,) bool, True for edges that exist
    node_mask: Array  # (N,) bool, True for nodes that exist
    shifts: Array  # (E, 3), in the unit of length: added to x_receiver − x_sender; 0 without a cell
    overflow: Array  # () bool: True if there were more edges than room, and so this graph lacks some
    structure: Array  # (N,) int32 in ascending order
    structures: int = 1

    @property
    def nodes(self) -> int:
        """N, with padding."""
        return self.node_mask.shape[-1]

    @property
    def edges(self) -> int:
        """E, with padding."""
        return self.edge_mask.shape[-1]


def from_edges(
    senders: ArrayLike,
    receivers: ArrayLike,
    nodes: int,
    *,
    shifts: ArrayLike | None = None,
    node_mask: ArrayLike | None = None,
    max_edges: int | None = None,
) -> Graph:
    """The graph of given edges, stably sorted by receiver and padded to `max_edges`; runs on the host.

    senders, receivers (E,) integers in [0, nodes); shifts (E, 3). Edges at masked nodes are an error. Raises TypeError
    for indices that are no integers, ValueError for unequal sizes, indices out of range, or more edges than max_edges.
    """
    nodes = check.degree("nodes", nodes)
    edges = {name: _indices(name, a, nodes) for name, a in (("senders", senders), ("receivers", receivers))}
    count = len(edges["receivers"])
    if len(edges["senders"]) != count:
        raise ValueError(f"senders: expected shape {(count,)} like receivers, got {edges['senders'].shape}")
    max_edges = count if max_edges is None else check.degree("max_edges", max_edges)
    if max_edges < count:
        raise ValueError(f"max_edges: expected at least {count}, the number of edges given, got {max_edges}")
    exists = np.ones(nodes, bool) if node_mask is None else np.asarray(node_mask)
    if exists.dtype != bool or exists.shape != (nodes,):
        raise ValueError(
            f"node_mask: expected bool with shape {(nodes,)}, got {exists.dtype} with shape {exists.shape}"
        )
    for name, index in edges.items():
        if not exists[index].all():
            raise ValueError(f"{name}: expected nodes that exist, but node_mask is False for some of them")
    offset = jnp.zeros((count, 3), jnp.float32) if shifts is None else check.array("shifts", jnp.asarray(shifts), 3)
    if offset.shape != (count, 3):
        raise ValueError(f"shifts: expected shape {(count, 3)}, one row for each edge, got {offset.shape}")
    order = np.argsort(edges["receivers"], kind="stable")
    room = (0, max_edges - count)
    last = max(nodes - 1, 0)
    return Graph(
        *(jnp.asarray(np.pad(edges[name][order], room, constant_values=last)) for name in ("senders", "receivers")),
        jnp.arange(max_edges) < count,
        jnp.asarray(exists),
        jnp.pad(offset[order], (room, (0, 0))),
        jnp.asarray(False),
        jnp.zeros(nodes, jnp.int32),
    )


def _indices(name: str, a: ArrayLike, nodes: int) -> np.ndarray:
    index = np.asarray(a)
    if index.size == 0:
        index = index.astype(np.int32)
    if not np.issubdtype(index.dtype, np.integer):
        raise TypeError(f"{name}: expected integers with shape (edges,), got {index.dtype} with shape {index.shape}")
    if index.ndim != 1:
        raise ValueError(f"{name}: expected shape (edges,), got {index.shape}")
    if index.size and (index.min() < 0 or index.max() >= nodes):
        wrong = int(np.flatnonzero((index < 0) | (index >= nodes))[0])
        raise ValueError(f"{name}: expected node numbers 0 to {nodes - 1}, got {index[wrong]} at index {wrong}")
    return index.astype(np.int32)


def vectors(graph: Graph, positions: Float[Array, "nodes 3"]) -> Float[Array, "edges 3"]:
    """x_receiver − x_sender + shift for each edge; the zero vector, with zero derivatives, for padding.

    Raises ValueError if there are not as many positions as nodes.
    """
    x = check.array("positions", positions, None, 3)
    if x.shape != (graph.nodes, 3):
        raise ValueError(f"positions: expected shape {(graph.nodes, 3)}, one row for each node, got {x.shape}")
    if graph.nodes == 0:
        return jnp.zeros((graph.edges, 3), x.dtype)
    to = x.at[graph.receivers].get(mode="clip", indices_are_sorted=True)
    difference = to - x.at[graph.senders].get(mode="clip") + graph.shifts.astype(x.dtype)
    return jnp.where(graph.edge_mask[:, None], difference, 0)


def sum_edges(graph: Graph, messages: Float[Array, "edges *rest"]) -> Float[Array, "nodes *rest"]:
    """Σ of the messages of the edges that arrive at each node; what padding carries, even NaN, is left out."""
    m = check.array("messages", messages)
    if m.ndim < 1 or m.shape[0] != graph.edges:
        raise ValueError(f"messages: expected shape {(graph.edges, '...')}, one row for each edge, got {m.shape}")
    kept = jnp.where(graph.edge_mask.reshape(-1, *[1] * (m.ndim - 1)), m, 0)
    return jax.ops.segment_sum(kept, graph.receivers, graph.nodes, indices_are_sorted=True, mode="drop")


def sum_nodes(graph: Graph, values: Float[Array, "nodes *rest"]) -> Float[Array, "structures *rest"]:
    """Σ of the values of the nodes of each structure; what padding carries, even NaN, is left out."""
    v = check.array("values", values)
    if v.ndim < 1 or v.shape[0] != graph.nodes:
        raise ValueError(f"values: expected shape {(graph.nodes, '...')}, one row for each node, got {v.shape}")
    kept = jnp.where(graph.node_mask.reshape(-1, *[1] * (v.ndim - 1)), v, 0)
    return jax.ops.segment_sum(kept, graph.structure, graph.structures, indices_are_sorted=True, mode="drop")


def batch(graphs: Graph | Sequence[Graph]) -> Graph:
    """Several graphs as one with separate structures: nodes and edges follow one another.

    `graphs` is a sequence, or one Graph whose arrays have a leading axis, as `jax.vmap` of `radius_graph` returns it
    (traceable). Concatenate per-node arrays in the same order; overflow is that of any.
    """
    if isinstance(graphs, Graph):
        if graphs.node_mask.ndim != 2:
            raise ValueError(f"graphs: expected one leading axis of graphs, got node_mask {graphs.node_mask.shape}")
        count, nodes = graphs.node_mask.shape
        number = jnp.arange(count, dtype=jnp.int32)[:, None]
        moved = replace(
            graphs,
            senders=graphs.senders + number * nodes,
            receivers=graphs.receivers + number * nodes,
            structure=graphs.structure + number * graphs.structures,
            overflow=jnp.any(graphs.overflow),
        )
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]) if a.ndim else a, moved)
        return replace(flat, structures=graphs.structures * count)
    if not graphs:
        raise ValueError("graphs: expected at least one graph, got none")
    first_node = np.cumsum([0, *(g.nodes for g in graphs)])
    first_structure = np.cumsum([0, *(g.structures for g in graphs)])
    join = lambda values: jnp.concatenate(list(values))
    return Graph(
        join(g.senders + jnp.int32(n) for g, n in zip(graphs, first_node[:-1], strict=True)),
        join(g.receivers + jnp.int32(n) for g, n in zip(graphs, first_node[:-1], strict=True)),
        join(g.edge_mask for g in graphs),
        join(g.node_mask for g in graphs),
        join(g.shifts for g in graphs),
        jnp.any(jnp.stack([g.overflow for g in graphs])),
        join(g.structure + jnp.int32(s) for g, s in zip(graphs, first_structure[:-1], strict=True)),
        int(first_structure[-1]),
    )
