"""Molecular dynamics and relaxation by ASE with any energy of ours; ASE is imported when a calculator is made."""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpy.typing import DTypeLike

from equivariant import graph as graphs
from equivariant import potential


def calculator(
    energy: Callable[[graphs.Graph, Array, Array], Array],
    cutoff: float,
    numbers: Sequence[int],
    *,
    isolated: Sequence[float] | None = None,
    dtype: DTypeLike = np.float32,
) -> Any:
    """An `ase.calculators.calculator.Calculator` of `energy(graph, vectors, species)` -> (1,), in eV for Å.

    species[i] is the place of atom i's atomic number in `numbers` (ValueError for others). `isolated`, one energy for
    each of the numbers, is added in float64 on the host: it is thousands of eV, of which float32 would keep
    millielectronvolts. Energy, forces and, where all directions are periodic, stress come from one compiled program;
    it is compiled again only when atoms come to have more edges than a quarter above what was seen, or another number
    of images. Raises ImportError where ASE is not installed: pip install "haar[chemistry]".
    """
    return _calculator_class()(energy, cutoff, tuple(int(z) for z in numbers), isolated, np.dtype(dtype))


@cache
def _calculator_class() -> type:
    try:
        from ase.calculators.calculator import Calculator, all_changes  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('equivariant.ase_calculator needs ASE: pip install "haar[chemistry]"') from error

    class HaarCalculator(Calculator):
        implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012  ASE's contract

        def __init__(self, energy, cutoff, numbers, isolated, dtype):
            super().__init__()
            self.numbers, self.cutoff, self.dtype = np.array(numbers), cutoff, dtype
            self.isolated = np.zeros(len(numbers)) if isolated is None else np.asarray(isolated, np.float64)
            if self.isolated.shape != self.numbers.shape:
                raise ValueError(f"isolated: expected one energy for each of {numbers}, got {self.isolated.shape}")
            self.room = 0
            self.program = _program(energy)

        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            structure: Any = self.atoms  # ASE's annotation is None, from the attribute's first value
            species = _species(structure.numbers, self.numbers)
            periodic = tuple(bool(axis) for axis in structure.pbc)
            cell = structure.cell.complete().array
            reach = np.floor(self.cutoff * np.linalg.norm(np.linalg.inv(cell), axis=0) + 0.5)
            images = tuple(int(k) if axis else 0 for k, axis in zip(reach, periodic, strict=True))
            x, box = jnp.asarray(structure.positions, self.dtype), jnp.asarray(cell, self.dtype)
            search = partial(graphs.radius_graph, x, self.cutoff, box if any(periodic) else None, periodic=periodic)
            out, overflow = self._run(x, box, species, periodic, images)
            if overflow:  # one search on the host says how much room is needed; then one compilation
                self.room = max(64, math.ceil(1.25 * search().edges))
                out, _ = self._run(x, box, species, periodic, images)
            value = float(jnp.sum(out.energy)) + float(np.sum(self.isolated[species]))
            self.results = {"energy": value, "free_energy": value, "forces": np.asarray(out.forces, np.float64)}
            if all(periodic):
                voigt = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
                self.results["stress"] = np.asarray(out.stress, np.float64).reshape(3, 3)[voigt]

        def _run(self, x, box, species, periodic, images) -> tuple[Any, Any]:
            if not self.room:
                return None, True
            return self.program(x, box, species, self.cutoff, periodic, images, self.room)

    return HaarCalculator


def _program(energy: Callable[..., Array]) -> Callable[..., Any]:
    @partial(jax.jit, static_argnums=(3, 4, 5, 6))
    def evaluate(x, box, species, cutoff, periodic, images, room):
        cell = box if any(periodic) else None
        g = graphs.radius_graph(x, cutoff, cell, periodic=periodic, images=images, max_edges=room)
        out = potential.forces(lambda vectors: energy(g, vectors, species), x, g, cell=cell)
        return out, g.overflow

    return evaluate


def _species(numbers: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each atomic number in `known`."""
    same = numbers[:, None] == known
    if not same.any(axis=1).all():
        strange = sorted({int(z) for z in numbers[~same.any(axis=1)]})
        raise ValueError(f"atoms: expected atomic numbers among {known.tolist()}, got {strange}")
    return same.argmax(axis=1).astype(np.int32)
