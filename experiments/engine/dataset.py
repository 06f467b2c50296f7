"""Data that is expensive to make is made once per machine and kept in the cache folder, named by what made it."""

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine import files
from experiments.engine.exits import Refused


def cache_folder() -> Path:
    """HAAR_CACHE, else the user's cache folder."""
    base = os.environ.get("HAAR_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "haar"


def cached(name: str, recipe: Mapping[str, Any], make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays that `make()` returns; from disk if an earlier call with the same `recipe` left them there.

    A damaged file (its checksum is wrong) is made again; a folder that cannot be written only costs the next run time.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    path = cache_folder() / "data" / f"{name}-{key}.npz"
    try:
        return load(path)
    except (Refused, FileNotFoundError):
        arrays = dict(make())
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, buffer.getvalue())
    except OSError as error:
        print(f"note: the data set could not be kept in {path.parent} ({error.strerror}); the next run makes it again")
    return arrays


def load(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; Refused if it is damaged or holds anything but plain arrays."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError) as error:
        raise Refused(f"{path} is no archive of plain arrays, or is damaged: {error}") from error
