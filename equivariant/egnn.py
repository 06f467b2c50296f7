"""EGNN: graph network on all pairs of a small system, equivariant under E(n) and permutations (Satorras et al. 2021).

Messages see only invariants, |x_i − x_j|²; positions move along differences x_i − x_j and velocities. The space may
have any dimension: nothing below knows that it is three.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from lie import check


class Output(NamedTuple):
    """`features`: invariant, (*batch, n, hidden); `position`: equivariant, (*batch, n, dimension)."""

    features: Array
    position: Array


class Weights(NamedTuple):
    """One layer; matrices are (in, out). The first edge matrix is cut by what it multiplies: see `message_passing`."""

    receiver: Array  # (hidden, hidden): h_i
    sender: Array  # (hidden, hidden): h_j
    pair: Array  # (1 + edge features, hidden): |x_i − x_j|² and the given edge features
    edge_bias: Array
    edge: Array
    edge_bias_2: Array
    coordinate: Array
    coordinate_bias: Array
    coordinate_out: Array  # (hidden,): no bias, starts at 1e-3 of the usual size so that positions start still
    velocity: Array
    velocity_bias: Array
    velocity_out: Array  # (hidden,)
    velocity_bias_2: Array  # ()
    node: Array  # (hidden, hidden): h_i
    message: Array  # (hidden, hidden): Σ_j m_ij
    node_bias: Array
    node_out: Array
    node_bias_2: Array


def silu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x σ(x), written with tanh: one division less than with the exponential on CPU, and nothing overflows.

    Absolute error <= 1.5 eps max(1, |x|), float32 and float64.
    """
    half = x / 2
    return half + half * jnp.tanh(half)


def others(x: Float[Array, "n *rest"]) -> Float[Array, "n n-1 *rest"]:
    """x_j of the n − 1 others j ≠ i, for every i. Slices, not a gather: their transpose is no scatter."""
    return jnp.stack([jnp.concatenate([x[:i], x[i + 1 :]]) for i in range(x.shape[0])])


def message_passing(
    w: Weights,
    h: Float[Array, "n batch hidden"],
    x: Float[Array, "n batch dimension"],
    v: Float[Array, "n batch dimension"],
    edges: Float[Array, "n n-1 batch edge_features"],
    present: Float[Array, "n n-1 batch 1"] | None = None,
) -> tuple[Float[Array, "n batch hidden"], Float[Array, "n batch dimension"]]:
    """One layer of eqs. 3-7 with velocities (their appendix): nodes first, then batch, so that pairs are slices.

    m_ij = φ_e(h_i, h_j, |x_i − x_j|², a_ij);  x_i += mean_j (x_i − x_j) φ_x(m_ij) + φ_v(h_i) v_i;
    h_i += φ_h(h_i, Σ_j m_ij). Products with h_i and h_j are taken per node, not per pair: 4 n rows, not n (n − 1).
    `present` is 1 for the pairs that count and 0 for the others.
    """
    hidden = h.shape[-1]
    per_node = h @ jnp.concatenate([w.receiver, w.sender, w.velocity, w.node], axis=1)
    at_receiver, at_sender, at_velocity, at_node = jnp.split(per_node, 4, axis=-1)
    difference = x[:, None] - others(x)
    squared = jnp.sum(difference * difference, axis=-1, keepdims=True)
    invariants = squared * w.pair[0]
    for k in range(edges.shape[-1]):  # elementwise: a product with so few columns would only be copied about
        invariants = invariants + edges[..., k : k + 1] * w.pair[1 + k]
    pairs = (at_receiver + w.edge_bias)[:, None] + others(at_sender) + invariants
    messages = silu(silu(pairs).reshape(-1, hidden) @ w.edge + w.edge_bias_2)
    push = jnp.sum(silu(messages @ w.coordinate + w.coordinate_bias) * w.coordinate_out, axis=-1)
    messages, push = messages.reshape(pairs.shape), push.reshape(squared.shape)
    count = x.shape[0] - 1
    if present is not None:
        messages, push = messages * present, push * present
        count = jnp.maximum(jnp.sum(present, axis=1), 1)
    drift = jnp.sum(silu(at_velocity + w.velocity_bias) * w.velocity_out, axis=-1, keepdims=True) + w.velocity_bias_2
    # One particle alone has no others: its mean is zero.
    x = x + jnp.sum(difference * push, axis=1) / (count if present is not None else max(count, 1)) + drift * v
    update = silu(at_node + jnp.sum(messages, axis=1) @ w.message + w.node_bias)
    return h + update @ w.node_out + w.node_bias_2, x


