"""EquiformerV2: attention with messages made in the frame of the edge, by matrices over degrees (Liao et al. 2023)."""

import itertools
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from equivariant import activation, atoms, attention, egnn, features, linear, normalization, radial, turns
from equivariant import graph as graphs
from lie import harmonics, smooth


class EquiformerV2(nnx.Module):
    """model(graph, vectors, species) -> energies (structures,); forces and stress by `potential.forces`.

    Blocks x ← x + attention(norm(x)), x ← x + feed_forward(norm(x)). Attention: both ends' features are turned to the
    edge, weighted by functions of its length and species, mixed by one matrix for each |m| <= max_order (eSCN), put
    through a nonlinearity on the sphere, mixed again, weighted by a softmax of invariants, turned back and summed.
    The feed-forward part is a perceptron of the values on a grid on the sphere.

    Defaults: the paper's 12 layers at degree 6, order 2, 128 channels, 8 heads (S2EF-2M), quoted from memory;
    76 723 457 parameters with 90 species, where about 83 million are quoted, from memory. As the paper's it commutes
    with rotations, translations and permutations, and with reflections if `reflections`: then orders m and −m do not
    mix (parities 1 has no odd paths), and matrices for m > 0 are half as large.
    `grid_degree` 9 is the paper's resolution 18. Nonlinearities on the grid leave an error of equivariance: at degree 6
    (2 layers, 16 channels, initial weights) 0.4 % of energies and 11 % of forces, at grid_degree 18 0.1 and 1.3 %; at
    degree 2 below 2e-6. With grid_degree=None gates take their place, which are exact: energies 1e-7 and forces 2e-6 in
    float32, 1e-14 in float64.
    Unlike the paper's, messages end smoothly at the cutoff. An edge of no length sends nothing. No dropout.
    Reverse differentiation only, to any order, as for every network with convolutions.
    Source: Liao, Wood, Das, Smidt 2023, section 4 and table 9 (appendix); Passaro and Zitnick 2023 for the mixing.
    """

    def __init__(
        self,
        species: int,
        *,
        channels: int = 128,
        max_degree: int = 6,
        max_order: int = 2,
        layers: int = 12,
        heads: int = 8,
        hidden: int = 64,
        alpha: int = 64,
        value: int = 16,
        feed_forward: int = 128,
        edge_channels: int = 128,
        basis: int = 600,
        cutoff: float = 12.0,
        grid_degree: int | None = 9,
        reflections: bool = False,
        neighbors: float = 1.0,
        scale: float | list[float] = 1.0,
        shift: float | list[float] = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        for name, size in (("layers", layers), ("heads", heads), ("basis", basis - 1)):
            if size < 1:
                raise ValueError(f"{name}: expected more, got {size if name != 'basis' else basis}")
        if not 0 <= max_order <= max_degree:
            raise ValueError(f"max_order: expected 0 to max_degree = {max_degree}, got {max_order}")
        if grid_degree is not None and grid_degree < max_degree:
            raise ValueError(f"grid_degree: expected at least max_degree = {max_degree} or None, got {grid_degree}")
        self.layout = features.layout(max_degree, channels)
        self.species, self.basis, self.cutoff = species, basis, float(cutoff)
        self.neighbors = float(neighbors)
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (species, channels), jnp.float32))
        sizes = basis + 2 * edge_channels
        self.ends = nnx.Param(0.1 * jax.random.normal(rngs.params(), (2, species, edge_channels), jnp.float32))
        self.first = _Perceptron((sizes, edge_channels, edge_channels, (max_degree + 1) * channels), rngs)
        self.attentions, self.feed_forwards = nnx.List([]), nnx.List([])
        for _ in range(layers):
            radial_sizes = (sizes, edge_channels, edge_channels)
            sphere = (max_degree, max_order, grid_degree, reflections)
            self.attentions.append(_Attention(channels, hidden, heads, alpha, value, radial_sizes, sphere, rngs))
            self.feed_forwards.append(_FeedForward(channels, feed_forward, max_degree, grid_degree, rngs))
        norms = 2 * layers + 1
        self.norms = nnx.List([normalization.LayerNorm(max_degree, channels, over="all") for _ in range(norms)])
        self.readout = _Perceptron((channels, feed_forward, 1), rngs)
        self.atomic = atoms.AtomicEnergies(species, scale, shift, 0.0)

    def __call__(
        self, graph: graphs.Graph, vectors: Float[Array, "edges 3"], species: Int[Array, "nodes"]
    ) -> Float[Array, "structures"]:
        species = atoms.species_of(graph, species, self.species)
        length, dtype = smooth.norm(vectors), vectors.dtype
        envelope = jnp.where(length > 0, radial.polynomial_cutoff(length, self.cutoff), 0)
        at_ends = self.ends[...].astype(dtype)
        pieces = [radial.gaussian(length, self.basis, self.cutoff)]
        pieces += [at_ends[0][species[graph.senders]], at_ends[1][species[graph.receivers]]]
        edges = jnp.concatenate(pieces, axis=-1)

        max_degree, channels = self.layout.max_degree, self.layout.channels
        of_row = np.repeat(np.arange(max_degree + 1), 2 * np.arange(max_degree + 1) + 1)
        Y = harmonics.evaluate(vectors, max_degree)
        weights = self.first(edges).reshape(-1, max_degree + 1, channels)[:, of_row] * envelope[:, None, None]
        x = graphs.sum_edges(graph, Y[:, :, None] * weights)[:, None] * self.neighbors**-0.5
        x = x.at[:, 0, 0].add(self.embedding[...].astype(dtype)[species])

        turn = turns.turn(max_degree, vectors)
        for k, (attend, feed) in enumerate(zip(self.attentions, self.feed_forwards, strict=True)):
            x = x + attend(self.norms[2 * k](x), graph, turn, edges, envelope)
            x = x + feed(self.norms[2 * k + 1](x))
        y = self.readout(self.norms[-1](x)[:, 0, 0])[:, 0]
        return self.atomic(graph, y, species)


