"""Attention over the neighbours in a graph: invariant weights, equivariant values.

m_i = Σ_j α_ij v_ij with α_ij = softmax_j s_ij over the edges that arrive at i. Scores are invariants, inner products of
equivariant queries and keys; whatever the weights do not change under rotation, sums of values turn as values do.
"""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from equivariant import convolution, features, linear, paths, radial
from equivariant import graph as graphs
from lie import check, smooth


def softmax(
    graph: graphs.Graph,
    scores: Float[ArrayLike, "edges heads"],
    envelope: Float[ArrayLike, "edges"] | None = None,
) -> Float[Array, "edges heads"]:
    """u_e exp(s_e) / Σ u exp(s) over the edges that arrive at one node; 0 for padding and where every envelope is 0.

    The largest score of each node is subtracted first, so nothing overflows and other nodes' scores do not matter.
    With an `envelope` u >= 0 that vanishes at the cutoff a neighbour comes and goes smoothly. Derivatives of every
    order; the weights of one node sum to 1 within 4 eps for up to 64 neighbours.
    Raises ValueError or TypeError naming the argument whose shape or dtype is off.
    """
    scores = check.array("scores", scores, None)
    if scores.shape[:-1] != (graph.edges,):
        raise ValueError(f"scores: expected shape ({graph.edges}, heads), a row for each edge, got {scores.shape}")
    counts = graph.edge_mask[:, None]
    if envelope is not None:
        envelope = check.array("envelope", envelope)
        if envelope.shape != (graph.edges,):
            raise ValueError(f"envelope: expected shape ({graph.edges},), one for each edge, got {envelope.shape}")
        check.same_dtype(scores=scores, envelope=envelope)
        counts = counts & (envelope > 0)[:, None]
    if graph.nodes == 0 or graph.edges == 0:
        return jnp.zeros_like(scores)
    largest = jax.ops.segment_max(
        jnp.where(counts, jax.lax.stop_gradient(scores), -jnp.inf),
        graph.receivers,
        graph.nodes,
        indices_are_sorted=True,
    )
    shift = jnp.where(jnp.isfinite(largest), largest, 0)[graph.receivers]
    size = jnp.where(counts, jnp.exp(jnp.where(counts, scores - shift, 0)), 0)
    if envelope is not None:
        size = size * envelope[:, None]
    total = graphs.sum_edges(graph, size)[graph.receivers]
    return smooth.divide(size, total)


