"""Weights to give away: one safetensors file with its config, and a digest of every array that reading checks.

safetensors itself accepts a flipped byte; here nothing passes: neither a changed number nor a changed word of what the
file says about itself. The file remains one that every reader of safetensors reads.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from safetensors import numpy as layout

from experiments.engine import checkpoint, files, provenance
from experiments.engine.exits import Refused

_ENTRY = "haar"
_HEADER_AT_MOST = 100 * 2**20  # bytes: safetensors' own limit


def named(tree: Any) -> dict[str, np.ndarray]:
    """Leaves by path, 'layers.0.kernel'; random keys as their words."""
    found: dict[str, np.ndarray] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in found:
            raise Refused(f"two leaves are called {name}; weights need one name each")
        found[name] = np.asarray(jax.random.key_data(leaf) if checkpoint.is_key(leaf) else leaf)
    return found


def write(path: Path, tree: Any, about: dict[str, Any]) -> None:
    """The leaves of `tree` under their names, with plain data `about` where they come from."""
    arrays = {name: np.ascontiguousarray(value).reshape(value.shape) for name, value in named(tree).items()}
    entry: dict[str, Any] = {"about": about, "sha256": {name: provenance.digest(a) for name, a in arrays.items()}}
    entry["seal"] = _seal(entry)
    files.write_bytes(path, layout.save(arrays, metadata={_ENTRY: json.dumps(entry, sort_keys=True)}))


def read(path: Path, template: Any | None = None) -> tuple[Any, dict[str, Any]]:
    """(arrays by name, what the file says about them); or (a tree like `template`, ...) if one is given.

    Refused, with the field named, if the file is damaged or an array has another name, shape or dtype than there.
    """
    try:
        header = _header(path)
        entry = json.loads(header["__metadata__"][_ENTRY])
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
    except FileNotFoundError as error:
        raise Refused(f"{path} does not exist") from error
    except KeyError as error:
        raise Refused(f"{path} was not written by haar: it has no entry {error}") from error
    except (safetensors.SafetensorError, ValueError, TypeError) as error:
        raise Refused(f"{path} is no whole safetensors file: {error}") from error
    if not isinstance(entry, dict) or _seal(entry) != entry.get("seal"):
        raise Refused(f"{path} is damaged: its description is not the one that was written")
    for name in sorted({*arrays, *entry["sha256"]}):
        if name not in arrays or provenance.digest(arrays[name]) != entry["sha256"].get(name):
            raise Refused(f"{path} is damaged: {name} is not what was written")
    return (arrays if template is None else _fill(path, template, arrays)), entry["about"]


def _header(path: Path) -> dict[str, Any]:
    """The JSON header; ValueError if it claims to be longer than the file, before anything of that size is made."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _HEADER_AT_MOST):
            raise ValueError(f"its header claims {length} bytes, the file has {size}")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    return header


def _fill(path: Path, template: Any, arrays: dict[str, np.ndarray]) -> Any:
    expected = named(template)
    for name in sorted({*expected, *arrays}):
        found, wanted = (f"{t[name].dtype}{t[name].shape}" if name in t else "absent" for t in (arrays, expected))
        if found != wanted:
            raise Refused(f"{path}: {name} is {found}, expected {wanted}")
    return checkpoint.refill(template, {name: arrays[name] for name in expected})


def _seal(entry: dict[str, Any]) -> str:
    content = {key: entry.get(key) for key in ("about", "sha256")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
