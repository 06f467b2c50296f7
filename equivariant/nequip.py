"""NequIP: energies of atoms from messages of tensors, forces by their derivative (Batzner et al. 2022)."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from equivariant import activation, atoms, convolution, egnn, features, radial
from equivariant import graph as graphs


class NequIP(nnx.Module):
    """model(graph, vectors, species) -> energies (structures,); forces and stress by `potential.forces`.

    Each layer: x ← gate(S_species x + Σ_j w(r_ij) (W x_j) ⊗ Y(r_ij) mixed/√neighbors), with silu for gates and even
    scalars, tanh for odd ones. The last layer makes scalars alone, of which `readout` hidden ones and then one energy
    for each atom are linear; `atoms.AtomicEnergies` scales and shifts it. `vectors` are `graph.vectors(graph,
    positions)`, in the unit of `cutoff`; `species` (nodes,) integers below `species`. Invariant under O(3),
    translations, permutations of atoms; its derivatives are continuous where an atom crosses the cutoff, to the second.

    Defaults: the paper's largest runs on rMD17, 5 layers of 64 channels, degree 3, both parities, 8 Bessel functions, p
    = 6, as quoted from memory, and the published code's radial perceptron (64, 64).
    With three species that is 2 830 032 parameters; for the paper's model of AcAc 3 190 488 are quoted, from memory.
    `neighbors` is the mean number of edges of an atom in the training set; the published code trains the frequencies of
    the Bessel functions, too, and computes degrees in the last layer that nothing reads; this one does not.
    Source: Batzner et al. 2022, Nature Communications 13, 2453; mir-group/nequip, configs/full.yaml.
    """

    def __init__(
        self,
        species: int,
        *,
        channels: int = 64,
        max_degree: int = 3,
        parities: int = 2,
        layers: int = 5,
        cutoff: float = 4.0,
        degree_filter: int | None = None,
        basis: int = 8,
        power: int = 6,
        radial_hidden: Sequence[int] = (64, 64),
        readout: int = 16,
        neighbors: float = 1.0,
        scale: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
        isolated: float | Sequence[float] = 0.0,
        rngs: nnx.Rngs,
    ) -> None:
        hidden = features.layout(max_degree, channels, parities)
        degree_filter = max_degree if degree_filter is None else degree_filter
        if layers < 1:
            raise ValueError(f"layers: expected at least 1, got {layers}")
        self.species, self.cutoff, self.basis, self.power = species, float(cutoff), basis, power
        self.embedding = nnx.Param(jax.random.normal(rngs.params(), (species, channels), jnp.float32))
        layouts = [features.layout(0, channels), *[hidden] * (layers - 1), features.layout(0, channels)]
        self.layers = nnx.List(
            [
                _Layer(species, before, after, degree_filter, (basis, *radial_hidden), neighbors, rngs)
                for before, after in itertools.pairwise(layouts)
            ]
        )
        self.readout = radial.Perceptron((channels, readout), rngs=rngs)
        self.energy = radial.Perceptron((readout, 1), rngs=rngs)
        self.atomic = atoms.AtomicEnergies(species, scale, shift, isolated)

    def __call__(
        self, graph: graphs.Graph, vectors: Float[Array, "edges 3"], species: Int[ArrayLike, "nodes"]
    ) -> Float[Array, "structures"]:
        species = atoms.species_of(graph, species, self.species)
        if graph.nodes == 0:
            return jnp.zeros(graph.structures, vectors.dtype)
        embedding = atoms.edge_embedding(vectors, self.basis, self.cutoff, self.power)
        x = self.embedding[...].astype(vectors.dtype)[species][:, None, None, :]
        for layer in self.layers:
            x = layer(x, graph, vectors, embedding, species)
        y = self.energy(self.readout(x[:, 0, 0]))[:, 0]
        return self.atomic(graph, y, species)


class _Layer(nnx.Module):
    """One convolution with its self-connection; further channels of its scalars are the gates."""

    def __init__(
        self,
        species: int,
        layout_in: features.Layout,
        layout_out: features.Layout,
        degree_filter: int,
        radial_sizes: tuple[int, ...],
        neighbors: float,
        rngs: nnx.Rngs,
    ) -> None:
        gates = layout_out.parities * layout_out.max_degree * layout_out.channels
        scalars = features.layout(0, gates)
        self.inner = atoms.ChannelLinear(layout_in, layout_in.channels, rngs=rngs)
        self.messages = convolution.Convolution(
            layout_in.max_degree,
            layout_out.max_degree,
            layout_in.channels,
            embedding=radial_sizes[0],
            hidden=radial_sizes[1:],
            channels_out=layout_out.channels,
            degree_filter=degree_filter,
            parities_in=layout_in.parities,
            parities_out=layout_out.parities,
            extra_scalars=gates,
            neighbors=neighbors,
            rngs=rngs,
        )
        self.itself = atoms.SpeciesLinear(species, layout_in, layout_out, rngs=rngs)
        self.itself_gates = atoms.SpeciesLinear(species, layout_in, scalars, rngs=rngs) if gates else None

    def __call__(
        self, x: Array, graph: graphs.Graph, vectors: Array, embedding: Array, species: Array
    ) -> Float[Array, "nodes parities orders channels"]:
        messages = self.messages(self.inner(x), graph, vectors, embedding)
        if self.itself_gates is None:
            return activation.gate(self.itself(x, species) + messages)
        messages, gates = messages
        gates = self.itself_gates(x, species)[:, 0, 0] + gates
        return activation.gate(self.itself(x, species) + messages, gates, gating=egnn.silu)
