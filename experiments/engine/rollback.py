"""What happens when a block leaves NaN or infinity behind: nothing of it is kept, and the remedies come one by one.

A number is bad if it was finite before the block and is not after it (NaN or infinity that was there before, an unset
best error say, is the experiment's own), or if a metric is not finite and the experiment does not list it in
MAY_NOT_BE_FINITE. The remedies, in this order for one spot of trouble:
    again     the same block: after a passing fault of the machine the run ends as if nothing had been
    redraw    the update is skipped: the bad seeds go on from the same state with other random draws
    lower     back to the last checkpoint with the rates halved, if the experiment has `lower_rate(config, factor)`;
              three times at most in a run
When none is left the run stops and leaves a bundle (see bundle.py).
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine import checkpoint

AGAIN, REDRAW, LOWER = "again", "redraw", "lower"
_LOWERED_AT_MOST = 3
_OVER_AFTER = 10  # good blocks beyond the worst one: new trouble then is met from the first remedy on
_FINE, _INFINITE, _NAN = 0, 1, 2


def illness(before: Any, after: Any) -> dict[str, jax.Array]:
    """For each leaf of real numbers, for each seed: 0 if no number lost its finiteness, 1 for infinity, 2 for NaN."""
    found = {}
    pairs = zip(jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(before), strict=True)
    for (path, new), old in pairs:
        if jnp.issubdtype(new.dtype, jnp.inexact):
            axes = tuple(range(1, new.ndim))
            lost = jnp.isfinite(old) & ~jnp.isfinite(new)
            worst = jnp.where(jnp.isnan(new), _NAN, _INFINITE)
            found[jax.tree_util.keystr(path)] = jnp.max(jnp.where(lost, worst, _FINE), axis=axes, initial=_FINE)
    return found


def complaints(ill: dict[str, Any], metrics: dict[str, np.ndarray], excused: Sequence[str]) -> dict[str, np.ndarray]:
    """'NaN in .weights' -> which seeds; empty if the block is good. `metrics` have the seeds as their first axis."""
    found = {name: np.asarray(codes) for name, codes in ill.items()}
    for name, values in metrics.items():
        if name not in excused and np.issubdtype(values.dtype, np.inexact):
            flat = values.reshape(values.shape[0], -1)
            codes = np.where(np.isnan(flat), _NAN, np.where(np.isinf(flat), _INFINITE, _FINE))
            found[f"the metric {name}"] = codes.max(axis=1, initial=_FINE)
    return {
        f"{'NaN' if codes.max() == _NAN else 'infinity'} in {name}": codes > _FINE
        for name, codes in found.items()
        if codes.any()
    }


class Remedies:
    """The remedies in order; which is next depends on where the trouble was and on what was tried there."""

    def __init__(self, *, redraws: bool, lowers: bool, lowered: int) -> None:
        self._ladder = [*[REDRAW] * redraws, *[LOWER] * (_LOWERED_AT_MOST * lowers)]
        self.lowered = lowered
        self.tried: list[str] = []
        self._worst, self._repeated = 0, set[int]()

    def next(self, block: int) -> str:
        """The remedy to try for `block`, or '' if none is left. Another block's trouble may be a passing fault, too."""
        if block > self._worst + _OVER_AFTER:
            self.tried, self._repeated = [], set()
        self._worst = max(self._worst, block)
        rest = [AGAIN] if block not in self._repeated else self._ladder[len(self.tried) - self.tried.count(AGAIN) :]
        if not rest or (rest[0] == LOWER and self.lowered >= _LOWERED_AT_MOST):
            return ""
        self._repeated.add(block)
        self.tried.append(rest[0])
        self.lowered += rest[0] == LOWER
        return rest[0]


def draws(state: Any) -> bool:
    """Whether `state` has random keys, without which `redraw` would change nothing."""
    return any(checkpoint.is_key(leaf) for leaf in jax.tree.leaves(state))


def redraw(states: Any, bad: np.ndarray, count: int) -> Any:
    """`states` with new random keys for the seeds in `bad`; the other seeds stay as they are, bit for bit."""

    def one(leaf: Any) -> Any:
        if not checkpoint.is_key(leaf):
            return leaf
        flat = leaf.reshape(-1)
        fresh = jax.vmap(lambda key: jax.random.fold_in(key, count))(flat).reshape(leaf.shape)
        old, new = (np.asarray(jax.random.key_data(keys)) for keys in (leaf, fresh))
        chosen = np.where(bad.reshape(-1, *[1] * (old.ndim - 1)), new, old)
        return jax.random.wrap_key_data(jnp.asarray(chosen), impl=jax.random.key_impl(leaf))

    return jax.tree.map(one, states)
