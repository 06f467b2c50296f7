"""The acetylacetone experiment: its data, its loss, its numbers, on frames of a spring model where no data are."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spring_molecule import frames, write

from experiments import batatia2022_acac as acac
from experiments.engine import exits
from experiments.learners import force_field


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    write(place / "acac", {"train_300K": (500, 0.05), "test_MD_300K": (30, 0.05), "test_MD_600K": (30, 0.1)})
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
    for dtype, change, error in (("float64", 1e-12, 1e-12), ("float32", 1e-5, 1e-5)):
        assert rows[f"NequIP l_max 0, {dtype}: change of an energy when turned (eV)"].value < change
        assert rows[f"NequIP l_max 0, {dtype}: error of a turned force / largest force"].value < error
    model, some = acac.model(CONFIG, state, data), data.tests["300k"]
    energy, force = jax.jit(model.apply)(model.parameters, some.position)
    per_atom = float(jnp.sqrt(jnp.mean((energy - some.energy) ** 2)))
    best = metrics["nequip_l0_300k_energy_rmse_mev"][-1]
    assert 1e3 * per_atom == pytest.approx(float(best), rel=1e-3)
    assert force.shape == some.force.shape
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


@pytest.mark.slow
def test_shipped_weights_load_as_the_page_says_and_have_the_recorded_error(monkeypatch, data_folder):
    pytest.importorskip("ase")
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root)
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "experiments.md").read_text(), re.DOTALL)
    (code,) = [block for block in blocks if "acac.safetensors" in block]
    names = {}
    exec(compile(code, "docs/experiments.md", "exec"), names)
    record = json.loads((root / "docs" / "results" / "acac" / "cpu.json").read_text())
    (row,) = [row for row in record["rows"] if row["name"] == "NequIP l_max 2, force RMSE at 300 K (meV/Å)"]
    config = dataclasses.replace(acac.PRESETS["cpu"], test_frames=50)
    frames = acac.data(config, data_folder)
    _, force = force_field.errors(lambda _, *graph: names["energy"](*graph), None, frames.tests["300k"], frames.species)
    assert 0.8 * row["ours"][0] < float(force) < 1.2 * row["ours"][0]  # the first 50 of 650 frames
