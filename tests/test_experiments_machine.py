"""Device and precision: what is asked is what is used, or the run is refused with the field that would not follow."""

import json

import jax
import jax.numpy as jnp
import pytest
import small_experiment as small

from experiments.engine import exits, machine, run


def _keeping(config, state, data):
    """Computes in whatever precision the state has."""
    error = data.x @ state.weights - data.y
    weights = state.weights - config.rate / 1000 * (error @ data.x)
    return small.State(state.key, state.block + 1, weights, state.best), {"loss": jnp.mean(error**2)}


def test_dtype_reaches_data_state_and_record_and_names_another_run(tmp_path):
    chosen, loss = small.experiment(advance=_keeping), {}
    for dtype in ("float64", "bfloat16"):
        folder = tmp_path / dtype
        asked = small.request(folder, dtype=dtype, matmul="highest")
        run.run(chosen, small.Config(3), asked)
        assert json.loads((folder / "config.json").read_text())["precision"] == {"dtype": dtype, "matmul": "highest"}
        loss[dtype] = small.metrics(folder)["loss"][0][-1]
    assert loss["float64"] == pytest.approx(loss["bfloat16"], rel=0.1)
    assert loss["float64"] != loss["bfloat16"]
    with pytest.raises(exits.Refused, match=r"precision\.dtype: float64 -> float16"):
        run.run(chosen, small.Config(3), small.request(tmp_path / "float64", dtype="float16", matmul="highest"))


def test_experiment_that_does_not_keep_the_dtype_is_refused_with_the_field(tmp_path):
    def falling_back(config, state, data):
        after, metrics = _keeping(config, state, data)
        return after._replace(weights=after.weights.astype(jnp.float32)), metrics

    with pytest.raises(
        exits.Refused, match=r"small: weights is float64\(300,\) before a block and float32\(300,\) after"
    ):
        run.run(small.experiment(advance=falling_back), small.Config(3), small.request(tmp_path / "a", dtype="float64"))


def test_cast_leaves_keys_and_counts_alone():
    tree = {"key": jax.random.key(0), "step": jnp.int32(3), "w": jnp.ones(2, jnp.float32)}
    made = machine.cast(tree, "float64")
    assert (made["step"].dtype, made["w"].dtype) == (jnp.int32, jnp.float64)
    assert made["key"].dtype == tree["key"].dtype
    assert machine.cast(tree, None) is tree


@pytest.mark.parametrize("device", ["gpu:2", "CPU", "cpu:0", "cpu:", "8"])
def test_unclear_devices_are_refused(device):
    with pytest.raises(exits.Refused, match="expected cpu, gpu, cuda, rocm or tpu"):
        machine.use(device, None, None)


def test_device_that_the_process_does_not_have_is_refused():
    machine.check("cpu")
    with pytest.raises(exits.Refused, match="already computes on cpu"):
        machine.check("tpu")
