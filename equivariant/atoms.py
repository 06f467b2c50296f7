"""What networks of atoms share: embedded edges, maps by species, energies of atoms scaled, shifted and summed."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Int

from equivariant import features, linear, radial
from equivariant import graph as graphs
from lie import check, smooth


def edge_embedding(
    vectors: Float[Array, "edges 3"], size: int, cutoff: float, power: int
) -> Float[Array, "edges size"]:
    """`radial.bessel` of the edge's length times `radial.polynomial_cutoff`: ends smoothly at the cutoff."""
    r = smooth.norm(vectors)
    return radial.bessel(r, size, cutoff) * radial.polynomial_cutoff(r, cutoff, power)[:, None]


def species_linear(
    weight: Float[Array, "_species _parities _degrees _channels _channels_out"],
    x: Float[Array, "_nodes _parities _orders _channels"],
    species: Int[ArrayLike, "_nodes"],
) -> Float[Array, "nodes parities_out orders_out channels_out"]:
    """y_l = x_l W_{species, l}/√channels: the full tensor product of features with the one-hot species.

    Degrees and parities that only the input has are dropped; those that only the weight has are an error. One product
    over (species · channels): its cost grows with the number of species.
    """
    x = features.array("x", x)
    kinds, parities, degrees, channels, channels_out = weight.shape
    check.same_dtype(weight=weight, x=x)
    if x.shape[-1] != channels or x.shape[-2] < degrees**2 or x.shape[-3] < parities:
        raise ValueError(f"weight: expected one for features {x.shape[1:]}, got shape {weight.shape}")
    hot = jax.nn.one_hot(jnp.asarray(species), kinds, dtype=x.dtype)
    spread = hot[:, None, None, :, None] * x[:, :parities, : degrees**2, None, :]
    spread = spread.reshape(*spread.shape[:3], kinds * channels)
    blocks = []
    for l, rows in features.degrees(degrees - 1):
        W = jnp.moveaxis(weight[:, :, l], 1, 0).reshape(parities, kinds * channels, channels_out)
        blocks.append(jnp.einsum("npmc,pcd->npmd", spread[:, :, rows], W))
    return jnp.concatenate(blocks, axis=2) * (1 / math.sqrt(channels))


class SpeciesLinear(nnx.Module):
    """`species_linear` with weights from N(0, 1): unit variance stays."""

    def __init__(
        self, species: int, layout_in: features.Layout, layout_out: features.Layout, *, rngs: nnx.Rngs
    ) -> None:
        """Maps between the degrees and parities that both layouts have."""
        degrees = min(layout_in.max_degree, layout_out.max_degree) + 1
        parities = min(layout_in.parities, layout_out.parities)
        shape = (species, parities, degrees, layout_in.channels, layout_out.channels)
        self.weight = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))
        self.layout_out = layout_out

    def __call__(
        self, x: Float[Array, "nodes _parities _orders _channels"], species: Int[ArrayLike, "nodes"]
    ) -> Float[Array, "nodes parities_out orders_out channels_out"]:
        y = species_linear(self.weight[...].astype(x.dtype), x, species)
        lacking = [(0, want - have) for want, have in zip(self.layout_out.shape, y.shape[1:], strict=True)]
        return jnp.pad(y, [(0, 0), *lacking])


class ChannelLinear(nnx.Module):
    """`linear.linear` without bias, weights from N(0, 1), divided by √channels_in when used, as e3nn does.

    (With Adam that matters: a step changes every weight by the same part of its size.)
    """

    def __init__(self, layout_in: features.Layout, channels_out: int, *, rngs: nnx.Rngs) -> None:
        shape = (layout_in.parities, layout_in.max_degree + 1, layout_in.channels, channels_out)
        self.weight = nnx.Param(jax.random.normal(rngs.params(), shape, jnp.float32))

    def __call__(
        self, x: Float[Array, "*batch parities orders channels"]
    ) -> Float[Array, "*batch parities orders channels_out"]:
        weight = self.weight[...].astype(x.dtype)
        return linear.linear(weight * (1 / math.sqrt(weight.shape[-2])), None, x)


class AtomicEnergies(nnx.Module):
    """E = Σ_i (scale_s y_i + shift_s + isolated_s), s the species of atom i: one energy for each structure.

    Constants, not parameters: `scale` and `shift` are numbers or one for each species; `isolated` are the energies of
    single atoms. In float32 a sum of thousands of eV keeps only millielectronvolts: leave `isolated` out of models that
    compute in float32, and out of their targets, and add it on the host (`ase_calculator` does).
    """

    def __init__(
        self,
        species: int,
        scale: float | Sequence[float] = 1.0,
        shift: float | Sequence[float] = 0.0,
        isolated: float | Sequence[float] = 0.0,
    ) -> None:
        self.scale = _per_species("scale", scale, species)
        self.shift = _per_species("shift", shift, species)
        self.isolated = _per_species("isolated", isolated, species)

    def __call__(
        self, graph: graphs.Graph, y: Float[Array, "nodes"], species: Int[ArrayLike, "nodes"]
    ) -> Float[Array, "structures"]:
        of_atom = lambda constants: jnp.asarray(np.array(constants).astype(y.dtype))[jnp.asarray(species)]
        constant = tuple(a + b for a, b in zip(self.shift, self.isolated, strict=True))
        return graphs.sum_nodes(graph, of_atom(self.scale) * y + of_atom(constant))


def _per_species(name: str, value: float | Sequence[float], species: int) -> tuple[float, ...]:
    values = (float(value),) * species if isinstance(value, int | float) else tuple(float(v) for v in value)
    if len(values) != species:
        raise ValueError(f"{name}: expected a number or one for each of {species} species, got {len(values)}")
    return values


def species_of(graph: graphs.Graph, species: ArrayLike, kinds: int) -> Int[Array, "nodes"]:
    """`species` as int32 (nodes,), checked: TypeError for what is no integer, ValueError for a wrong shape or range."""
    species = jnp.asarray(species)
    if not jnp.issubdtype(species.dtype, jnp.integer):
        raise TypeError(f"species: expected integers with shape ({graph.nodes},), got {species.dtype}")
    if species.shape != (graph.nodes,):
        raise ValueError(f"species: expected shape ({graph.nodes},), one for each node, got {species.shape}")
    check.require("species", (species >= 0) & (species < kinds), f"integers from 0 to {kinds - 1}")
    return species.astype(jnp.int32)


def parameter_count(model: nnx.Module) -> int:
    """How many numbers the module's parameters hold."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
