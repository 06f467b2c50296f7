"""Checkpoints that are either right or refused: Orbax's atomic steps, with a digest of every array beside them.

The only file that knows Orbax. A step is acknowledged when `save` returns; two are kept. `restore` walks from the
newest step to older ones until every byte is the one that was saved; what it passes is moved into damaged/, so that its
number is free again. A step that is whole but belongs to other code (names, shapes, dtypes) is refused, not passed.
"""

import contextlib
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.engine import provenance
from experiments.engine.exits import NotSaved, Refused

_KEPT = 2
_DELETED, _DAMAGED = "deleted", "damaged"


class Restored(NamedTuple):
    """A state and where it comes from; `step` is 0 and `state` the template itself if nothing was found."""

    step: int
    state: Any
    warnings: list[str]
    notes: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run folder. States are pytrees of arrays, typed random keys included."""

    def __init__(self, folder: Path) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._folder = folder.resolve()
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        # Orbax only moves old steps into `deleted` (one rename, so none is ever half there); _sweep empties it.
        # One process writes, whatever the number of processes: arrays come here as whole host arrays.
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT,
            todelete_subdir=_DELETED,
            enable_async_checkpointing=False,
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(), active_processes={jax.process_index()}
            )
            if jax.process_count() > 1
            else ocp.options.MultiprocessingOptions(),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any, notes: dict[str, Any] | None = None) -> None:
        """Writes `state` as `step`, plain `notes` with it; when this returns, the step survives a kill.

        NotSaved if the disk refuses; the steps before are untouched then.
        """
        leaves = named_leaves(state)
        items = {
            "state": ocp.args.StandardSave({name: leaf for name, leaf in leaves.items() if leaf.size}),
            "manifest": ocp.args.JsonSave(_manifest(leaves, notes or {})),
        }
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # Orbax reports a full disk as either
            self._sweep()
            raise NotSaved(f"{self._folder}: step {step} could not be saved: {str(error).splitlines()[0]}") from error
        self._sweep()

    def restore(self, template: Any) -> Restored:
        """The newest good step; Refused if a whole one differs from `template` in a name, a shape or a dtype."""
        warnings, steps = [], sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            try:
                state, notes = self._restore(step, template)
                return Restored(step, state, warnings, notes)
            except Refused:
                raise
            except Exception as error:  # whatever a damaged file makes Orbax raise, an older step may be good
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                fallback = "falling back to the one before" if step != steps[-1] else "none is left: starting again"
                warnings.append(f"checkpoint {self._folder / str(step)} is damaged ({reason}); {fallback}")
                self._set_aside(step)
        return Restored(0, template, warnings, {})

    def close(self) -> None:
        self._manager.close()

    def _restore(self, step: int, template: Any) -> tuple[Any, dict[str, Any]]:
        where = self._folder / str(step)
        manifest = self._manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))["manifest"]
        if _seal(manifest) != manifest["sha256"]:
            raise ValueError("its manifest is not the one that was saved")
        expected, described = named_leaves(template), manifest["arrays"]
        for name in sorted({*expected, *described}):
            found = "{dtype} of shape {shape}".format(**described[name]) if name in described else "absent"
            wanted = "{dtype} of shape {shape}".format(**_describe(expected[name])) if name in expected else "none"
            if found != wanted:
                raise Refused(
                    f"{where}: {name.lstrip('0123456789')} is {found}, this code expects {wanted}; "
                    "go on with the code that wrote it, or restart with --fresh"
                )
        # Orbax refuses arrays without elements; the manifest alone holds them.
        abstract = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in expected.items() if a.size}
        restored = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
        arrays = expected | {name: np.asarray(value) for name, value in restored["state"].items()}
        for name in expected:
            if provenance.digest(arrays[name]) != described[name]["sha256"]:
                raise ValueError(f"the bytes of {name.lstrip('0123456789')} are not those that were saved")
        return refill(template, {name: arrays[name] for name in expected}), manifest["notes"]

    def _set_aside(self, step: int) -> None:
        """Moves a damaged step away: its number can be saved again, and nobody restores it by mistake."""
        attic = self._folder / _DAMAGED
        with contextlib.suppress(OSError):
            attic.mkdir(exist_ok=True)
            earlier = len(list(attic.glob(f"{step}-*")))
            (self._folder / str(step)).rename(attic / f"{step}-{earlier + 1}")
        self._manager.reload()

    def _sweep(self) -> None:
        """Removes what a kill, a full disk or Orbax left: old steps renamed for deletion, unfinished writes."""
        shutil.rmtree(self._folder / _DELETED, ignore_errors=True)
        for unfinished in self._folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(unfinished, ignore_errors=True)


def named_leaves(state: Any) -> dict[str, np.ndarray]:
    """Leaves as plain host arrays by position and path; a typed random key becomes its words."""
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {
        f"{i:06d}{jax.tree_util.keystr(path, simple=True, separator='.')}": np.asarray(
            jax.random.key_data(leaf) if is_key(leaf) else leaf
        )
        for i, (path, leaf) in enumerate(paths)
    }


def refill(template: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `named_leaves`, with the structure of `template`; `arrays` in the order of its leaves."""
    leaves, structure = jax.tree_util.tree_flatten(template)
    return structure.unflatten(
        [
            jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
            if is_key(leaf)
            else jnp.asarray(array)
            for leaf, array in zip(leaves, arrays.values(), strict=True)
        ]
    )


def is_key(leaf: Any) -> bool:
    """Whether `leaf` is an array of typed random keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(value: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(value.dtype), "shape": list(value.shape)}


def _manifest(leaves: dict[str, np.ndarray], notes: dict[str, Any]) -> dict[str, Any]:
    arrays = {name: _describe(value) | {"sha256": provenance.digest(value)} for name, value in leaves.items()}
    manifest = {"arrays": arrays, "notes": notes}
    return manifest | {"sha256": _seal(manifest)}


def _seal(manifest: dict[str, Any]) -> str:
    content = {key: manifest[key] for key in ("arrays", "notes")}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
