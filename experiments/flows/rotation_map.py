"""Rotations as a map: each one the point where it takes the z axis, coloured by the turn about it."""

from typing import Any

import numpy as np


def draw(axes: Any, R: np.ndarray) -> Any:
    """Each rotation as the point R e_z of a map, coloured by the turn of its x axis from the meridian."""
    z, x = R[:, :, 2], R[:, :, 0]
    longitude, latitude = np.arctan2(z[:, 1], z[:, 0]), np.arcsin(np.clip(z[:, 2], -1, 1))
    east = np.stack([-np.sin(longitude), np.cos(longitude), np.zeros(len(R))], axis=-1)
    north = np.cross(z, east)
    turn = np.arctan2(np.sum(x * north, axis=1), np.sum(x * east, axis=1))
    axes.grid(alpha=0.3)
    axes.set_xticklabels([])
    axes.set_yticklabels([])
    return axes.scatter(longitude, latitude, c=turn, s=7, cmap="twilight", vmin=-np.pi, vmax=np.pi, linewidths=0)
