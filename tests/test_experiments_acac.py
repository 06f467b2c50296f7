"""The acetylacetone experiment: its data, its loss, its numbers, on frames of a spring model where no data are."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import batatia2022_acac as acac
from experiments.engine import exits

HEADER = 'Properties=species:S:1:pos:R:3:forces:R:3 energy={energy:.12f} pbc="F F F"'
ATOMS = {"C": -1026.25, "O": -2037.5, "H": -13.5}


def frames(count, heat, seed):
    """Frames of a four-atom molecule of springs: total energies with thousands of eV of isolated atoms."""
    random = np.random.default_rng(seed)
    rest = np.array([[0.0, 0, 0], [1.3, 0.1, 0], [-0.7, 1.0, 0.2], [-0.6, -0.9, 0.3]])
    length = np.linalg.norm(rest[:, None] - rest, axis=-1)
    lines = []
    for _ in range(count):
        x = rest + heat * random.normal(size=rest.shape)
        difference = x[:, None] - x
        r = np.linalg.norm(difference, axis=-1) + np.eye(4)
        stretch = (r - length) * (1 - np.eye(4))
        force = -np.sum((20 * stretch / r)[..., None] * difference, axis=1)
        energy = 0.25 * 20 * np.sum(stretch**2) - 12 + sum(ATOMS[s] for s in "COHH")
        lines += ["4", HEADER.format(energy=energy)]
        lines += [f"{s} {' '.join(f'{v:.10f}' for v in (*p, *f))}" for s, p, f in zip("COHH", x, force, strict=True)]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    (place / "acac").mkdir()
    sizes = {"train_300K": (500, 0.05), "test_MD_300K": (30, 0.05), "test_MD_600K": (30, 0.1)}
    for seed, (name, (count, heat)) in enumerate(sizes.items()):
        (place / "acac" / f"{name}.xyz").write_text(frames(count, heat, seed))
    atoms = "".join(f"1\n{HEADER.format(energy=e)}\n{s} 0 0 0 0 0 0\n" for s, e in ATOMS.items())
    (place / "acac" / "isolated_atoms.xyz").write_text(atoms)
    return place


CONFIG = dataclasses.replace(
    acac.PRESETS["smoke"], nequip=(0,), channels=4, radial_hidden=(8,), test_frames=30, batch=45, epochs=4, test_every=2
)


@pytest.fixture(scope="module")
def data(folder):
    return acac.data(CONFIG, folder)


def test_energies_are_relative_and_keep_their_digits(data):
    assert data.train.energy.shape == (450,)
    assert abs(float(jnp.mean(data.train.energy))) < 1e-5
    text = frames(500, 0.05, 0).splitlines()[1::6]
    exact = np.array([float(line.split("energy=")[1].split()[0]) for line in text])
    np.testing.assert_allclose(data.train.energy, exact[:450] - exact[:450].mean(), atol=1e-6)
    assert data.train.graph.edge_mask.sum(axis=1).tolist() == [12] * 450
    np.testing.assert_array_equal(data.species, [1, 2, 0, 0])


@pytest.mark.slow
def test_training_learns_and_results_name_every_number(data):
    state = acac.init(CONFIG, jax.random.key(0), data)
    history = []
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
        advance = jax.jit(lambda state: acac.advance(CONFIG, state, data))
        while not acac.done(CONFIG, state):
            state, metrics = advance(state)
            history.append(metrics)
    assert len(history) == acac.blocks(CONFIG)
    metrics = {name: np.array([line[name] for line in history]) for name in history[0]}
    assert metrics["nequip_l0_train_loss"][-1] < 0.9 * metrics["nequip_l0_train_loss"][0]
    force = metrics["nequip_l0_300k_force_rmse_mev_per_angstrom"]
    assert force[-1] < 1e3 * float(jnp.sqrt(jnp.mean(data.tests["300k"].force ** 2)))  # better than no force
    rows = {row.name: row for row in acac.result(CONFIG, metrics, state, data).rows}
    assert rows["NequIP l_max 0, force RMSE at 300 K (meV/Å)"].value == pytest.approx(float(force.min()), rel=0.5)
    assert rows["NequIP l_max 0, largest change of an energy when turned (eV)"].value < 1e-5
    assert rows["NequIP l_max 0, largest error of a turned force (eV/Å)"].value < 1e-4
    assert acac.figure({name: values[None] for name, values in metrics.items()}).axes


def test_what_cannot_be_done_is_refused(folder, tmp_path):
    with pytest.raises(exits.Refused, match="no data folder is given"):
        acac.data(CONFIG, None)
    with pytest.raises(exits.Refused, match="batch: expected at most 450"):
        acac.Config(batch=451)
    with pytest.raises(exits.Refused, match="expected at least one l_max"):
        acac.Config(nequip=(), mace=())
    with pytest.raises(exits.Refused, match="epochs: expected at least 1"):
        acac.Config(epochs=0)
