"""Laws with many modes: on SO(3), IGSO(3) around the four elements of D2 and twenty minor ones; on SE(3)^n, chains."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from lie import densities, so3

MAJOR, MINOR = 0.6, 0.4  # shares of D2's elements and of the others, each divided evenly
SCALES = (0.4, 0.3)  # of IGSO(3), radians per axis
BOND = np.array([1.0, 0.0, 0.0])  # from frame to frame, in the frame
TWISTS = np.deg2rad([-60.0, 60.0, 180.0])  # of each frame about its bond


def modes() -> np.ndarray:
    """(24, 3, 3): the turns by 0 and π about the axes, then twenty rotations, the same in every process."""
    halves = [np.diag(d) for d in ((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))]
    q, r = np.linalg.qr(np.random.default_rng(2023).standard_normal((20, 3, 3)))
    q = q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]  # now Haar on O(3)
    return np.concatenate([halves, q * np.linalg.det(q)[:, None, None]])


def rotations(count: int, *, key: PRNGKeyArray) -> Float[Array, "count 3 3"]:
    """Independent draws in float32."""
    key_mode, key_noise = jax.random.split(key)
    weights = np.repeat([MAJOR / 4, MINOR / 20], [4, 20])
    chosen = jax.random.choice(key_mode, len(weights), (count,), p=jnp.asarray(weights, jnp.float32))
    scale = jnp.where(chosen < 4, *SCALES).astype(jnp.float32)
    return densities.IsotropicGaussian(jnp.asarray(modes(), jnp.float32)[chosen], scale).sample(key=key_noise)


def chains(R: Float[Array, "count 3 3"], frames: int, *, key: PRNGKeyArray) -> tuple[Float[Array, "count _"], ...]:
    """Poses (R_1, x_1, R_2, x_2, ...) in float32 of chains whose first frame is R.

    x_(k+1) = x_k + R_k (1, 0, 0) + noise of 0.1, and R_(k+1) = R_k exp(twist) exp(noise of 0.2), the twist about the
    bond by −60, 60 or 180 degrees. x_1 is noise of 0.2.
    """
    count, (key, key_x) = len(R), jax.random.split(key)
    x = 0.2 * jax.random.normal(key_x, (count, 3), jnp.float32)
    chain = [R, x]
    for one in jax.random.split(key, frames - 1):
        key_twist, key_turn, key_x = jax.random.split(one, 3)
        x = x + so3.act(R, jnp.asarray(BOND, jnp.float32)) + 0.1 * jax.random.normal(key_x, (count, 3), jnp.float32)
        twist = jax.random.choice(key_twist, jnp.asarray(TWISTS[:, None] * BOND, jnp.float32), (count,))
        R = so3.retract(so3.retract(R, twist), 0.2 * jax.random.normal(key_turn, (count, 3), jnp.float32))
        chain += [R, x]
    return tuple(chain)