def attend(
    graph: graphs.Graph,
    scores: Float[ArrayLike, "edges heads"],
    values: Float[ArrayLike, "edges *rest"],
    envelope: Float[ArrayLike, "edges"] | None = None,
) -> Float[Array, "nodes *rest"]:
    """Σ_e α_e v_e at each node with the weights of `softmax`; heads share out the last axis of the values in order.

    A node without edges gets 0.
    """
    weights, values = softmax(graph, scores, envelope), check.array("values", values, None)
    heads, channels = weights.shape[-1], values.shape[-1]
    if channels % heads:
        raise ValueError(f"values: expected channels divisible by {heads} heads, got shape {values.shape}")
    check.same_dtype(scores=weights, values=values)
    per_channel = jnp.repeat(weights, channels // heads, axis=-1)
    return graphs.sum_edges(graph, per_channel.reshape(graph.edges, *[1] * (values.ndim - 2), channels) * values)


class Attention(nnx.Module):
    """`layer(x, graph, vectors, embedding, envelope)`: attention by products of queries and keys.

    q_i = W x_i, k_ij = Σ_paths w_path(r_ij) x_j ⊗ Y(r_ij) and v_ij likewise, all mixed over channels first; α_ij =
    softmax_j of q_i·k_ij/√(entries) head by head, an inner product over all degrees and the head's channels; out comes
    W' Σ_j α_ij v_ij. Keys and the weights of paths are held for each edge, values are not: α enters the weights of the
    convolution that makes and sums them (`convolution.summed`). Source: Fuchs et al. 2020, eq. 10-12.

    x (nodes, parities, (max_degree_in + 1)², channels), vectors (edges, 3) as `graph.vectors` gives them, embedding
    (edges, embedding) invariants of the edges, envelope (edges,) >= 0 that ends at the cutoff, or None. Commutes with
    O(3), with parities 1 by leaving out the paths of odd l1 + l2 + l3, which the paper has; 2 has them all.
    Unit variance in, about unit variance of the values, whose mean by the weights is smaller.
    """

    def __init__(
        self,
        max_degree_in: int,
        max_degree_out: int,
        channels: int,
        *,
        embedding: int,
        heads: int = 8,
        channels_hidden: int | None = None,
        channels_out: int | None = None,
        degree_filter: int | None = None,
        parities_in: int = 1,
        parities_out: int = 1,
        hidden: tuple[int, ...] = (32, 32),
        rngs: nnx.Rngs,
    ) -> None:
        self.layout_in = features.layout(max_degree_in, channels, parities_in)
        inner = channels if channels_hidden is None else channels_hidden
        if heads < 1 or inner % heads:
            raise ValueError(f"heads: expected a divisor of the {inner} hidden channels, got {heads}")
        self.heads, self.inner = heads, inner
        degree_filter = max_degree_in + max_degree_out if degree_filter is None else degree_filter
        meeting = min(max_degree_in, max_degree_out), min(parities_in, parities_out)
        self.keys = paths.product(max_degree_in, degree_filter, meeting[0], parities_in, meeting[1])
        self.values = paths.product(max_degree_in, degree_filter, max_degree_out, parities_in, parities_out)
        mixed = features.layout(max_degree_out, inner, parities_out)
        self.query = linear.Linear(max_degree_in, channels, inner, parities=parities_in, bias=False, rngs=rngs)
        self.mix_keys = linear.Linear(max_degree_in, channels, inner, parities=parities_in, bias=False, rngs=rngs)
        self.mix_values = linear.Linear(max_degree_in, channels, inner, parities=parities_in, bias=False, rngs=rngs)
        channels_out = channels if channels_out is None else channels_out
        self.out = linear.Linear(mixed.max_degree, inner, channels_out, parities=mixed.parities, rngs=rngs)
        sizes = [len(paths.of(product)) * inner for product in (self.keys, self.values)]
        self.radial_keys = radial.Perceptron((embedding, *hidden, sizes[0]), rngs=rngs)
        self.radial_values = radial.Perceptron((embedding, *hidden, sizes[1]), rngs=rngs)

    def __call__(
        self,
        x: Float[ArrayLike, "_nodes _parities _orders _channels"],
        graph: graphs.Graph,
        vectors: Float[ArrayLike, "_edges 3"],
        embedding: Float[ArrayLike, "_edges _size"],
        envelope: Float[ArrayLike, "_edges"] | None = None,
    ) -> Float[Array, "nodes parities_out orders_out channels_out"]:
        x = features.array("x", x, **self.layout_in._asdict())
        vectors = check.array("vectors", vectors, 3)
        embedding = check.array("embedding", embedding, self.radial_keys.kernels[0].shape[0])
        check.same_dtype(x=x, vectors=vectors, embedding=embedding)
        weights = softmax(graph, self.scores(x, graph, vectors, embedding), envelope)
        by_path = self._by_path(self.radial_values, self.values, embedding)
        by_path = by_path * jnp.repeat(weights, self.inner // self.heads, axis=-1)[:, None, :]
        return self.out(convolution.summed(self.values, self.mix_values(x), graph, vectors, by_path))

    def scores(
        self,
        x: Float[Array, "_nodes _parities _orders _channels"],
        graph: graphs.Graph,
        vectors: Float[Array, "_edges 3"],
        embedding: Float[Array, "_edges _size"],
    ) -> Float[Array, "edges heads"]:
        """q_i·k_ij/√(entries) of every edge and head; the keys are a convolution in which each edge has a receiver."""
        if graph.edges == 0:
            return jnp.zeros((0, self.heads), x.dtype)
        own = jnp.arange(graph.edges, dtype=jnp.int32)
        alone = replace(graph, senders=own, receivers=own, node_mask=graph.edge_mask, structure=jnp.zeros_like(own))
        by_path = self._by_path(self.radial_keys, self.keys, embedding)
        keys = convolution.summed(self.keys, self.mix_keys(x)[graph.senders], alone, vectors, by_path)
        parities, orders = keys.shape[1:3]
        queries = self.query(x)[:, :parities, :orders][graph.receivers]
        products = jnp.sum(queries * keys, axis=(1, 2)).reshape(graph.edges, self.heads, -1)
        return jnp.sum(products, axis=-1) / math.sqrt(parities * orders * products.shape[-1])

    def _by_path(self, function: radial.Perceptron, product: paths.Product, embedding: Array) -> Array:
        """(edges, paths, channels), over the root of the number of paths that lead to each degree: unit variance."""
        every = paths.of(product)
        leading = np.array([sum(other.out == path.out for other in every) for path in every], np.float64)
        weights = radial.perceptron(tuple(w.astype(embedding.dtype) for w in function.weights()), embedding)
        return weights.reshape(-1, len(every), self.inner) * (leading**-0.5)[:, None].astype(embedding.dtype)
