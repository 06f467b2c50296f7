"""What a run that could not be saved from NaN leaves: all it takes to compute the bad block again, anywhere.

FOLDER/failure-BLOCK/ holds the state before the block (a checkpoint, with digests), bundle.json (config, seeds, rates,
what went wrong, versions, commit, the digest of the data) and the command. The batches follow from the state's random
keys and the data, so `replay` draws the same ones.
"""

import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine import checkpoint, files, provenance


def write(
    folder: Path, block: int, states: Any, complaints: dict[str, np.ndarray], lowered: int, data: tuple[Any, ...]
) -> Path:
    """Leaves the bundle of `block`, whose state before was `states`, in the run folder; returns its own folder."""
    place = folder / f"failure-{block:06d}"
    shutil.rmtree(place, ignore_errors=True)  # of an earlier attempt at the same block
    store = checkpoint.Checkpoints(place / "state")
    store.save(block - 1, states)
    store.close()
    description = files.read_json(folder / "config.json")
    bad = {name: [int(s) for s in np.flatnonzero(seeds)] for name, seeds in complaints.items()}
    content = {
        "block": block,
        "found": bad,
        "rates_halved": lowered,
        "command": f"python -m experiments replay {shlex.quote(str(place))}",
    }
    files.write_json(place / "bundle.json", provenance.collect(data) | description | content)
    return place
