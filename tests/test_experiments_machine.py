"""Device and precision: what is asked is what is used, or the run is refused with the field that would not follow."""

import json
import os
import subprocess
import sys

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


def test_the_pass_that_sums_rows_into_others_is_off_where_it_is_wrong(monkeypatch):
    flag = "--xla_cpu_experimental_ynn_fusion_type="
    for version, before, after in (
        ("0.10.2", None, flag),
        ("0.10.2", "--other=1", f"--other=1 {flag}"),
        ("0.10.2", f"{flag}-reduce", f"{flag}-reduce"),
        ("0.12.0", None, None),
    ):
        monkeypatch.setattr(machine.metadata, "version", lambda _, version=version: version)
        monkeypatch.delenv("XLA_FLAGS", raising=False)
        if before is not None:
            monkeypatch.setenv("XLA_FLAGS", before)
        machine.avoid_wrong_sums()
        assert os.environ.get("XLA_FLAGS") == after


def test_sums_are_right_in_a_process_of_the_command_line():
    """The sum that jaxlib 0.10.2 gets wrong in 60 % of its rows."""
    code = """
from experiments.engine import machine
machine.avoid_wrong_sums()
import jax, numpy as np
rng = np.random.default_rng(0)
R, s, c = (rng.standard_normal(shape, np.float32) for shape in ((100, 800, 3, 3), (800, 3), (800,)))
found = jax.jit(lambda R, s, c: (s * R.sum(-2)).sum(-1) - c)(R, s, c)
np.testing.assert_allclose(found, (s * R.sum(-2)).sum(-1) - c, atol=1e-4)
"""
    environment = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=100)