class EGNN(nnx.Module):
    """EGNN with velocities; defaults of the N-body experiment: 4 layers, 64 hidden, 134 020 parameters as in theirs.

    `model(h, x, v, edges, mask)` with h (*batch, n, features), x and v (*batch, n, dimension), edges
    (*batch, n, n, edge_features) or None, mask (*batch, n), True for the particles that exist, or None. Absent
    particles keep their position. v defaults to 0. Raises ValueError or TypeError naming the argument whose shape or
    dtype is off.
    Source: Satorras, Hoogeboom, Welling 2021, eqs. 3-7 and appendix; initial weights as in the published code.
    """

    def __init__(
        self, features: int = 1, edge_features: int = 2, *, hidden: int = 64, layers: int = 4, rngs: nnx.Rngs
    ) -> None:
        self.embedding = nnx.Param(_uniform(rngs, (features, hidden), 1 / math.sqrt(features)))
        self.embedding_bias = nnx.Param(_uniform(rngs, (hidden,), 1 / math.sqrt(features)))
        self.layers = nnx.List([_Layer(hidden, edge_features, rngs) for _ in range(layers)])
        self.edge_features = edge_features

    def __call__(
        self,
        h: Float[Array, "*batch n features"],
        x: Float[Array, "*batch n dimension"],
        v: Float[Array, "*batch n dimension"] | None = None,
        edges: Float[Array, "*batch n n edge_features"] | None = None,
        mask: Bool[Array, "*batch n"] | None = None,
    ) -> Output:
        x = check.array("x", x, None, None)
        *batch, n, _ = x.shape
        h = _like("h", h, (*batch, n, self.embedding.shape[0]))
        v = jnp.zeros_like(x) if v is None else _like("v", v, x.shape)
        if edges is None and self.edge_features:
            raise ValueError(f"edges: expected shape {(*batch, n, n, self.edge_features)}, got None")
        edges = jnp.zeros((*batch, n, n, 0), x.dtype) if edges is None else edges
        edges = _like("edges", edges, (*batch, n, n, self.edge_features))
        check.same_dtype(h=h, x=x, v=v, edges=edges)
        if n == 0:
            return Output(jnp.zeros((*batch, 0, self.embedding.shape[1]), h.dtype), x)

        size = math.prod(batch)
        nodes_first = [jnp.moveaxis(a.reshape(size, n, -1), 1, 0) for a in (h, x, v)]
        pairs = jnp.moveaxis(edges.reshape(size, n, n, self.edge_features), 0, 2)
        pairs = jnp.stack([jnp.concatenate([pairs[i, :i], pairs[i, i + 1 :]]) for i in range(n)])
        present = None
        if mask is not None:
            if mask.shape != (*batch, n):
                raise ValueError(f"mask: expected shape {(*batch, n)}, got {mask.shape}")
            exists = mask.reshape(size, n).T[..., None].astype(x.dtype)
            present = exists[:, None] * others(exists)
            nodes_first[2] = nodes_first[2] * exists
        h_first, x_first, v_first = nodes_first
        h_first = h_first @ self.embedding[...].astype(x.dtype) + self.embedding_bias[...].astype(x.dtype)
        for layer in self.layers:
            h_first, x_first = message_passing(layer.weights(x.dtype), h_first, x_first, v_first, pairs, present)
        return Output(jnp.moveaxis(h_first, 0, 1).reshape(*batch, n, -1), jnp.moveaxis(x_first, 0, 1).reshape(x.shape))


class _Layer(nnx.Module):
    def __init__(self, hidden: int, edge_features: int, rngs: nnx.Rngs) -> None:
        for name, (shape, bound) in _initial(hidden, edge_features).items():
            setattr(self, name, nnx.Param(_uniform(rngs, shape, bound)))

    def weights(self, dtype: DTypeLike) -> Weights:
        return Weights(*(getattr(self, name)[...].astype(dtype) for name in Weights._fields))


def _initial(hidden: int, edge_features: int) -> dict[str, tuple[tuple[int, ...], float]]:
    """Shape and bound of the uniform initial values: 1/√fan-in before the matrix was cut, as in the published code."""
    pair = 1 / math.sqrt(2 * hidden + 1 + edge_features)
    node, plain = 1 / math.sqrt(2 * hidden), 1 / math.sqrt(hidden)
    square, row = (hidden, hidden), (hidden,)
    return {
        "receiver": (square, pair),
        "sender": (square, pair),
        "pair": ((1 + edge_features, hidden), pair),
        "edge_bias": (row, pair),
        "edge": (square, plain),
        "edge_bias_2": (row, plain),
        "coordinate": (square, plain),
        "coordinate_bias": (row, plain),
        "coordinate_out": (row, 1e-3 * math.sqrt(6 / (hidden + 1))),
        "velocity": (square, plain),
        "velocity_bias": (row, plain),
        "velocity_out": (row, plain),
        "velocity_bias_2": ((), plain),
        "node": (square, node),
        "message": (square, node),
        "node_bias": (row, node),
        "node_out": (square, plain),
        "node_bias_2": (row, plain),
    }


def _uniform(rngs: nnx.Rngs, shape: tuple[int, ...], bound: float) -> Array:
    return jax.random.uniform(rngs.params(), shape, jnp.float32, minval=-bound, maxval=bound)


def _like(name: str, a: Array, shape: tuple[int, ...]) -> Array:
    a = check.array(name, a)
    if a.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {a.shape}")
    return a
