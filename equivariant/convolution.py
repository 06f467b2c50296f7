"""Convolution over the edges of a graph: features times harmonics of the edge, weighted by its length, summed.

m_i = Σ_j Σ_paths w_path(r_ij) (x_j ⊗_path Y(r_ij)). Two semantics: "summed" adds the paths that lead to one degree, as
e3x and eSCN do; "kept" holds them apart for a matrix over paths and channels, as NequIP and MACE do.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from equivariant import aligned, coupled, edge_blocks, features, paths, radial
from equivariant import graph as graphs
from lie import check


def summed(
    product: paths.Product,
    x: Float[ArrayLike, "_nodes _parities _orders _channels"],
    graph: graphs.Graph,
    vectors: Float[ArrayLike, "_edges 3"],
    weights: Float[ArrayLike, "_edges _paths _channels"],
    *,
    block_edges: int | None = None,
) -> Float[Array, "nodes parities_out orders_out channels"]:
    """Σ over edges and paths, `weights` in the order of `paths.of(product)`: e3nn's tensor product, summed over paths.

    In the frame of the edge (`aligned`): work grows as max_degree³, not ⁶. An edge of no length has Y_0 alone. Exact
    derivatives of first and second order for every direction, the polar axis included. Error of equivariance in
    float32, largest of 32 rotations and reflections: 4e-7 of the largest value up to max_degree 8. `block_edges` edges
    are in flight at once; by default what fits the cache.
    Raises ValueError or TypeError naming the argument whose shape or dtype is off.
    Source: Passaro and Zitnick 2023, eq. 3-6; the derivative is ours.
    """
    x, vectors, weights = _checked(product, x, graph, vectors, weights)
    (total,) = _total(aligned.PathsSummed(), product, None, x, graph, vectors, weights, (), block_edges)
    return total[:-1]


def kept(
    product: paths.Product,
    x: Float[ArrayLike, "_nodes _parities _orders _channels"],
    graph: graphs.Graph,
    vectors: Float[ArrayLike, "_edges 3"],
    weights: Float[ArrayLike, "_edges _paths _channels"],
    *,
    block_edges: int | None = None,
) -> tuple[tuple[Float[Array, "nodes orders paths channels"], ...], ...]:
    """Σ over edges, path by path: [parity][degree] -> (nodes, 2·degree + 1, paths that lead there, channels).

    Paths stand in the order of `paths.of(product)`: with one parity it is e3nn-jax's. Otherwise as `summed`.
    """
    x, vectors, weights = _checked(product, x, graph, vectors, weights)
    sums = _total(coupled.PathsKept(), product, None, x, graph, vectors, weights, (), block_edges)
    return coupled.gather(product, tuple(total[:-1] for total in sums))


class Convolution(nnx.Module):
    """`layer(x, graph, vectors, embedding)`: convolution whose weights a radial perceptron makes, inside each block.

    x (nodes, parities_in, (max_degree_in + 1)², channels); vectors (edges, 3) as `graph.vectors` gives them; embedding
    (edges, embedding) invariants of the edges that vanish at the cutoff: radial basis times cutoff, further scalars.
    Out come features of max_degree_out and parities_out: with semantics "kept" of `channels_out` channels, mixed by a
    matrix over paths and channels; with "summed" of the same channels. `extra_scalars` (only "kept") asks for as many
    further true scalars, made in the same way, and returns (features, (nodes, extra_scalars)): gates.

    Weights are from N(0, 1), products divided by √fan-in: x and embeddings of unit variance send messages of unit
    variance along each edge, and the sum is divided by √`neighbors`, their mean number.
    """

    def __init__(
        self,
        max_degree_in: int,
        max_degree_out: int,
        channels: int,
        *,
        embedding: int,
        semantics: str = "kept",
        channels_out: int | None = None,
        degree_filter: int | None = None,
        parities_in: int = 1,
        parities_out: int = 1,
        hidden: Sequence[int] = (64, 64),
        extra_scalars: int = 0,
        neighbors: float = 1.0,
        rngs: nnx.Rngs,
    ) -> None:
        if semantics not in ("summed", "kept"):
            raise ValueError(f"semantics: expected 'summed' or 'kept', got {semantics!r}")
        if semantics == "summed" and (channels_out not in (None, channels) or extra_scalars):
            raise ValueError("channels_out, extra_scalars: only semantics='kept' mixes channels; follow by a Linear")
        if not neighbors > 0:
            raise ValueError(f"neighbors: expected a positive number, got {neighbors!r}")
        degree_filter = max(max_degree_in, max_degree_out) if degree_filter is None else degree_filter
        self.product = paths.product(max_degree_in, degree_filter, max_degree_out, parities_in, parities_out)
        self.layout_in = features.layout(max_degree_in, channels, parities_in)
        channels_out = channels if channels_out is None else channels_out
        self.layout_out = features.layout(max_degree_out, channels_out, parities_out)
        self.semantics, self.neighbors, self.extra_scalars = semantics, float(neighbors), extra_scalars
        every = paths.of(self.product)
        self.radial = radial.Perceptron((embedding, *hidden, len(every) * channels), rngs=rngs)
        if semantics == "kept":
            self.mixing = nnx.List([])
            for p, l in self._targets():
                columns = channels_out + (extra_scalars if (p, l) == (0, 0) else 0)
                shape = (channels * _leading_to(every, l, p), columns)
                self.mixing.append(nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32)))

    def __call__(
        self,
        x: Float[ArrayLike, "_nodes _parities _orders _channels"],
        graph: graphs.Graph,
        vectors: Float[ArrayLike, "_edges 3"],
        embedding: Float[ArrayLike, "_edges _size"],
        *,
        block_edges: int | None = None,
    ) -> Any:
        embedding = check.array("embedding", embedding, self.radial.kernels[0].shape[0])
        x, vectors, embedding = _checked(self.product, x, graph, vectors, embedding, "embedding")
        x = features.array("x", x, **self.layout_in._asdict())
        weights = tuple(w.astype(x.dtype) for w in self.radial.weights())
        channels, every = x.shape[-1], paths.of(self.product)
        kernel: edge_blocks.Kernel = coupled.PathsKept()
        if self.semantics == "summed":
            kernel = aligned.PathsSummed()
            share = np.array([1 / math.sqrt(self.neighbors * _leading_to(every, *p.out)) for p in every])
            # The last matrix takes the scale, once, not every edge.
            weights = (*weights[:-1], weights[-1] * np.repeat(share, channels).astype(x.dtype))

        def weigh(weights, _, block):
            return radial.perceptron(weights, block).reshape(-1, len(every), channels)

        sums = _total(kernel, self.product, weigh, x, graph, vectors, embedding, weights, block_edges)
        if self.semantics == "summed":
            return sums[0][:-1]
        return self._mixed(coupled.gather(self.product, tuple(total[:-1] for total in sums)))

    def _mixed(self, by_path: tuple[tuple[Array, ...], ...]) -> Any:
        blocks = []
        for (p, l), matrix in zip(self._targets(), self.mixing, strict=True):
            part = by_path[p][l]
            scale = 1 / math.sqrt(max(1, matrix.shape[0]) * self.neighbors)
            flat = part.reshape(*part.shape[:2], math.prod(part.shape[2:]))
            blocks.append(flat @ (matrix[...].astype(part.dtype) * scale))
        parities, orders, channels = self.layout_out.shape
        blocks[0], extra = blocks[0][..., :channels], blocks[0][:, 0, channels:]
        y = jnp.concatenate(blocks, axis=1).reshape(blocks[0].shape[0], parities, orders, channels)
        return (y, extra) if self.extra_scalars else y

    def _targets(self) -> list[tuple[int, int]]:
        degrees = range(self.layout_out.max_degree + 1)
        return [(p, l) for p in range(self.layout_out.parities) for l in degrees]


def _leading_to(every: tuple[paths.Path, ...], degree: int, parity: int) -> int:
    return sum(path.out == (degree, parity) for path in every)


def _total(
    kernel: edge_blocks.Kernel,
    product: paths.Product,
    weigh: Callable[[Any, Array, Any], Array] | None,
    x: Array,
    graph: graphs.Graph,
    vectors: Array,
    edge_data: Array,
    parameters: Any,
    block_edges: int | None,
) -> tuple[Array, ...]:
    receivers = jnp.where(graph.edge_mask, graph.receivers, x.shape[0])
    return edge_blocks.total(
        kernel, product, weigh, x, vectors, edge_data, parameters, graph.senders, receivers, block_edges
    )


def _checked(product, x, graph, vectors, per_edge, name="weights") -> tuple[Array, Array, Array]:
    x = features.array("x", x, max_degree=product.degree_in, parities=product.parities_in)
    if x.ndim != 4:
        raise ValueError(f"x: expected features of one graph, (nodes, parities, orders, channels), got {x.shape}")
    vectors = check.array("vectors", vectors, 3)
    sizes = (len(paths.of(product)), x.shape[-1]) if name == "weights" else (None,)
    per_edge = check.array(name, per_edge, *sizes)
    edges = graph.senders.shape[0]
    for argument, a in (("vectors", vectors), (name, per_edge)):
        if a.shape[0] != edges or a.ndim != (2 if argument == "vectors" else 1 + len(sizes)):
            raise ValueError(f"{argument}: expected one row for each of the graph's {edges} edges, got {a.shape}")
    if graph.node_mask.shape[0] != x.shape[0]:
        raise ValueError(f"x: expected one row for each of the graph's {graph.node_mask.shape[0]} nodes, got {x.shape}")
    check.same_dtype(x=x, vectors=vectors, **{name: per_edge})
    return x, vectors, per_edge
