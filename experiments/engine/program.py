"""One block of every seed as one compiled program, and what the persistent compilation cache saved.

It is compiled ahead of time, so nothing can recompile in the loop, and it reports for each leaf of the state whether a
number stopped being finite: the engine looks at that after every block, which costs one more read of the state.
"""

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.engine import mesh as devices
from experiments.engine import record, rollback, traced
from experiments.engine.exits import Refused
from experiments.engine.experiment import Experiment


class Program(NamedTuple):
    """`advance(states, *data) -> (states, metrics, illness)`, and how long it took to get it."""

    advance: Callable[..., Any]
    seconds: float
    cache: str


def compiled(experiment: Experiment, config: Any, states: Any, data: tuple[Any, ...], mesh: Mesh | None) -> Program:
    """`advance` for all seeds at once, for arguments like `states` and `data`, which are whole on every device.

    On CPU the seeds run one after the other inside one program (batched small products are slower there), elsewhere
    they are one more batch axis.
    """

    def advance_seeds(states: Any, *data: Any) -> Any:
        def one(state: Any) -> Any:
            return experiment.module.advance(config, state, *data)

        after, metrics = jax.lax.map(one, states) if jax.default_backend() == "cpu" else jax.vmap(one)(states)
        return after, metrics, rollback.illness(states, after)

    begun = time.monotonic()
    cache = _CacheCount.now()
    call: Callable[..., Any] = lambda compiled: compiled
    if mesh is None:
        call, lowered = traced.lower(experiment, config, advance_seeds, (states, *data))
    else:
        seeds = len(jax.tree.leaves(states)[0])
        whole = NamedSharding(mesh, PartitionSpec())
        dealt = contextlib.nullcontext() if (deals := devices.deals_seeds(mesh, seeds)) else jax.set_mesh(mesh)
        if deals:
            by_seed, everywhere = PartitionSpec(devices.AXIS), PartitionSpec()
            advance_seeds = jax.shard_map(
                advance_seeds,
                mesh=mesh,
                in_specs=(by_seed, *[everywhere] * len(data)),
                out_specs=by_seed,
                check_vma=False,  # seeds do not speak to each other
            )
        with dealt:
            lowered = jax.jit(advance_seeds, out_shardings=whole).lower(states, *data)
    _refuse_changed_types(experiment, states, lowered.out_info[0])
    if taken := sorted(set(record.ENGINES) & set(lowered.out_info[1])):
        raise Refused(f"{experiment.name}: a metric is called {taken[0]}, as a field of the engine's own; rename it")
    return Program(call(lowered.compile()), time.monotonic() - begun, str(_CacheCount.now() - cache))


def _refuse_changed_types(experiment: Experiment, before: Any, after: Any) -> None:
    paths, leaves = jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after)
    if len(paths) != len(leaves):
        raise Refused(f"{experiment.name}: a state has {len(paths)} arrays before a block and {len(leaves)} after it")
    for (path, old), new in zip(paths, leaves, strict=True):
        if (old.shape, old.dtype) != (new.shape, new.dtype):
            raise Refused(
                f"{experiment.name}: {jax.tree_util.keystr(path)[1:]} is {old.dtype}{old.shape[1:]} before a block and "
                f"{new.dtype}{new.shape[1:]} after it; advance must keep what init made (is --dtype meant?)"
            )


class _CacheCount(NamedTuple):
    """What JAX's persistent compilation cache did in this process so far."""

    found: int
    missed: int
    saved: float

    @classmethod
    def now(cls) -> "_CacheCount":
        if not _counts:
            jax.monitoring.register_event_listener(_count)
            jax.monitoring.register_event_duration_secs_listener(_add)
            _counts.update(dict.fromkeys(_EVENTS, 0.0))
        found, missed, saved = (_counts[event] for event in _EVENTS)
        return cls(int(found), int(missed), saved)

    def __sub__(self, other: "_CacheCount") -> "_CacheCount":
        return _CacheCount(self.found - other.found, self.missed - other.missed, self.saved - other.saved)

    def __str__(self) -> str:
        if not jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
            return "without a cache"
        if self.found and not self.missed:
            return f"from the cache, which saved {max(self.saved, 0):.1f} s"
        return f"{self.found} of {self.found + self.missed} programs from the cache; the next start finds all"


_EVENTS = tuple(f"/jax/compilation_cache/{event}" for event in ("cache_hits", "cache_misses", "compile_time_saved_sec"))
_counts: dict[str, float] = {}


def _count(event: str, **_: str | int) -> None:
    _add(event, 1.0)


def _add(event: str, duration_secs: float, **_: str | int) -> None:
    if event in _counts:
        _counts[event] += duration_secs
