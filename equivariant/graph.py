"""Graphs: padded edge lists with masks, from lists, from positions within a cutoff, or several structures as one.

Messages go from sender to receiver along the vector x_receiver − x_sender (+ the shift of a periodic image). Edges are
ordered by receiver, so that sums over a receiver's edges read memory once, in order.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float
from numpy.typing import ArrayLike

from lie import check, elementwise, record, smooth


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
    senders, receivers = _indices("senders", senders, nodes), _indices("receivers", receivers, nodes)
    count = len(receivers)
    if len(senders) != count:
        raise ValueError(f"senders: expected shape {(count,)} like receivers, got {senders.shape}")
    max_edges = count if max_edges is None else check.degree("max_edges", max_edges)
    if max_edges < count:
        raise ValueError(f"max_edges: expected at least {count}, the number of edges given, got {max_edges}")
    exists = np.ones(nodes, bool) if node_mask is None else np.asarray(node_mask)
    if exists.dtype != bool or exists.shape != (nodes,):
        raise ValueError(
            f"node_mask: expected bool with shape {(nodes,)}, got {exists.dtype} with shape {exists.shape}"
        )
    for name, index in (("senders", senders), ("receivers", receivers)):
        if not exists[index].all():
            raise ValueError(f"{name}: expected nodes that exist, but node_mask is False for some of them")
    offset = jnp.zeros((count, 3), jnp.float32) if shifts is None else check.array("shifts", jnp.asarray(shifts), 3)
    if offset.shape != (count, 3):
        raise ValueError(f"shifts: expected shape {(count, 3)}, one row for each edge, got {offset.shape}")
    order = np.argsort(receivers, kind="stable")
    room = (0, max_edges - count)
    fill = lambda index: jnp.asarray(np.pad(index[order], room, constant_values=max(nodes - 1, 0)))
    return Graph(
        fill(senders),
        fill(receivers),
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
    kept = _kept("messages", messages, graph.edge_mask)
    return jax.ops.segment_sum(kept, graph.receivers, graph.nodes, indices_are_sorted=True, mode="drop")


def sum_nodes(graph: Graph, values: Float[Array, "nodes *rest"]) -> Float[Array, "structures *rest"]:
    """Σ of the values of the nodes of each structure; what padding carries, even NaN, is left out."""
    kept = _kept("values", values, graph.node_mask)
    return jax.ops.segment_sum(kept, graph.structure, graph.structures, indices_are_sorted=True, mode="drop")


def _kept(name: str, rows: Array, mask: Array) -> Array:
    if rows.shape[:1] != mask.shape:
        raise ValueError(f"{name}: expected shape ({len(mask)}, ...), one row for each entry, got {rows.shape}")
    return check.array(name, jnp.where(mask.reshape(-1, *[1] * (rows.ndim - 1)), rows, jnp.zeros((), rows.dtype)))


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


def radius_graph(
    positions: Float[Array, "nodes 3"],
    cutoff: float | Float[Array, ""],
    cell: ArrayLike | None = None,
    *,
    periodic: bool | Sequence[bool] = True,
    mask: Bool[Array, "nodes"] | None = None,
    max_edges: int | None = None,
    images: Sequence[int] | None = None,
) -> Graph:
    """All edges with |x_receiver − x_sender + shift| < cutoff, ordered by receiver, then sender, then image.

    The rows of `cell` span it; any shape will do, and a cutoff larger than the cell: then atoms also neighbour their
    own images. `periodic` says which rows repeat (all; without a cell, none); rows that do not are ignored. `mask` is
    False for padding. Coincident atoms are neighbours with the zero vector. Edges are chosen, not differentiated:
    positions enter again through `vectors`, and so do cells through `vectors` under a strain (`potential.forces`).
    Outside jit: `max_edges` defaults to the number of edges; a ValueError gives that number where max_edges is smaller,
    or names an argument with NaN. Under jit: max_edges is needed (ValueError), and `images`, how many periodic images
    to look at on either side, max(⌊cutoff/height + 1/2⌋) over the cells (default 1, enough for cutoffs below 1.5
    heights of the cell; worked out where the cell is concrete); `overflow` is True if either was too small. A NaN
    neighbours all, so that it shows.
    Pairs are examined in blocks of 2^18: n²/4 bytes of memory in all, and 4 n² where a pair has 27 images.
    """
    x = check.array("positions", positions, 3)
    if x.ndim != 2:
        raise ValueError(f"positions: expected shape (nodes, 3), got {x.shape}; use jax.vmap, then graph.batch")
    n = x.shape[0]
    exists = jnp.ones(n, bool) if mask is None else jnp.asarray(mask)
    if exists.dtype != bool or exists.shape != (n,):
        raise ValueError(f"mask: expected bool with shape {(n,)}, got {exists.dtype} with shape {exists.shape}")
    axes = (periodic,) * 3 if isinstance(periodic, bool) else tuple(bool(axis) for axis in periodic)
    if len(axes) != 3:
        raise ValueError(f"periodic: expected one bool or three, got {len(axes)}")
    cell = None if cell is None else check.array("cell", jnp.asarray(cell, x.dtype), 3, 3)
    axes = (False,) * 3 if cell is None else axes
    reach = jnp.asarray(cutoff, x.dtype)
    box, dual, needed = _geometry(cell, reach, axes)
    if images is None:
        images = (1, 1, 1) if isinstance(needed, Tracer) else tuple(_whole("cell", size) for size in np.asarray(needed))
    near = tuple(check.degree("images", size) if axis else 0 for size, axis in zip(images, axes, strict=True))
    lacking = jnp.any(needed > np.array(near, needed.dtype))
    x, box, dual, reach = jax.lax.stop_gradient((x, box, dual, reach))
    words, fractional = _adjacency(x, box, dual, exists, reach, axes, near)

    if not isinstance(words, Tracer):
        for name, a in (("positions", x), ("cell", box), ("cutoff", reach)):
            if not bool(jnp.all(jnp.isfinite(a))):
                raise ValueError(f"{name}: expected only finite values, got NaN or infinity")
        if bool(lacking):
            raise ValueError(f"images: expected at least {tuple(np.asarray(needed, int).tolist())}, got {near}")
        found = int(jnp.sum(jax.lax.population_count(words)))
        max_edges = found if max_edges is None else check.degree("max_edges", max_edges)
        if found > max_edges:
            raise ValueError(f"max_edges: expected at least {found}, the number of edges found, got {max_edges}")
    elif max_edges is None:
        raise ValueError("max_edges: expected an int under jit, where the number of edges must be known, got None")
    return _collect(words, fractional, box, exists, lacking, near, max_edges)


_PAIRS_AT_ONCE = 2**18


@partial(jax.jit, static_argnames="axes")
def _geometry(cell, reach, axes) -> tuple[Array, Array, Array]:
    """The cell with every row given, its dual, and how many images either way can come within reach."""
    box = jnp.eye(3, dtype=reach.dtype) if cell is None else _complete(cell, axes)
    dual = _dual(box)
    return box, dual, jnp.where(np.array(axes), jnp.floor(reach * smooth.norm(dual) + 0.5), 0)


@partial(jax.jit, static_argnames=("axes", "near"))
def _adjacency(x, box, dual, exists, reach, axes, near) -> tuple[Array, Array]:
    """One bit for each (receiver, sender, image) within reach, as words of 32 bits by row; and fractional positions.

    Differences are first brought to the nearest image in fractional coordinates f, |f_i| <= 1/2; as |r| >= |f_i| times
    the cell's height, images further than reach/height + 1/2 are out of reach, whatever the cell's shape.
    """
    n, offsets = x.shape[0], _offsets(near)
    fractional = elementwise.stored(jnp.where(np.array(axes), elementwise.matvec(dual, x), 0))
    steps = elementwise.matmul(jnp.asarray(offsets, x.dtype), box)  # (images, 3)
    width = -(-n * len(offsets) // 32)
    rows = max(1, min(n, _PAIRS_AT_ONCE // max(1, n * len(offsets))))
    blocks = -(-n // rows)
    at_home = (offsets == 0).all(axis=1)

    def block(first: Array) -> Array:
        row = jnp.minimum(first + jnp.arange(rows, dtype=jnp.int32), n - 1)
        home = jnp.round(fractional[row][:, None] - fractional)
        base = (x[row][:, None] - x) - elementwise.matmul(home, box)
        squared = sum((base[..., c, None] + steps[:, c]) ** 2 for c in range(3))
        itself = (row[:, None] == jnp.arange(n, dtype=jnp.int32))[..., None] & at_home
        # Not "squared < reach²": a NaN must not vanish without a trace.
        near_enough = ~(squared >= reach * reach) & ~itself & (exists[row][:, None] & exists)[..., None]
        bits = jnp.pad(near_enough.reshape(rows, -1), ((0, 0), (0, width * 32 - n * len(offsets))))
        weights = np.uint32(1) << np.arange(32, dtype=np.uint32)
        return jnp.sum(jnp.where(bits.reshape(rows, width, 32), weights, np.uint32(0)), axis=-1, dtype=jnp.uint32)

    if n == 0:
        return jnp.zeros((0, 0), jnp.uint32), fractional
    words = jax.lax.map(block, jnp.arange(blocks, dtype=jnp.int32) * rows)
    return words.reshape(blocks * rows, width)[:n], fractional


@partial(jax.jit, static_argnames=("near", "max_edges"))
def _collect(words, fractional, box, exists, lacking, near, max_edges) -> Graph:
    """The set bits in order: the e-th lies in the word where the running count passes e, found by bisection."""
    n, offsets = exists.shape[0], _offsets(near)
    last = jnp.full(max_edges, max(n - 1, 0), jnp.int32)
    if words.size == 0 or max_edges == 0:
        found, present = jnp.sum(jax.lax.population_count(words).astype(jnp.int32)), jnp.zeros(max_edges, bool)
        senders, receivers, shifts = last, last, jnp.zeros((max_edges, 3), box.dtype)
    else:
        flat = words.reshape(-1)
        total = jnp.cumsum(jax.lax.population_count(flat).astype(jnp.int32))
        found, slot = total[-1], jnp.arange(max_edges, dtype=jnp.int32)
        present = slot < found
        at = jnp.minimum(jnp.searchsorted(total, slot, side="right").astype(jnp.int32), flat.size - 1)
        word = flat[at]
        rank = slot - (total[at] - jax.lax.population_count(word).astype(jnp.int32))
        bit = jnp.zeros_like(slot)
        for half in (16, 8, 4, 2, 1):
            low = word & np.uint32((1 << half) - 1)
            below = jax.lax.population_count(low).astype(jnp.int32)
            above = rank >= below
            rank, bit = jnp.where(above, rank - below, rank), jnp.where(above, bit + half, bit)
            word = jnp.where(above, word >> np.uint32(half), low)
        column = (at % words.shape[1]) * 32 + bit
        receivers = jnp.where(present, at // words.shape[1], last)
        senders = jnp.where(present, jnp.minimum(column // len(offsets), n - 1), last)
        home = jnp.round(fractional[receivers] - fractional[senders])
        image = jnp.asarray(offsets, box.dtype)[column % len(offsets)] - home
        shifts = jnp.where(present[:, None], elementwise.matvec(box.T, image), 0)
    return Graph(senders, receivers, present, exists, shifts, (found > max_edges) | lacking, jnp.zeros(n, jnp.int32))


def _offsets(near: tuple[int, ...]) -> np.ndarray:
    """(images, 3): whole numbers of cells, in lexicographic order."""
    return np.stack(np.meshgrid(*(np.arange(-k, k + 1) for k in near), indexing="ij"), axis=-1).reshape(-1, 3)


def _whole(name: str, size: np.floating) -> int:
    if not np.isfinite(size):
        raise ValueError(f"{name}: expected finite rows that span a volume, got a degenerate cell, NaN or infinity")
    return int(size)


def _dual(box: Array) -> Array:
    """The inverse transpose, by cross products: row i is 1/height along the normal to the other two rows."""
    a, b, c = box[0], box[1], box[2]
    normals = jnp.stack([elementwise.cross(b, c), elementwise.cross(c, a), elementwise.cross(a, b)])
    return normals / elementwise.dot(a, normals[0])


def _complete(cell: Array, axes: tuple[bool, ...]) -> Array:
    """The cell with unit vectors, orthogonal to the periodic rows, in place of the others."""
    if all(axes) or not any(axes):
        return cell if all(axes) else jnp.eye(3, dtype=cell.dtype)
    first = axes.index(True)
    if sum(axes) == 2:
        odd = axes.index(False)
        normal = elementwise.cross(cell[odd - 2], cell[odd - 1])
        return cell.at[odd].set(normal / smooth.norm(normal))
    a = cell[first]
    least = jnp.eye(3, dtype=cell.dtype)[jnp.argmin(jnp.abs(a))]
    b = elementwise.cross(a, least)
    b = b / smooth.norm(b)
    c = elementwise.cross(a, b)
    return cell.at[first - 2].set(b).at[first - 1].set(c / smooth.norm(c))
