"""Energy to forces and stress: one derivative of any invariant energy, itself differentiable for a loss on forces."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from equivariant import graph as graphs
from lie import check, elementwise


class Output(NamedTuple):
    """`energy` () or (structures,); `forces` (nodes, 3); `stress` energy's shape + (3, 3), None without a cell."""

    energy: Array
    forces: Array
    stress: Any


def forces(
    energy: Callable[..., Array],
    positions: Float[Array, "nodes 3"],
    graph: graphs.Graph | None = None,
    *,
    cell: Float[Array, "*structures 3 3"] | None = None,
) -> Output:
    """E, F = −∂E/∂x and, for a cell of volume V, the stress (∂E/∂ε)/V under the strain x → (1 + ε) x, symmetric.

    With a graph, `energy(vectors)` maps its edge vectors (edges, 3) to one energy for each structure, (structures,), or
    to their sum; one derivative t = ∂E/∂vectors gives both F (t summed over an atom's edges) and the stress,
    Σ t rᵀ/V: by strain, every vector, periodic shifts included, goes to (1 + ε) r. `cell` is (3, 3), or one for each
    structure. Padding exerts no force. Without a graph, `energy(positions)`, or `energy(positions, cell)` where a cell
    is given, returns the energy of one structure.
    Stress has ASE's sign: positive under tension. All of it may be differentiated again, by parameters too, to any
    order that the energy allows. Traced under jit like any function: nothing is compiled twice.
    Raises ValueError where positions, cell or energy have another shape than the graph says.
    """
    x = check.array("positions", positions, None, 3)
    cell = None if cell is None else check.array("cell", cell, 3, 3)
    if graph is None:
        return _of_positions(energy, x, cell)
    vectors = graphs.vectors(graph, x)
    value, pull_back = jax.vjp(energy, vectors)
    if value.shape not in ((), (graph.structures,)):
        raise ValueError(f"energy: expected a result of shape () or ({graph.structures},), got {value.shape}")
    tension = jnp.where(graph.edge_mask[:, None], pull_back(jnp.ones_like(value))[0], 0)
    pull = jax.ops.segment_sum(tension, graph.senders, graph.nodes) - graphs.sum_edges(graph, tension)
    if cell is None:
        return Output(value, pull, None)
    if cell.shape != (*value.shape, 3, 3) and cell.shape != (3, 3):
        raise ValueError(f"cell: expected shape {(*value.shape, 3, 3)} or (3, 3), got {cell.shape}")
    virial = tension[:, :, None] * vectors[:, None, :]
    owner = graph.structure.at[graph.receivers].get(mode="clip") if value.ndim else jnp.zeros_like(graph.receivers)
    virial = jax.ops.segment_sum(virial, owner, graph.structures if value.ndim else 1)
    return Output(value, pull, _symmetric(virial.reshape(*value.shape, 3, 3)) / _volume(cell))


def _of_positions(energy: Callable[..., Array], x: Array, cell: Array | None) -> Output:
    def strained(x: Array, strain: Array) -> Array:
        deform = lambda rows: rows + elementwise.matmul(rows, strain)
        return energy(deform(x)) if cell is None else energy(deform(x), deform(cell))

    value, pull_back = jax.vjp(strained, x, jnp.zeros((3, 3), x.dtype))
    if value.shape != ():
        raise ValueError(f"energy: expected one number, got shape {value.shape}")
    slope, virial = pull_back(jnp.ones_like(value))
    return Output(value, -slope, None if cell is None else _symmetric(virial) / _volume(cell))


def _symmetric(virial: Array) -> Array:
    return (virial + jnp.swapaxes(virial, -1, -2)) / 2


def _volume(cell: Array) -> Array:
    return jnp.abs(elementwise.dot(cell[..., 0, :], elementwise.cross(cell[..., 1, :], cell[..., 2, :])))[
        ..., None, None
    ]
