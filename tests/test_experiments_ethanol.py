"""Learning curves on ethanol: each network sees its own first frames only, learns, and its errors have names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from spring_molecule import write

from experiments import batzner2022_ethanol as ethanol
from experiments.engine import exits

CONFIG = dataclasses.replace(
    ethanol.PRESETS["smoke"], degrees=(0,), sizes=(5, 40), steps=60, test_frames=30, channels=4, radial_hidden=(8,)
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    write(place / "ethanol_rmd17", {"train": (60, 0.05), "test_MD": (30, 0.05)})
    return ethanol.data(CONFIG, place)


@pytest.mark.slow
def test_networks_learn_from_their_own_frames_alone(data):
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
        advance = jax.jit(lambda state, data: ethanol.advance(CONFIG, state, data))
        state = ethanol.init(CONFIG, jax.random.key(0), data)
        first, one = advance(state, data)
        # frames past the fifth do not reach the first network, and do reach the second
        position = data.train.position.at[5:].add(0.1 * jax.random.normal(jax.random.key(1), (55, 4, 3), jnp.float32))
        moved, _ = advance(state, data._replace(train=data.train._replace(position=position)))
        last, two = advance(first, data)
    for old, new in zip(jax.tree.leaves(first.trainings), jax.tree.leaves(moved.trainings), strict=True):
        np.testing.assert_array_equal(old[0], new[0])
    leaves = zip(jax.tree.leaves(first.trainings), jax.tree.leaves(moved.trainings), strict=True)
    assert any((np.asarray(old[1]) != np.asarray(new[1])).any() for old, new in leaves)
    assert ethanol.done(CONFIG, last)
    assert not ethanol.done(CONFIG, first)
    metrics = {name: np.stack([one[name], two[name]]) for name in one}
    assert (metrics["l0_train_loss"][1] < metrics["l0_train_loss"][0]).all()
    rows = {row.name: row for row in ethanol.result(CONFIG, metrics, last, data).rows}
    assert rows["l_max 0, 40 frames: force RMSE (meV/Å)"].value == metrics["l0_force_rmse_mev_per_angstrom"][1, 1]
    assert ethanol.figure({name: values[None] for name, values in metrics.items()}).axes


def test_what_cannot_be_done_is_refused(data, tmp_path):
    with pytest.raises(exits.Refused, match="no data folder is given"):
        ethanol.data(CONFIG, None)
    write(tmp_path / "ethanol_rmd17", {"train": (20, 0.05), "test_MD": (30, 0.05)})
    with pytest.raises(exits.Refused, match="at most 20 and 30 frames"):
        ethanol.data(CONFIG, tmp_path)
    for field, value in (("sizes", (5,)), ("degrees", ()), ("steps", 0)):
        with pytest.raises(exits.Refused, match=field):
            dataclasses.replace(CONFIG, **{field: value})
