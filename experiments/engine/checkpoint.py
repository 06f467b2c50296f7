"""Checkpoints that are either right or refused: Orbax's atomic steps, with a digest of every array beside them.

The only file that knows Orbax. A step is acknowledged when `save` returns; two are kept. `restore` walks from the
newest step to older ones until one has every array of the expected name, shape, dtype and digest.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from experiments.engine import provenance
from experiments.engine.exits import NotSaved

_KEPT = 2


class Checkpoints:
    """The checkpoints of one run folder. States are pytrees of arrays, typed random keys included."""

    def __init__(self, folder: Path) -> None:
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._folder = folder.resolve()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=_KEPT, todelete_subdir="deleted", enable_async_checkpointing=False, create=True
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any) -> None:
        """Writes `state` as `step`; when this returns, the step survives a kill. NotSaved if the disk refuses."""
        leaves = _named_leaves(state)
        items = {
            "state": ocp.args.StandardSave(leaves),
            "digest": ocp.args.JsonSave({name: provenance.digest(value) for name, value in leaves.items()}),
        }
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:  # Orbax reports a full disk as either
            raise NotSaved(f"{self._folder}: step {step} could not be saved: {str(error).splitlines()[0]}") from error

    def restore(self, template: Any) -> tuple[int, Any, list[str]]:
        """(step, state, warnings) of the newest good step, or (0, template, warnings) if there is none."""
        warnings = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return step, self._restore(step, template), warnings
            except Exception as error:  # whatever a damaged file makes Orbax raise, an older step may be good
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.append(
                    f"checkpoint {self._folder / str(step)} is damaged ({reason}); falling back to the one before"
                )
        return 0, template, warnings

    def close(self) -> None:
        self._manager.close()

    def _restore(self, step: int, template: Any) -> Any:
        expected = _named_leaves(template)
        abstract = {name: jax.ShapeDtypeStruct(value.shape, value.dtype) for name, value in expected.items()}
        items = {"state": ocp.args.StandardRestore(abstract), "digest": ocp.args.JsonRestore()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        arrays = {name: np.asarray(value) for name, value in restored["state"].items()}
        for name, value in expected.items():
            found = arrays[name]
            if found.shape != value.shape or found.dtype != value.dtype:
                raise ValueError(f"{name} is {found.dtype}{found.shape}, expected {value.dtype}{value.shape}")
            if provenance.digest(found) != restored["digest"][name]:
                raise ValueError(f"the bytes of {name} are not those that were saved")
        leaves, structure = jax.tree_util.tree_flatten(template)
        return structure.unflatten(
            [
                jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
                if _is_key(leaf)
                else jnp.asarray(array)
                for leaf, array in zip(leaves, arrays.values(), strict=True)
            ]
        )


def _named_leaves(state: Any) -> dict[str, np.ndarray]:
    """Leaves as plain arrays by position and path; a typed random key becomes its words."""
    paths = jax.tree_util.tree_leaves_with_path(state)
    return {
        f"{i:04d}{jax.tree_util.keystr(path, simple=True, separator='.')}": np.asarray(
            jax.random.key_data(leaf) if _is_key(leaf) else leaf
        )
        for i, (path, leaf) in enumerate(paths)
    }


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
