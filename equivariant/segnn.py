"""SEGNN: messages and updates are products with the geometry at hand, steerable vectors of edges and nodes.

Every layer of an ordinary message-passing network, x -> silu(W x + b), becomes x -> gate(W (x ⊗ a) + b): the features
times an attribute a, the harmonics of an edge's direction or of a node's velocity, mixed over all channels and paths.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from equivariant import activation, egnn, features, paths
from equivariant import graph as graphs
from equivariant.features import Layout
from lie import check


class Exchange(NamedTuple):
    """How values at nodes reach edges and messages reach nodes."""

    receivers: Callable[[Array], Array]
    senders: Callable[[Array], Array]
    total: Callable[[Array], Array]


def all_pairs() -> Exchange:
    """Every node hears all others: nodes (n, ...), edges (n, n − 1, ...), by slices, without a gather or a scatter."""
    return Exchange(lambda x: x[:, None], egnn.others, lambda m: jnp.sum(m, axis=1))


def along(graph: graphs.Graph) -> Exchange:
    """The edges of a graph: nodes (N, ...), edges (E, ...)."""
    return Exchange(
        lambda x: x.at[graph.receivers].get(mode="clip", indices_are_sorted=True),
        lambda x: x.at[graph.senders].get(mode="clip"),
        lambda m: graphs.sum_edges(graph, m),
    )


def balanced_channels(max_degree: int, attribute_degree: int, hidden: int) -> int:
    """Channels per degree with which a product has as many weights as a hidden x hidden matrix, or just more.

    The paper's "weight balanced" choice: 32 of degrees 0 and 1 for 64 hidden features, 20 of degrees 0, 1 and 2.
    """
    found = paths.between(Layout(max_degree, 1), Layout(attribute_degree, 1), max_degree)
    return math.isqrt(max(hidden**2 - 1, 0) // len(found)) + 1


class SEGNN(nnx.Module):
    """`model(x, node_attributes, edge_attributes, scalars, graph)`: features x of layout_in, (nodes, *batch, ...).

    Attributes (nodes or edges, *batch, 1, (attribute_degree + 1)², 1) are harmonics, scalars (edges, *batch, scalars)
    invariants of the edges. `graph` gives edges (E,) and no batch; None means all pairs, edges (n, n − 1, *batch) as
    `egnn.others` orders them. The result is of layout_out at each node. True tensors only.

    Defaults are those of the charged N-body problem: 4 layers of degree 1 with 64 hidden features, that is 32 channels
    of each degree; 147 553 parameters, where the published code has 147 424: its multiplicities differ between degrees
    in what goes in (1x0e + 2x1o) and comes out (1x1o). Raises ValueError or TypeError naming the argument whose shape
    or dtype is off.
    Source: Brandstetter et al. 2022, section 3; initial weights and gates as in the published code.
    """

    def __init__(
        self,
        layout_in: Layout = Layout(1, 2),  # noqa: B008  an immutable record
        layout_out: Layout = Layout(1, 1),  # noqa: B008
        *,
        max_degree: int = 1,
        attribute_degree: int = 1,
        hidden: int = 64,
        layers: int = 4,
        scalars: int = 2,
        rngs: nnx.Rngs,
    ) -> None:
        inside = features.layout(max_degree, balanced_channels(max_degree, attribute_degree, hidden))
        self.layout_in, self.layout_out = features.layout(*layout_in), features.layout(*layout_out)
        if (self.layout_in.parities, self.layout_out.parities) != (1, 1):
            raise ValueError(f"layout_in, layout_out: expected true tensors only, got {layout_in} and {layout_out}")
        self.attributes, self.scalars = features.layout(attribute_degree, 1), scalars
        make = lambda before, after, gated: _Steered(before, after, attribute_degree, gated, rngs)
        double = inside._replace(channels=2 * inside.channels)
        self.embed = make(self.layout_in, inside, False)
        self.messages = nnx.List([_FirstMessage(inside, attribute_degree, scalars, rngs) for _ in range(layers)])
        self.messages_2 = nnx.List([make(inside, inside, True) for _ in range(layers)])
        self.updates = nnx.List([make(double, inside, True) for _ in range(layers)])
        self.updates_2 = nnx.List([make(inside, inside, False) for _ in range(layers)])
        self.decode = make(inside, inside, True)
        self.decode_2 = make(inside, self.layout_out, False)

    def __call__(
        self,
        x: Float[ArrayLike, "nodes *batch 1 orders channels"],
        node_attributes: Float[ArrayLike, "nodes *batch 1 attribute_orders 1"],
        edge_attributes: Float[ArrayLike, "*edges 1 attribute_orders 1"],
        scalars: Float[ArrayLike, "*edges scalars"],
        graph: graphs.Graph | None = None,
    ) -> Float[Array, "nodes *batch 1 orders_out channels_out"]:
        x = features.array("x", x, **self.layout_in._asdict())
        if x.ndim < 4:
            raise ValueError(f"x: expected features of nodes, (nodes, ..., 1, orders, channels), got {x.shape}")
        n, *batch = x.shape[:-3]
        edges = (n, max(n - 1, 0), *batch) if graph is None else (graph.edges,)
        if graph is not None and (batch or graph.nodes != n):
            raise ValueError(f"x: expected one row for each of the graph's {graph.nodes} nodes, got {x.shape}")
        attributes = self.attributes.shape
        a = _like("node_attributes", node_attributes, (n, *batch, *attributes))[..., 0, :, 0]
        b = _like("edge_attributes", edge_attributes, (*edges, *attributes))[..., 0, :, 0]
        s = _like("scalars", scalars, (*edges, self.scalars))
        check.same_dtype(x=x, node_attributes=a, edge_attributes=b, scalars=s)
        if n == 0:
            return jnp.zeros((0, *batch, *self.layout_out.shape), x.dtype)
        exchange = all_pairs() if graph is None else along(graph)
        h = self.embed(x[..., 0, :, :], a)
        stacks = (self.messages, self.messages_2, self.updates, self.updates_2)
        for message, message_2, update, update_2 in zip(*stacks, strict=True):
            m = message_2(message(h, s, b, exchange), b)
            h = h + update_2(update(jnp.concatenate([h, exchange.total(m)], axis=-1), a), a)
        return self.decode_2(self.decode(h, a), a)[..., None, :, :]


class _Steered(nnx.Module):
    """x ⊗ a mixed over paths and channels, a bias on scalars; gated by scalars of its own. No axis of parities here."""

    def __init__(self, before: Layout, after: Layout, attribute_degree: int, gated: bool, rngs: nnx.Rngs) -> None:
        found = paths.between(before, Layout(attribute_degree, 1), after.max_degree)
        self.before, self.after, self.attribute_degree, self.gated = before, after, attribute_degree, gated
        self.weights, fan_in = nnx.List([]), []
        for l in range(after.max_degree + 1):
            leading = sum(p.out[0] == l for p in found)
            fan_in.append(max(leading * before.channels, 1))
            shape = (leading, before.channels, self.columns(l))
            self.weights.append(nnx.Param(_uniform(rngs, shape, fan_in[-1])))
        self.bias = nnx.Param(_uniform(rngs, (self.columns(0),), fan_in[0]))

    def columns(self, degree: int) -> int:
        return self.after.channels * (1 if degree or not self.gated else 1 + self.after.max_degree)

    def __call__(self, x: Array, a: Array) -> Array:
        found = paths.between(self.before, Layout(self.attribute_degree, 1), self.after.max_degree)
        blocks = []
        for l, weight in enumerate(self.weights):
            w = weight[...].astype(x.dtype)
            parts = [_steer(p, x[..., p.x[0] ** 2 : (p.x[0] + 1) ** 2, :], a) for p in found if p.out[0] == l]
            joined = jnp.concatenate(parts, axis=-1)
            rows, terms = math.prod(joined.shape[:-1]), joined.shape[-1]
            flat = joined.reshape(rows, terms) @ w.reshape(terms, w.shape[-1])
            blocks.append(flat.reshape(*joined.shape[:-1], w.shape[-1]))
        return _finish(blocks, self.bias[...].astype(x.dtype), self.after, self.gated)


class _FirstMessage(nnx.Module):
    """gate(W ((h_i, h_j, s_ij) ⊗ a_ij) + b), W applied at the nodes, of which there are fewer than edges."""

    def __init__(self, inside: Layout, attribute_degree: int, scalars: int, rngs: nnx.Rngs) -> None:
        self.inside, self.attribute_degree = inside, attribute_degree
        self.receiver, self.sender, self.scalar = nnx.List([]), nnx.List([]), nnx.List([])
        found = self._paths()
        fan_in = [
            sum(2 * inside.channels + (scalars if p.x[0] == 0 else 0) for p in found if p.out[0] == l)
            for l in range(inside.max_degree + 1)
        ]
        for p in found:
            columns = inside.channels * (1 if p.out[0] else 1 + inside.max_degree)
            for matrices in (self.receiver, self.sender):
                matrices.append(nnx.Param(_uniform(rngs, (inside.channels, columns), fan_in[p.out[0]])))
            if p.x[0] == 0:
                self.scalar.append(nnx.Param(_uniform(rngs, (scalars, columns), fan_in[p.out[0]])))
        self.bias = nnx.Param(_uniform(rngs, (inside.channels * (1 + inside.max_degree),), fan_in[0]))

    def _paths(self) -> tuple[paths.Path, ...]:
        return paths.between(self.inside, Layout(self.attribute_degree, 1), self.inside.max_degree)

    def __call__(self, h: Array, s: Array, a: Array, exchange: Exchange) -> Array:
        found, scalar = self._paths(), iter(self.scalar)
        sums: dict[int, list[Array]] = {}
        for p, receiver, sender in zip(found, self.receiver, self.sender, strict=True):
            part = h[..., p.x[0] ** 2 : (p.x[0] + 1) ** 2, :]
            both = jnp.concatenate([receiver[...], sender[...]], axis=1).astype(h.dtype)
            at_receiver, at_sender = jnp.split(part @ both, 2, axis=-1)
            total = exchange.receivers(at_receiver) + exchange.senders(at_sender)
            if p.x[0] == 0:
                matrix = next(scalar)[...].astype(h.dtype)
                for k in range(
                    matrix.shape[0]
                ):  # elementwise: a product with so few columns would only be copied about
                    total = total + s[..., None, k : k + 1] * matrix[k]
            sums.setdefault(p.out[0], []).append(_steer(p, total, a))
        blocks = [sum(sums[l][1:], sums[l][0]) for l in range(self.inside.max_degree + 1)]
        return _finish(blocks, self.bias[...].astype(h.dtype), self.inside, True)


def _steer(path: paths.Path, x: Array, a: Array) -> Array:
    """√(2·l3 + 1) Σ_ij C[i, j, k] x_i a_j, (..., 2·l3 + 1, channels), term by term: few, and fused into one loop."""
    table = paths.coupling(path)
    first = path.y[0] ** 2
    rows = []
    for k in range(table.shape[2]):
        terms = [
            x[..., i, :] * (a[..., first + j, None] * np.asarray(table[i, j, k], x.dtype))
            for i, j in zip(*np.nonzero(np.abs(table[:, :, k]) > 1e-12), strict=True)
        ]
        rows.append(sum(terms[1:], terms[0]))
    return jnp.stack(rows, axis=-2)


def _finish(blocks: list[Array], bias: Array, after: Layout, gated: bool) -> Array:
    blocks[0] = blocks[0] + bias
    gates = blocks[0][..., 0, after.channels :]
    blocks[0] = blocks[0][..., : after.channels]
    y = jnp.concatenate(blocks, axis=-2)
    return activation.gate(y[..., None, :, :], gates)[..., 0, :, :] if gated else y


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], fan_in: int) -> Array:
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(rngs.params(), shape, jnp.float32, minval=-bound, maxval=bound)


def _like(name: str, a: ArrayLike, shape: tuple[int, ...]) -> Array:
    a = check.array(name, a)
    if a.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {a.shape}")
    return a
