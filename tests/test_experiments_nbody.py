"""The charged five-body experiment: its simulator, its readers, its numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import satorras2021_nbody as nbody
from experiments.engine import exits
from experiments.simulators import charged_particles
from lie import so3


def _reference(data_folder):
    return np.load(data_folder / "nbody" / "nbody_small_seed43.npz", allow_pickle=False)


def _compare(samples, reference, splits):
    for split, sample in zip(splits, samples, strict=True):
        for field, name in (("position", "x0"), ("velocity", "v0"), ("target", "x1"), ("charge", "q")):
            ours = getattr(sample, field)
            np.testing.assert_allclose(ours, reference[f"{split}_{name}"][: len(ours)], rtol=0, atol=1e-5)


def test_simulator_equals_the_reference_on_its_first_thousand(data_folder):
    samples = charged_particles.generate(43, (1000,), (1000,))
    _compare(samples, _reference(data_folder), ("train",))


@pytest.mark.slow
def test_simulator_equals_the_whole_reference(data_folder):
    samples = charged_particles.generate(43, (10_000, 2000, 2000), (3000, 2000, 2000))
    _compare(samples, _reference(data_folder), charged_particles.SPLITS)


def test_forces_conserve_momentum_and_follow_from_the_potential():
    """Σ_i F_i = 0, and F = −∇U for U = Σ_{i<j} q_i q_j / r_ij, in float64 and far from the clip."""
    keys = jax.random.split(jax.random.key(0), 2)
    x = 2 * jax.random.normal(keys[0], (4, 3, 5), jnp.float64)
    q = jnp.sign(jax.random.normal(keys[1], (4, 5), jnp.float64))

    def potential(x, q):
        difference = x[:, :, None] - x[:, None, :]
        distance = jnp.sqrt(jnp.sum(difference**2, axis=0) + jnp.eye(5))
        return jnp.sum(jnp.triu(q[:, None] * q / distance, 1))

    force = charged_particles._force(q[:, :, None] * q[:, None], x)
    expected = -jax.vmap(jax.grad(potential))(x, q)
    assert float(jnp.abs(expected).max()) < charged_particles.LARGEST_FORCE
    np.testing.assert_allclose(force, expected, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(jnp.sum(force, axis=-1), 0, atol=1e-11)


@pytest.mark.parametrize("wrong", [{"keep": (3,)}, {"input_frame": 40}, {"target_frame": 49}])
def test_simulator_refuses_what_it_cannot_do(wrong):
    with pytest.raises(ValueError, match=r"keep|frames"):
        charged_particles.generate(0, (2,), **({"keep": (2,)} | wrong))


def test_original_repository_files_are_read(tmp_path):
    random = np.random.default_rng(0)
    for split in charged_particles.SPLITS:
        for part, shape in (("loc", (6, 49, 3, 5)), ("vel", (6, 49, 3, 5)), ("charges", (6, 5, 1))):
            np.save(tmp_path / f"{part}_{split}_charged5_initvel1small.npy", random.normal(size=shape))
    config = nbody.Config(train_samples=6, test_samples=6, batch=2, dataset=str(tmp_path))
    splits = nbody.data(config, None)
    trajectories = np.load(tmp_path / "loc_test_charged5_initvel1small.npy")
    np.testing.assert_allclose(splits["test"].target, trajectories[:, 40].swapaxes(1, 2), rtol=1e-6)
    assert splits["train"].charge.shape == (6, 5)
    (tmp_path / "vel_valid_charged5_initvel1small.npy").unlink()
    with pytest.raises(exits.Refused, match=r"vel_valid_charged5_initvel1small\.npy is missing"):
        nbody.data(config, None)


def test_damaged_or_small_data_set_is_refused(tmp_path):
    archive = tmp_path / "set.npz"
    archive.write_bytes(b"not an archive")
    with pytest.raises(exits.Refused, match="damaged"):
        nbody.data(nbody.Config(dataset=str(archive)), None)
    few = {
        f"{split}_{name}": np.zeros((3, 5, 3), np.float32)
        for split in charged_particles.SPLITS
        for name in ("x0", "v0", "x1")
    }
    few |= {f"{split}_q": np.zeros((3, 5), np.float32) for split in charged_particles.SPLITS}
    np.savez(archive, allow_pickle=False, **few)
    with pytest.raises(exits.Refused, match="train: 3000 trajectories are asked for, the data set has 3"):
        nbody.data(nbody.Config(dataset=str(archive)), None)


def trained(**more):
    config = nbody.Config(
        epochs=4, test_every=2, train_samples=40, test_samples=20, batch=10, hidden=8, layers=2, **more
    )
    keys = jax.random.split(jax.random.key(0), 4)

    def sample(count, key):
        keys = jax.random.split(key, 3)
        x, v = (jax.random.normal(k, (count, 5, 3), jnp.float32) for k in keys[:2])
        q = jnp.sign(jax.random.normal(keys[2], (count, 5), jnp.float32))
        return charged_particles.Sample(x, v, q, x + 0.7 * v)

    data = {
        split: sample(count, key)
        for split, count, key in zip(charged_particles.SPLITS, (40, 20, 20), keys[1:], strict=True)
    }
    state = nbody.init(config, keys[0], data)
    advance = jax.jit(lambda state: nbody.advance(config, state, data))
    history = []
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
        while not nbody.done(config, state):
            state, metrics = advance(state)
            history.append(metrics)
    metrics = {name: np.array([line[name] for line in history]) for name in history[0]}
    return config, data, state, metrics


@pytest.fixture(scope="module")
def small():
    return trained()


def test_training_lowers_the_training_error_of_every_model(small):
    _, _, state, metrics = small
    assert int(state.epoch) == 4
    for name in nbody.MODELS:
        assert metrics[f"{name}_train_mse"][-1] < metrics[f"{name}_train_mse"][0]


def test_best_keeps_the_test_error_of_the_best_validation_error(small):
    _, _, state, metrics = small
    for name in nbody.MODELS:
        best = metrics[f"{name}_validation_mse"].argmin()
        assert float(state.trainings[name].best.test) == metrics[f"{name}_test_mse"][best]


def test_equivariant_models_see_no_difference_in_a_rotated_test_set(small):
    config, data, state, metrics = small
    rows = {row.name: row for row in nbody.result(config, metrics, state, data).rows}
    for name in ("EGNN, largest relative change of MSE on the rotated test set", "EGNN, mean |f(Rx) - Rf(x)|^2 / MSE"):
        assert rows[name].value <= rows[name].high
    assert rows["GNN, mean |f(Rx) - Rf(x)|^2 / MSE"].value > 1e-3
    assert rows["Linear test MSE"].value < 1e-12  # these data are linear


def test_rotated_data_keep_distances_and_charges(small):
    _, data, _, _ = small
    turned = nbody.rotated(data["test"], so3.sample((), jnp.float32, key=jax.random.key(3)))
    for field in ("position", "target"):
        distances = [
            jnp.linalg.norm(a[:, :, None] - a[:, None], axis=-1)
            for a in (getattr(turned, field), getattr(data["test"], field))
        ]
        np.testing.assert_allclose(*distances, atol=2e-6)
    np.testing.assert_array_equal(turned.charge, data["test"].charge)


def test_figure_is_drawn_from_metrics_alone(small):
    _, _, _, metrics = small
    figure = nbody.figure({name: np.stack([values, values]) for name, values in metrics.items()})
    assert [axes.get_xlabel() for axes in figure.axes[:2]] == ["epoch", "epoch"]


@pytest.mark.slow
def test_segnn_is_trained_when_asked_for():
    config, data, state, metrics = trained(models="segnn", rate_segnn=2e-3)
    assert metrics["segnn_train_mse"][-1] < metrics["segnn_train_mse"][0]
    rows = {row.name: row for row in nbody.result(config, metrics, state, data).rows}
    assert list(rows) == [
        "Linear test MSE",
        "SEGNN test MSE",
        "SEGNN, largest relative change of MSE on the rotated test set",
        "SEGNN, mean |f(Rx) - Rf(x)|^2 / MSE",
    ]
    for row in rows.values():
        assert row.value <= row.high
    assert len(nbody.figure({name: values[None] for name, values in metrics.items()}).axes) == 3


@pytest.mark.parametrize("models", ["segnn,transformer", "linear", "egnn,egnn", ""])
def test_models_that_do_not_exist_are_refused(models):
    with pytest.raises(exits.Refused, match="models: expected different ones of radial_field, gnn, egnn, segnn, got"):
        nbody.Config(models=models)