class _Attention(nnx.Module):
    """Graph attention with messages of two mixings in the edge's frame and the separable nonlinearity between."""

    def __init__(self, channels, hidden, heads, alpha, value, radial_sizes, sphere, rngs) -> None:
        self.max_degree, self.max_order, self.grid_degree, reflections = sphere
        self.hidden, self.heads = hidden, heads
        gates = hidden if self.grid_degree is not None else self.max_degree * hidden
        self.extra = (heads * alpha, gates)
        table = _degrees_and_orders(self.max_degree, self.max_order)
        self.radial = _Perceptron((*radial_sizes, (int(table.max()) + 1) * 2 * channels), rngs)
        degrees = self.max_degree, self.max_order
        self.mix = _Mixing(*degrees, 2 * channels, hidden, sum(self.extra), reflections, rngs)
        self.mix_values = _Mixing(*degrees, hidden, heads * value, 0, reflections, rngs)
        self.norm_weight = nnx.Param(jnp.ones(alpha, jnp.float32))
        self.alpha = nnx.Param(jax.random.uniform(rngs.params(), (heads, alpha), jnp.float32, -1, 1) / math.sqrt(alpha))
        self.out = linear.Linear(self.max_degree, heads * value, channels, rngs=rngs)

    def __call__(self, x: Array, graph: graphs.Graph, turn: turns.Turn, edges: Array, envelope: Array) -> Array:
        both = jnp.concatenate([x[graph.senders], x[graph.receivers]], axis=-1)
        turned = turns.into(self.max_order, turn, both)[:, 0]
        table = _degrees_and_orders(self.max_degree, self.max_order)
        weights = self.radial(edges).reshape(edges.shape[0], -1, both.shape[-1])[:, table]
        message, extra = self.mix(turned * weights)
        for_scores, gates = jnp.split(extra, [self.extra[0]], axis=-1)
        message, _ = self.mix_values(self._nonlinear(message, gates))
        weights = attention.softmax(graph, self._scores(for_scores), envelope) * envelope[:, None]
        message = message * jnp.repeat(weights, message.shape[-1] // self.heads, axis=-1)[:, None]
        back = turns.back(self.max_degree, self.max_order, turn, message[:, None])
        return self.out(graphs.sum_edges(graph, back))

    def _scores(self, scalars: Array) -> Array:
        """a·leaky(LN(·)) for each head, with the smooth leaky relu 0.6 z + 0.4 z (2 sigmoid(z) − 1)."""
        z = _scalar_norm(scalars.reshape(scalars.shape[0], self.heads, -1), self.norm_weight[...].astype(scalars.dtype))
        z = 0.6 * z + 0.4 * z * (2 * activation.sigmoid(z) - 1)
        return jnp.sum(z * self.alpha[...].astype(z.dtype), axis=-1)

    def _nonlinear(self, message: Array, gates: Array) -> Array:
        """On the sphere of the edge's frame (or by gates), scalars apart; rows |m| > max_order are absent."""
        place = turns.rows(self.max_degree, self.max_order)
        whole = jnp.zeros((message.shape[0], 1, (self.max_degree + 1) ** 2, self.hidden), message.dtype)
        whole = whole.at[:, 0, place].set(message)
        if self.grid_degree is None:
            return activation.gate(whole, gates)[:, 0, place]
        return activation.grid_activation(whole, gates, grid_degree=self.grid_degree)[:, 0, place]


class _Mixing(nnx.Module):
    """One matrix for each |m| over (degrees, channels); m and −m as the real and imaginary part of one number."""

    def __init__(self, max_degree, max_order, channels_in, channels_out, extra, reflections, rngs) -> None:
        self.max_degree, self.max_order, self.channels_out, self.extra = max_degree, max_order, channels_out, extra
        self.parts = 1 if reflections else 2
        self.matrices = nnx.List([])
        for m in range(max_order + 1):
            degrees = max_degree + 1 - m
            columns = degrees * channels_out * (self.parts if m else 1) + (0 if m else extra)
            bound = 1 / math.sqrt(degrees * channels_in * (self.parts if m else 1))
            shape = (degrees * channels_in, columns)
            self.matrices.append(nnx.Param(bound * jax.random.normal(rngs.params(), shape, jnp.float32)))
        self.bias = nnx.Param(jnp.zeros(channels_out + extra, jnp.float32))

    def __call__(self, x: Array) -> tuple[Array, Array]:
        """(edges, aligned rows, channels) -> the same with channels_out, and the extra invariants."""
        edges, blocks, start, extra = x.shape[0], [], 0, x[:, 0, :0]
        for m, matrix in enumerate(self.matrices):
            degrees, signs = self.max_degree + 1 - m, 2 if m else 1
            rows = x[:, start : start + signs * degrees].reshape(edges * signs, -1)
            y = (rows @ matrix[...].astype(x.dtype)).reshape(edges, signs, -1)
            start += signs * degrees
            if m == 0:
                bias = self.bias[...].astype(x.dtype)
                y, extra = y[..., : degrees * self.channels_out], y[:, 0, degrees * self.channels_out :]
                extra = extra + bias[self.channels_out :]
                y = y.at[..., : self.channels_out].add(bias[: self.channels_out])  # degree 0 comes first
            elif self.parts == 2:
                real, imaginary = jnp.split(y, 2, axis=-1)
                y = jnp.stack([real[:, 0] - imaginary[:, 1], real[:, 1] + imaginary[:, 0]], axis=1)
            blocks.append(y.reshape(edges, signs * degrees, self.channels_out))
        return jnp.concatenate(blocks, axis=1), extra


class _FeedForward(nnx.Module):
    """Channels up, a perceptron of the values on a grid (or gates), true scalars apart, channels down."""

    def __init__(self, channels, hidden, max_degree, grid_degree, rngs) -> None:
        self.grid_degree = grid_degree
        self.up, self.down = (
            linear.Linear(max_degree, before, after, rngs=rngs)
            for before, after in ((channels, hidden), (hidden, channels))
        )
        gates = hidden * (1 if grid_degree is not None else max_degree)
        self.gates = linear.Linear(0, channels, gates, rngs=rngs)
        squares = 3 if grid_degree is not None else 0
        self.on_grid = nnx.List(
            [
                nnx.Param(jax.random.normal(rngs.params(), (hidden, hidden), jnp.float32) / math.sqrt(hidden))
                for _ in range(squares)
            ]
        )

    def __call__(self, x: Array) -> Array:
        y, gates = self.up(x), self.gates(x[:, :, :1])[:, 0, 0]
        if self.grid_degree is None:
            return self.down(activation.gate(y, gates))
        matrices = [matrix[...].astype(x.dtype) for matrix in self.on_grid]
        perceptron = lambda f: egnn.silu(egnn.silu(f @ matrices[0]) @ matrices[1]) @ matrices[2]
        values = perceptron(harmonics.to_grid(y, self.grid_degree))
        y = harmonics.from_grid(values, features.of(x).max_degree)
        return self.down(y.at[:, 0, 0].set(egnn.silu(gates)))


class _Perceptron(nnx.Module):
    """Linear maps with biases; between them LayerNorm and silu."""

    def __init__(self, sizes: tuple[int, ...], rngs: nnx.Rngs) -> None:
        self.kernels, self.biases, self.norms = nnx.List([]), nnx.List([]), nnx.List([])
        for before, after in itertools.pairwise(sizes):
            kernel = jax.random.normal(rngs.params(), (before, after), jnp.float32) / math.sqrt(before)
            self.kernels.append(nnx.Param(kernel))
            self.biases.append(nnx.Param(jnp.zeros(after, jnp.float32)))
            self.norms.append(nnx.Param(jnp.ones(after, jnp.float32)))
        self.norms.pop()

    def __call__(self, x: Array) -> Array:
        own = lambda parameter: parameter[...].astype(x.dtype)
        for k, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = x @ own(kernel) + own(bias)
            if k < len(self.norms):
                x = egnn.silu(_scalar_norm(x, own(self.norms[k])))
        return x


def _scalar_norm(x: Array, weight: Array) -> Array:
    """LayerNorm of scalars over the last axis."""
    return normalization.layer_norm(x[..., None, None, :], over="degree")[..., 0, 0, :] * weight


@cache
def _degrees_and_orders(max_degree: int, max_order: int) -> np.ndarray:
    """For each aligned row the number of its (|m|, degree): rows of m and −m share a weight, as rotations demand."""
    numbers, count = [], 0
    for m in range(max_order + 1):
        own = list(range(count, count + max_degree + 1 - m))
        numbers += own * (2 if m else 1)
        count += len(own)
    return np.array(numbers, np.int32)
