"""MACE: messages of many bodies from symmetric products of a node's features with themselves (Batatia et al. 2022)."""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from equivariant import atoms, convolution, features, radial, symmetric_contraction
from equivariant import graph as graphs


class MACE(nnx.Module):
    """model(graph, vectors, species) -> energies (structures,); forces and stress by `potential.forces`.

    Layer t: A = Σ_j w(r_ij) (W x_j) ⊗ Y(r_ij) mixed/neighbors, degrees to `degree_filter`; in the first layer then
    A ← S_species A. x ← W' B(A) + (after the first) S_species x, with B the symmetric contraction of all products of up
    to `correlation` factors, so messages of correlation + 1 bodies. Energies of atoms: linear in the scalars of every
    layer but the last, where a perceptron with `readout` hidden silu units reads them; `atoms.AtomicEnergies` scales
    and shifts their sum. The last layer makes scalars alone. Features are true tensors.
    `vectors` are `graph.vectors(graph, positions)`, in the unit of `cutoff`; `species` (nodes,) integers below
    `species`. Invariant under O(3), translations, permutations of atoms; its derivatives are continuous where an atom
    crosses the cutoff, to the second.

    Defaults: the paper's, 2 layers of 256 channels, messages to degree 2 from harmonics to degree 3, correlation 3,
    cutoff 5 Å, 8 Bessel functions, p = 5, radial perceptron (64, 64, 64), 16 hidden units.
    With three species that is 3 297 808 parameters; for the paper's model of AcAc 2 983 184 are quoted, from memory.
    Source: Batatia et al. 2022, arXiv:2206.07697; RealAgnosticInteractionBlock and its residual form of ACEsuit/mace.
    """

    def __init__(
        self,
        species: int,
        *,
        channels: int = 256,
        max_degree: int = 2,
        layers: int = 2,
        correlation: int = 3,
        cutoff: float = 5.0,
        degree_filter: int = 3,
        basis: int = 8,
        power: int = 5,
        radial_hidden: Sequence[int] = (64, 64, 64),
        readout: int = 16,
        neighbors: float = 1.0,
        scale: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
        isolated: float | Sequence[float] = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        if layers < 1:
            raise ValueError(f"layers: expected at least 1, got {layers}")
        hidden, scalars = features.layout(max_degree, channels), features.layout(0, channels)
        self.species, self.cutoff, self.basis, self.power = species, float(cutoff), basis, power
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (species, channels), jnp.float32))
        layouts = [scalars, *[hidden] * (layers - 1), scalars]
        self.layers = nnx.List(
            [
                _Layer(
                    species, before, after, degree_filter, correlation, (basis, *radial_hidden), neighbors, t == 0, rngs
                )
                for t, (before, after) in enumerate(itertools.pairwise(layouts))
            ]
        )
        sizes = [(channels, 1)] * (layers - 1) + [(channels, readout, 1)]
        self.readouts = nnx.List([radial.Perceptron(each, rngs=rngs) for each in sizes])
        self.atomic = atoms.AtomicEnergies(species, scale, shift, isolated)

    def __call__(
        self, graph: graphs.Graph, vectors: Float[Array, "edges 3"], species: Int[ArrayLike, "nodes"]
    ) -> Float[Array, "structures"]:
        species = atoms.species_of(graph, species, self.species)
        if graph.nodes == 0:
            return jnp.zeros(graph.structures, vectors.dtype)
        embedding = atoms.edge_embedding(vectors, self.basis, self.cutoff, self.power)
        x = self.embedding[...].astype(vectors.dtype)[species][:, None, None, :]
        y = jnp.zeros(graph.nodes, x.dtype)
        for layer, readout in zip(self.layers, self.readouts, strict=True):
            x = layer(x, graph, vectors, embedding, species)
            y = y + readout(x[:, 0, 0])[:, 0]
        return self.atomic(graph, y, species)


class _Layer(nnx.Module):
    """Messages, their symmetric contraction by species, and, but in the first layer, the self-connection."""

    def __init__(
        self,
        species: int,
        layout_in: features.Layout,
        layout_out: features.Layout,
        degree_filter: int,
        correlation: int,
        radial_sizes: tuple[int, ...],
        neighbors: float,
        first: bool,
        rngs: nnx.Rngs,
    ) -> None:
        channels, self.neighbors, self.first = layout_out.channels, float(neighbors), first
        gathered = features.layout(degree_filter, channels)
        self.inner = atoms.ChannelLinear(layout_in, channels, rngs=rngs)
        self.messages = convolution.Convolution(
            layout_in.max_degree,
            degree_filter,
            channels,
            embedding=radial_sizes[0],
            hidden=radial_sizes[1:],
            degree_filter=degree_filter,
            neighbors=neighbors,
            rngs=rngs,
        )
        self.itself = atoms.SpeciesLinear(
            species, gathered if first else layout_in, gathered if first else layout_out, rngs=rngs
        )
        self.contraction = symmetric_contraction.SymmetricContraction(
            degree_filter, layout_out.max_degree, channels, correlation=correlation, species=species, rngs=rngs
        )
        self.outer = atoms.ChannelLinear(layout_out, channels, rngs=rngs)

    def __call__(
        self, x: Array, graph: graphs.Graph, vectors: Array, embedding: Array, species: Array
    ) -> Float[Array, "nodes parities orders channels"]:
        A = self.messages(self.inner(x), graph, vectors, embedding) * (1 / math.sqrt(self.neighbors))
        A = self.itself(A, species) if self.first else A
        y = self.outer(self.contraction(A, species))
        return y if self.first else y + self.itself(x, species)
