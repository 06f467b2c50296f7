"""How every test runs: which are slow, both precisions available, annotations checked, compilations cached, truth."""

import json
import os
from pathlib import Path

os.environ.setdefault("HAAR_CHECK", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

ROOT = Path(__file__).resolve().parents[1]

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update(
    "jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


SLOW = {line for line in (ROOT / "tests" / "slow.txt").read_text().splitlines() if line and not line.startswith("#")}


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items):
    """Marks the tests of slow.txt slow."""
    for item in items:
        if item.nodeid.removeprefix("tests/") in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(params=[jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)], ids=["float32", "float64"])
def dtype(request):
    """float32, where errors show first; float64 among the slow tests, which compile as much again."""
    return request.param


@pytest.fixture
def own_checks():
    """The checks of `lie.check` alone, as users meet them: without jaxtyping's, which come first in the other tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def truth():
    """Loader of high-precision tables, truth("igso3") -> dict; skips where HAAR_TRUTH names no folder with them."""
    folder = os.environ.get("HAAR_TRUTH")
    if not folder or not Path(folder).is_dir():
        pytest.skip("HAAR_TRUTH names no folder of truth tables")
    return lambda name: json.loads((Path(folder) / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def data_folder():
    """The folder of real data; skips where HAAR_DATA names none."""
    folder = os.environ.get("HAAR_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("HAAR_DATA names no data folder")
    return Path(folder)
