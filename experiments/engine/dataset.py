"""Data that is expensive to make is made once per machine and kept in the cache folder, named by what made it."""

import hashlib
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from experiments.engine import files
from experiments.engine.exits import Refused

_DENSEST = 1100  # times that deflate can shrink: 1032 is its limit


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
    """All arrays of an .npz file; Refused if it is damaged, holds no plain arrays, or claims a size it has not.

    Headers are read before any array, so that a small file cannot ask for more memory than its bytes can fill.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.file_size > _DENSEST * member.compress_size + 1024:
                    raise ValueError(
                        f"{member.filename} claims {member.file_size} bytes, packed in {member.compress_size}"
                    )
                with archive.open(member) as file:
                    _check_header(file, member.file_size, member.filename)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise Refused(f"{path} is no archive of plain arrays, or is damaged: {error}") from error


def load_array(path: Path) -> np.ndarray:
    """The array of an .npy file; Refused as in `load`."""
    try:
        with open(path, "rb") as file:
            _check_header(file, path.stat().st_size, path.name)
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise Refused(f"{path} is no plain array, or is damaged: {error}") from error


def _check_header(file: IO[bytes], size: int, name: str) -> None:
    """ValueError unless the header of an array in .npy form announces exactly the bytes that follow it."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name} has version {version} of the array format")
    shape, _, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    announced, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if min(shape, default=0) < 0 or announced != there:
        raise ValueError(f"{name} announces {announced} bytes of numbers and holds {there}")
