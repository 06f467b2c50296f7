"""The rotations of FoldFlow's toy: orthogonal_group.npy of DreamFold/FoldFlow, CC BY-NC 4.0, which the user brings."""

from pathlib import Path

import numpy as np

from experiments.engine import dataset
from experiments.engine.exits import Refused

NAME = "orthogonal_group.npy"
SPLIT_SEED = 12345  # of the shuffle in their code, before the cuts at 40000 and 45000


def rotations(path: Path, count: int) -> np.ndarray:
    """The first `count` of the shuffled rotations (count, 3, 3), float32. Refused if the file holds no such array."""
    if not path.is_file():
        raise Refused(f"{path} does not exist; give the path of FoldFlow's {NAME}, or the data folder that holds it")
    R = np.array(dataset.load_array(path), np.float32)
    if R.ndim != 3 or R.shape[1:] != (3, 3) or len(R) < count:
        raise Refused(f"{path}: expected at least {count} rotations (n, 3, 3), got an array of shape {R.shape}")
    if not np.allclose(R @ R.transpose(0, 2, 1), np.eye(3), atol=1e-4) or not (np.linalg.det(R) > 0).all():
        raise Refused(f"{path}: some of its matrices are no rotations")
    np.random.default_rng(SPLIT_SEED).shuffle(R)
    return R[:count]
