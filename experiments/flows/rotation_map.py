"""Rotations as a map: each one the point where it takes the direction (1, 1, 1), coloured by the turn about it."""

from typing import Any

import numpy as np

DIRECTION, ACROSS = np.array([1, 1, 1]) / np.sqrt(3), np.array([1, -1, 0]) / np.sqrt(2)


def draw(axes: Any, R: np.ndarray) -> Any:
    """R (n, 3, 3) on Mollweide axes; the turn is from the east to where `ACROSS` goes. Returns the points."""
    z, x = R @ DIRECTION, R @ ACROSS
    longitude, latitude = np.arctan2(z[:, 1], z[:, 0]), np.arcsin(np.clip(z[:, 2], -1, 1))
    east = np.stack([-np.sin(longitude), np.cos(longitude), np.zeros(len(R))], axis=-1)
    north = np.cross(z, east)
    turn = np.arctan2(np.sum(x * north, axis=1), np.sum(x * east, axis=1))
    axes.grid(alpha=0.3)
    axes.set_xticklabels([])
    axes.set_yticklabels([])
    return axes.scatter(longitude, latitude, c=turn, s=9, cmap="twilight", vmin=-np.pi, vmax=np.pi, linewidths=0)
