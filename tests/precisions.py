"""Which precisions a test runs in where both take long: float32, which holds the hazards; float64 among the slow."""

import jax.numpy as jnp
import pytest

float64_is_slow = pytest.mark.parametrize(
    "dtype", [jnp.float32, pytest.param(jnp.float64, marks=pytest.mark.slow)], ids=["float32", "float64"]
)
