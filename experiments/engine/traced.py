"""A program that was traced once is not traced again: its StableHLO waits in the cache folder for the next start.

JAX's compilation cache saves the compiler's time; Python's, to trace and lower, is left, and is most of a warm start. A
kept program is named by a digest of all that tracing reads: every source file of haar, the versions of the libraries,
the config, the shapes and types of the arguments, and JAX's own settings. A damaged file is traced anew.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.export

from experiments.engine import dataset, files, identity
from experiments.engine.experiment import Experiment

_SOURCES = ("lie", "equivariant", "ot", "experiments")
_SETTINGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_debug_nans",
    "jax_disable_jit",
)


def lower(
    experiment: Experiment, config: Any, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Callable[..., Any], jax.stages.Lowered]:
    """(call, lowered): `function(*arguments)` lowered, with `call(compiled)` to give its arguments as trees.

    Kept programs serve experiments of this package only, on one device: of others nobody knows what they depend on.
    """
    leaves, structure = jax.tree.flatten(arguments)
    if getattr(experiment.module, "__name__", "").rpartition(".")[0] != "experiments":
        return _as_is, jax.jit(function).lower(*arguments)

    def flat(*leaves: Any) -> Any:
        states, metrics, ill = function(*jax.tree.unflatten(structure, leaves))
        return jax.tree.leaves(states), dict(metrics), ill

    path = dataset.cache_folder() / "programs" / f"{experiment.name}-{_name(experiment, config, leaves, structure)}"
    exported = _read(path)
    if exported is None:
        try:
            exported = jax.export.export(jax.jit(flat))(*leaves)
        except (ValueError, NotImplementedError):  # an operation that JAX does not promise to keep
            return _as_is, jax.jit(function).lower(*arguments)
        _keep(path, bytes(exported.serialize()))
    state_structure = jax.tree.structure(arguments[0])

    def call(compiled: Callable[..., Any]) -> Callable[..., Any]:
        def advance(*arguments: Any) -> Any:
            after, metrics, ill = compiled(*jax.tree.leaves(arguments))
            return jax.tree.unflatten(state_structure, after), metrics, ill

        return advance

    return call, jax.jit(exported.call).lower(*leaves)


def _as_is(compiled: Callable[..., Any]) -> Callable[..., Any]:
    return compiled


def _name(experiment: Experiment, config: Any, leaves: list[Any], structure: Any) -> str:
    packages = ("jax", "jaxlib", "flax", "optax", "e3nn-jax", "numpy")
    recipe = {
        "experiment": experiment.module.__name__,
        "config": identity.plain(config),
        "arguments": [str(jax.typeof(leaf)) for leaf in leaves],
        "weak": [bool(getattr(jax.typeof(leaf), "weak_type", False)) for leaf in leaves],
        "structure": str(structure),
        "platform": jax.default_backend(),
        "versions": [metadata.version(package) for package in packages],
        "checks": os.environ.get("HAAR_CHECK"),
        "settings": [str(jax.config.values.get(name)) for name in _SETTINGS],
        "sources": _sources(),
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:24]


@functools.cache
def _sources() -> str:
    root, total = Path(__file__).resolve().parents[2], hashlib.sha256()
    for path in sorted(path for package in _SOURCES for path in (root / package).rglob("*.py")):
        content = path.read_bytes()
        total.update(f"{path.relative_to(root)} {len(content)} ".encode() + content)
    return total.hexdigest()


def _read(path: Path) -> jax.export.Exported | None:
    try:
        digest, _, content = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if digest.decode(errors="replace") != hashlib.sha256(content).hexdigest():
        return None
    return jax.export.deserialize(bytearray(content))


def _keep(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except OSError as error:
        print(
            f"note: the program could not be kept in {path.parent} ({error.strerror}); the next start traces it again"
        )
