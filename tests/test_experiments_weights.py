"""Weights and programs that leave the house: read back only if whole, and run where haar is not."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.engine import exits, experiment, export, files, weights

ROOT = Path(__file__).resolve().parents[1]


def _tree():
    return {
        "key": jax.random.key(3),
        "layers": [{"kernel": jnp.arange(12.0, dtype=jnp.float32).reshape(3, 4), "bias": jnp.zeros(4, jnp.bfloat16)}],
        "step": jnp.int32(7),
    }


def test_weights_come_back_with_their_names_and_what_they_say(tmp_path):
    path, about = tmp_path / "w.safetensors", {"experiment": "small", "config": {"rate": 0.1}}
    weights.write(path, _tree(), about)
    arrays, told = weights.read(path)
    assert told == about
    assert set(arrays) == {"key", "layers.0.kernel", "layers.0.bias", "step"}
    tree, _ = weights.read(path, _tree())
    assert jax.tree.structure(tree) == jax.tree.structure(_tree())
    for ours, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(_tree()), strict=True):
        assert ours.dtype == theirs.dtype
        assert bool(jnp.array_equal(ours, theirs))


def test_no_flipped_byte_is_read(tmp_path):
    """Every byte of a small file: refused, or nothing that was written changed (padding)."""
    path = tmp_path / "w.safetensors"
    weights.write(path, {"w": jnp.arange(3.0, dtype=jnp.float32)}, {"config": {"rate": 0.1}})
    content, refused = path.read_bytes(), 0
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 0x01]) + content[i + 1 :])
        try:
            arrays, about = weights.read(path)
        except exits.Refused:
            refused += 1
        else:
            assert about == {"config": {"rate": 0.1}}
            assert set(arrays) == {"w"}
            assert np.array_equal(arrays["w"], np.arange(3.0, dtype=np.float32))
    assert refused > 0.9 * len(content)


def test_weights_of_another_model_are_refused_with_the_field(tmp_path):
    path, small = tmp_path / "w.safetensors", {"a": jnp.zeros((3, 4), jnp.float32), "b": jnp.zeros(2, jnp.float32)}
    weights.write(path, small, {})
    for other, message in (
        ({"a": jnp.zeros((4, 3), jnp.float32)}, r"a is float32\(3, 4\), expected float32\(4, 3\)"),
        ({"a": jnp.zeros((3, 4), jnp.float16)}, r"a is float32\(3, 4\), expected float16\(3, 4\)"),
        ({"c": jnp.zeros(1, jnp.float32)}, r"c is absent, expected float32\(1,\)"),
    ):
        with pytest.raises(exits.Refused, match=message):
            weights.read(path, small | other)
    with pytest.raises(exits.Refused, match=r"b is float32.* expected absent"):
        weights.read(path, {"a": small["a"]})


def test_files_that_lie_about_their_size_are_refused_before_anything_is_made(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.write(path, {"w": jnp.zeros(3, jnp.float32)}, {})
    content = path.read_bytes()
    huge = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    for damaged, message in (
        (struct.pack("<Q", 2**62) + content[8:], "claims 4611686018427387904 bytes"),
        (struct.pack("<Q", len(huge)) + huge + b"\0" * 12, "haar|safetensors"),
        (content[:-4], "no whole safetensors file"),
        (content[:5], "no whole safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "no whole safetensors file"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(exits.Refused, match=message):
            weights.read(path)
    with pytest.raises(exits.Refused, match="does not exist"):
        weights.read(tmp_path / "nowhere")


ELSEWHERE = """
import sys
for name in ("lie", "equivariant", "ot", "experiments"):
    sys.modules[name] = None  # importing it raises
import jax, jax.export, numpy as np
from safetensors.numpy import load_file
weights = load_file(sys.argv[1] + "/weights.safetensors")
model = jax.export.deserialize(bytearray(open(sys.argv[1] + "/model.stablehlo", "rb").read()))
x = np.load(sys.argv[1] + "/x.npy", allow_pickle=False)
assert model.platforms == ("cpu", "cuda", "tpu"), model.platforms
for batch in (1, len(x)):
    np.save(sys.argv[1] + f"/y{batch}.npy", np.asarray(model.call(weights, x[:batch])))
gradient = jax.grad(lambda weights: model.call(weights, x).sum())(weights)
assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradient.values())
"""


def test_exported_program_runs_without_haar(tmp_path):
    """In a process where haar cannot be imported, for two batch sizes, with gradients."""
    parameters = {
        "layers": [{"kernel": jax.random.normal(jax.random.key(0), (3, 4), jnp.float32)}],
        "scale": jnp.ones(4),
    }

    def apply(parameters, x):
        return jnp.tanh(x @ parameters["layers"][0]["kernel"]) * parameters["scale"].astype(x.dtype)

    model = experiment.Model(parameters, apply, {"x": ("batch, 3", "float32")})
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    weights.write(tmp_path / "weights.safetensors", parameters, {})
    files.write_bytes(tmp_path / "model.stablehlo", export.program(model))
    np.save(tmp_path / "x.npy", x, allow_pickle=False)
    assert export.difference(model, tmp_path) < 1e-6
    environment = os.environ | {"PYTHONPATH": "", "JAX_ENABLE_X64": "1"}
    subprocess.run([sys.executable, "-c", ELSEWHERE, str(tmp_path)], check=True, env=environment, cwd=tmp_path)
    expected = np.asarray(apply(parameters, jnp.asarray(x)))
    for batch in (1, 5):
        y = np.load(tmp_path / f"y{batch}.npy", allow_pickle=False)
        np.testing.assert_allclose(y, expected[:batch], rtol=0, atol=float(4 * np.finfo(np.float32).eps))


def test_export_refuses_what_is_no_run(tmp_path):
    with pytest.raises(exits.Refused, match="is no run folder"):
        export.export(tmp_path, tmp_path, None, None)
    files.write_json(tmp_path / "config.json", {"experiment": "nbody", "config": {}, "seeds": [0]})
    with pytest.raises(exits.Refused, match="the run has the seeds 0"):
        export.export(tmp_path, tmp_path, 4, None)
