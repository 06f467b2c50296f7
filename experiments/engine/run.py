"""One run from command to result: folder, data, compile, loop, record. Whatever is acknowledged survives a kill.

The metrics of a block reach the disk before the checkpoint that follows it, so after any kill the newest checkpoint has
all its metrics; blocks after it are computed again, bit for bit the same, and readers take the last line of each step.
"""

import dataclasses
import datetime
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine import checkpoint, exits, files, identity, provenance, record, style
from experiments.engine.experiment import Experiment
from experiments.engine.progress import Meter

CHECKPOINT_EVERY = 30.0  # seconds between checkpoints; one costs about 0.1 s


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asked for, apart from the experiment's own config."""

    preset: str
    seeds: tuple[int, ...]
    runs: Path
    folder: Path | None
    data: Path | None
    fresh: bool


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved."""


def run(experiment: Experiment, config: Any, request: Request) -> Path:
    """Runs `experiment` to its end, or goes on with the run of the same config; returns the run folder.

    Raises Refused for what cannot be done as asked, Interrupted after a signal, NotSaved if the last write failed.
    """
    description = {"experiment": experiment.name, "config": identity.plain(config), "seeds": list(request.seeds)}
    folder = request.folder or request.runs / experiment.name / identity.run_id(request.preset, description)
    folder = folder.expanduser().resolve()
    with exits.refusing_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with files.locked(folder):
            if request.fresh:
                _set_aside(folder)
            _claim(folder, description)
            if (folder / "result.json").exists():
                return folder
            _check_room(folder)
            _run(experiment, config, request, folder)
    return folder


def _set_aside(folder: Path) -> None:
    """Moves the content of an earlier run into old/<time>: --fresh restarts, it does not destroy."""
    content = [path for path in folder.iterdir() if path.name not in ("lock", "old")]
    if content:
        attic = folder / "old" / datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        attic.mkdir(parents=True)
        for path in content:
            path.rename(attic / path.name)


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Writes the run's description, or refuses if the folder belongs to another."""
    path = folder / "config.json"
    if not path.exists():
        strangers = sorted(entry.name for entry in folder.iterdir() if entry.name not in ("lock", "old"))
        if strangers:
            raise exits.Refused(
                f"{folder} is not empty and no run folder ({', '.join(strangers[:3])}); choose another --run"
            )
        files.write_json(path, description)
        return
    changed = identity.difference(files.read_json(path), description)
    if changed:
        raise exits.Refused(
            f"{folder} belongs to another config; differing fields, there -> here: {'; '.join(changed)}. "
            "Choose another --run, or restart it with --fresh"
        )


def _check_room(folder: Path) -> None:
    """Refuses at once if not even a small file fits: better now than at the first checkpoint."""
    files.write_bytes(folder / "room", b"\0" * 2**20)
    (folder / "room").unlink()


def _run(experiment: Experiment, config: Any, request: Request, folder: Path) -> None:
    started = time.monotonic()
    data = experiment.data(config, request.data)
    module, seeds = experiment.module, request.seeds
    states = _stack([module.init(config, jax.random.key(seed), *data) for seed in seeds])
    checkpoints = checkpoint.Checkpoints(folder / "checkpoints")
    step, states, warnings = checkpoints.restore(states)
    for warning in warnings:
        print(f"warning: {warning}")
    lines = files.Lines(folder / "metrics.jsonl")
    attempt = 1 + max((line["attempt"] for line in lines.read()), default=0)
    files.write_json(folder / "provenance.json", provenance.collect(data) | {"attempt": attempt})

    advance, compile_seconds = compiled(experiment, config, states, data)
    print(
        f"{experiment.name}: {folder}\n{f'resuming after block {step}' if step else 'starting'}, {len(seeds)} seed(s), "
        f"data ready in {time.monotonic() - started - compile_seconds:.1f} s, compiled in {compile_seconds:.1f} s",
        flush=True,
    )
    spent = sum(line["seconds"] for line in record.last_lines(lines.read(), step))
    total = module.blocks(config) if hasattr(module, "blocks") else None
    with Signals() as signals, Meter(experiment.name, total, step) as meter:
        saved, unsaved = time.monotonic(), None
        while not module.done(config, _seed(states, 0)):
            begun = time.monotonic()
            states, metrics = advance(states, *data)
            values = {name: np.asarray(value).tolist() for name, value in metrics.items()}
            step += 1
            seconds = time.monotonic() - begun
            spent += seconds
            try:
                lines.append({"step": step, "attempt": attempt, "seconds": seconds} | values)
            except OSError as error:
                raise exits.NotSaved(
                    f"{lines.path}: {error.strerror}; the run goes on from its last checkpoint"
                ) from error
            meter.advance(step, note(values))
            finished = module.done(config, _seed(states, 0))
            if finished or signals.received or time.monotonic() - saved >= CHECKPOINT_EVERY:
                unsaved = _save(checkpoints, lines, step, states)
                saved = time.monotonic()
                if unsaved and not finished:
                    print(f"warning: {unsaved}; training goes on and tries again", flush=True)
            if signals.received and not finished:
                if unsaved:
                    raise unsaved
                raise Interrupted(
                    f"stopped by {signals.received} after block {step}, which is saved; the same command goes on"
                )
    checkpoints.close()
    if unsaved:
        raise unsaved
    metrics = record.stack(record.last_lines(lines.read(), step))
    rows = [
        module.result(config, {name: values[s] for name, values in metrics.items()}, _seed(states, s), *data).rows
        for s in range(len(seeds))
    ]
    style.render(module.figure, metrics, folder / "figures", experiment.name)
    files.write_json(
        folder / "result.json",
        record.result(experiment.name, request.preset, folder, list(zip(*rows, strict=True)), list(seeds), spent / 60),
    )


def compiled(
    experiment: Experiment, config: Any, states: Any, data: tuple[Any, ...]
) -> tuple[Callable[..., Any], float]:
    """`advance` for all seeds at once, compiled ahead of time so that nothing can recompile, and the seconds it took.

    On CPU the seeds run one after the other inside one program (batched small products are slower there), elsewhere
    they are one more batch axis.
    """

    def advance_seeds(states: Any, *data: Any) -> Any:
        def one(state: Any) -> Any:
            return experiment.module.advance(config, state, *data)

        return jax.lax.map(one, states) if jax.default_backend() == "cpu" else jax.vmap(one)(states)

    begun = time.monotonic()
    program = jax.jit(advance_seeds).lower(states, *data).compile()
    return program, time.monotonic() - begun


def note(values: dict[str, Any]) -> str:
    """The metrics of the newest block, first seed, as a short line."""
    shown = {name: np.ravel(value)[0] for name, value in values.items()}
    return "  ".join(f"{name} {value:.4g}" for name, value in list(shown.items())[:6])


def _save(checkpoints: checkpoint.Checkpoints, lines: files.Lines, step: int, states: Any) -> exits.NotSaved | None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(states):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and bool(jnp.isnan(leaf).any()):
            raise FloatingPointError(
                f"NaN in {jax.tree_util.keystr(path)} after block {step}; the last finite checkpoint is kept"
            )
    try:
        lines.sync()
        checkpoints.save(step, states)
    except exits.NotSaved as error:
        return error
    except OSError as error:
        return exits.NotSaved(f"{lines.path}: {error.strerror}")
    return None


def _stack(states: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *states)


def _seed(states: Any, s: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[s], states)


class Signals:
    """While entered, SIGTERM and SIGINT only leave their name in `received`; the second stops the process at once."""

    def __init__(self) -> None:
        self.received = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = signal.Signals(number).name
