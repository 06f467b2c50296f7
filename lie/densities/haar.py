"""The uniform density on rotations: Haar's measure itself, to which every density of this package refers."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from lie import check, record, so3


@record.register()
@dataclass(frozen=True)
class Haar:
    """Density 1 with respect to normalised Haar measure on SO(3); it has no mean and no mode."""

    def log_prob(self, R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch"]:
        """0."""
        R = _rotation(R)
        return jnp.zeros(R.shape[:-2], R.dtype)

    def score(self, R: Float[ArrayLike, "*batch 3 3"]) -> Float[Array, "*batch 3"]:
        """0, a body-frame tangent."""
        return jnp.zeros(_rotation(R).shape[:-1], _rotation(R).dtype)

    def sample(
        self, shape: tuple[int, ...] = (), dtype: Any = jnp.float32, *, key: PRNGKeyArray
    ) -> Float[Array, "..."]:
        """Independent rotations (*shape, 3, 3)."""
        return so3.sample(shape, dtype, key=key)

    def entropy(self, dtype: Any = jnp.float32) -> Float[Array, ""]:
        """0: the largest that a density on SO(3) can have."""
        return jnp.zeros((), dtype)


def _rotation(R: ArrayLike) -> Array:
    R = check.array("R", R, 3, 3)
    check.rotation("R", R)
    return R
