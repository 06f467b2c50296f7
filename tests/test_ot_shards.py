"""A cloud whose rows lie on four devices: the solution of one device, and no matrix sent between them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ON_FOUR_DEVICES = """
import re, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.testing import assert_allclose
from ot import _implicit, _kernel, sinkhorn

if sys.argv[1] == "recomputed":
    _kernel.STORED_ENTRIES, _kernel._TILE_ENTRIES, _implicit._BLOCK_ENTRIES = 8, 40 * 8, 40 * 16
rng = np.random.default_rng(0)
x, y = jnp.asarray(rng.random((64, 3)), jnp.float32), jnp.asarray(rng.random((40, 3)) ** 2, jnp.float32)
a = jnp.asarray(rng.random(64), jnp.float32)
rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
assert len(jax.devices()) == 4
sharded = jax.device_put(x, rows)
for epsilon, tolerance in ((0.05, 1e-3), (0.005, 1e-5)):
    solve = lambda x: sinkhorn.solve(x, y, a / a.sum(), epsilon=epsilon, tolerance=tolerance)
    one, four = solve(x), solve(sharded)
    assert bool(four.converged)
    assert four.f.sharding.is_equivalent_to(rows, 1)
    assert_allclose(four.value, one.value, rtol=1e-6)
    assert_allclose(four.f, one.f, atol=2e-6)
    assert_allclose(four.apply(y), one.apply(y), atol=1e-7)
    slope = jax.grad(lambda x: solve(x).value)
    assert_allclose(slope(sharded), slope(x), atol=1e-7)
method = _implicit.Method(fine=False, symmetric=False, weighted=True)
arguments = method, 0, four.pairs, None, jnp.float32(1e-3), jnp.int32(1000)
program = _implicit._compiled.lower(*arguments).compile().as_text()
sent = re.findall(r"= (\\\\S+|\\\\(.*?\\\\)) (all-gather|all-reduce|all-to-all|collective-permute)", program)
assert any(kind == "all-reduce" for _, kind in sent)
sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for what, _ in sent
         for shape in re.findall(r"\\\\[([\\\\d,]*)\\\\]", what)]
assert max(sizes) <= 64 * 3, f"more than a cloud is sent: {sent}"
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "x64"), [("stored", "1"), ("recomputed", "0")])
def test_rows_on_four_devices_give_the_solution_of_one(kernel, x64):
    environment = dict(
        os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=4", HAAR_CHECK="0", JAX_ENABLE_X64=x64
    )
    command = [sys.executable, "-c", ON_FOUR_DEVICES.replace("\\\\", "\\"), kernel]
    root = Path(__file__).resolve().parents[1]
    ran = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
