"""Orientations of the R package `rotations`: its data frames as the arrays that the experiments read."""

from collections.abc import Mapping

import numpy as np

from experiments.readers.rdata import Column


def nickel(frame: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """EBSD of nickel: 14 scans of 3449 places; V (n, 9) has the x, y, z axes of each crystal, one after another."""
    return {
        "xpos": _numbers(frame["xpos"], np.float32),
        "ypos": _numbers(frame["ypos"], np.float32),
        "location": _numbers(frame["location"], np.int16),
        "rep": _numbers(frame["rep"], np.int8),
        "V": np.stack([_numbers(frame[f"V{i}"], np.float32) for i in range(1, 10)], axis=1),
    }


def drill(frame: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """Joints of 8 people who drill: joint 0 wrist, 1 elbow, 2 shoulder; quaternions wxyz, nan where none was taken."""
    return {
        "subject": _numbers(frame["Subject"], np.int8),
        "joint": _numbers(frame["Joint"], np.int8) - np.int8(1),  # a factor counts from 1
        "position": _numbers(frame["Position"], np.int8),
        "replicate": _numbers(frame["Replicate"], np.int8),
        "quat_wxyz": np.stack([_numbers(frame[f"Q{i}"], np.float32) for i in range(1, 5)], axis=1),
    }


def _numbers(column: Column, dtype: type) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # R's NA is a signalling nan
        return np.asarray(column.values).astype(dtype)
