"""The calculator: ASE's own Lennard-Jones as oracle, stress included; dynamics that keep their energy."""

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from equivariant import ase_calculator, graph
from lie import smooth

ase = pytest.importorskip("ase")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ase")
CUTOFF = 7.5
NUMBERS = (10, 18)


def lennard_jones(g, vectors, species):
    """ε = 1, σ = 2.5, shifted and smooth at the cutoff as in ASE's `smooth=True`; the species do not matter."""
    r_squared = jnp.where(g.edge_mask, jnp.sum(vectors * vectors, axis=-1), 1)
    c = (2.5**2 / r_squared) ** 3
    outer, inner = CUTOFF**2, 5.0**2
    ramp = (outer - r_squared) ** 2 * (outer + 2 * r_squared - 3 * inner) / (outer - inner) ** 3
    pair = 4 * (c * c - c) * jnp.where(r_squared < inner, 1, ramp)
    return graph.sum_nodes(g, graph.sum_edges(g, jnp.where(g.edge_mask, pair, 0))) / 2


def crystal():
    from ase.build import bulk  # pyright: ignore

    atoms = bulk("Ar", cubic=True, a=4.2) * (1, 1, 2)
    atoms.rattle(0.1, seed=1)
    atoms.set_cell(atoms.cell.array @ np.array([[1.0, 0.1, 0], [0, 0.97, 0.05], [0, 0, 1.02]]), scale_atoms=True)
    return atoms


@pytest.mark.parametrize("pbc", [True, (True, False, True), False])
def test_energy_forces_and_stress_are_those_of_ase(pbc):
    from ase.calculators.lj import LennardJones  # pyright: ignore

    ours, theirs = crystal(), crystal()
    for atoms in (ours, theirs):
        atoms.pbc = pbc
    ours.calc = ase_calculator.calculator(lennard_jones, CUTOFF, NUMBERS, dtype=np.float64)
    theirs.calc = LennardJones(sigma=2.5, epsilon=1.0, rc=CUTOFF, ro=5.0, smooth=True)
    assert_allclose(ours.get_potential_energy(), theirs.get_potential_energy(), rtol=1e-11)
    assert_allclose(ours.get_forces(), theirs.get_forces(), atol=1e-10)
    if pbc is True:
        assert_allclose(ours.get_stress(), theirs.get_stress(), atol=1e-12)


def test_isolated_energies_are_added_and_strangers_refused():
    atoms = ase.Atoms("ArNe", positions=[[0, 0, 0], [0, 0, 20.0]])
    atoms.calc = ase_calculator.calculator(lennard_jones, CUTOFF, NUMBERS, isolated=(-3507.0001, -14355.25))
    assert atoms.get_potential_energy() == -3507.0001 - 14355.25
    stranger = ase.Atoms("Kr")
    stranger.calc = atoms.calc
    with pytest.raises(ValueError, match=r"atoms: expected atomic numbers among \[10, 18\], got \[36\]"):
        stranger.get_potential_energy()
    with pytest.raises(ValueError, match="isolated: expected one energy"):
        ase_calculator.calculator(lennard_jones, CUTOFF, NUMBERS, isolated=(1.0,))


def test_dynamics_keep_the_energy_and_compile_rarely():
    from ase import units  # pyright: ignore
    from ase.md.verlet import VelocityVerlet  # pyright: ignore

    atoms, traces = crystal(), []

    def energy(g, vectors, species):
        traces.append(g.edges)
        return 0.01 * lennard_jones(g, vectors, species) + 0 * jnp.sum(smooth.norm(vectors))

    atoms.calc = ase_calculator.calculator(energy, CUTOFF, NUMBERS)
    thermal = np.sqrt(40 * units.kB * atoms.get_masses())[:, None]
    atoms.set_momenta(thermal * np.random.default_rng(0).normal(size=(len(atoms), 3)))
    start, moved = atoms.get_total_energy(), atoms.positions.copy()
    VelocityVerlet(atoms, timestep=4 * units.fs).run(100)
    assert np.abs(atoms.positions - moved).max() > 0.1
    assert abs(atoms.get_total_energy() - start) < 2e-3 * atoms.get_kinetic_energy()
    assert len(traces) <= 2
