"""Where a result comes from: code, versions, machine, data."""

import hashlib
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

_PACKAGES = ("haar", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "e3nn-jax", "numpy", "scipy")


def collect(data: tuple[Any, ...]) -> dict[str, Any]:
    """Everything that decides the digits of a run besides its config."""
    device = jax.devices()[0]
    return {
        "git": git_state(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "device": {"platform": device.platform, "kind": device.device_kind, "count": jax.device_count()},
        "machine": {"system": platform.platform(), "processor": _processor(), "host": platform.node()},
        "data_sha256": digest(data),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def git_state() -> dict[str, str]:
    """Commit and uncommitted changes of the source, or how it was installed if it is no checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        if Path(git("rev-parse", "--show-toplevel").strip()) != root:
            raise FileNotFoundError
        return {"commit": git("rev-parse", "HEAD").strip(), "uncommitted": git("diff", "HEAD", "--", "*.py", "*.toml")}
    except (subprocess.CalledProcessError, FileNotFoundError):
        return {"commit": "not a checkout", "uncommitted": ""}


def digest(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all leaves."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        value = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {value.dtype} {value.shape}".encode())
        total.update(value.tobytes())
    return total.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()
