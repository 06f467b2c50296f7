"""One run from command to result: folder, data, compile, loop, record. Whatever is acknowledged survives a kill.

The metrics of a block reach the disk before the checkpoint that follows it, so after any kill the newest checkpoint has
all its metrics; blocks after it are computed again, bit for bit the same (same versions, same devices), and readers
take the last line of each step.
"""

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.engine import (
    bundle,
    exits,
    files,
    identity,
    machine,
    program,
    provenance,
    record,
    rollback,
    style,
    tensorboard,
)
from experiments.engine import checkpoint as saving
from experiments.engine import folder as folders
from experiments.engine import mesh as devices
from experiments.engine.exits import Interrupted
from experiments.engine.experiment import Experiment
from experiments.engine.progress import Meter
from experiments.engine.signals import Signals

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
    devices: int = 1
    dtype: machine.Dtype | None = None
    matmul: machine.Matmul | None = None
    tensorboard: bool = False


def run(experiment: Experiment, config: Any, request: Request) -> Path:
    """Runs `experiment` to its end, or goes on with the run of the same config; returns the run folder.

    Raises Refused for what cannot be done as asked, Interrupted after a signal, NotSaved if the last write failed,
    FloatingPointError if no remedy helped against NaN.
    """
    description = {"experiment": experiment.name, "config": identity.plain(config), "seeds": list(request.seeds)}
    precision = {"dtype": request.dtype, "matmul": request.matmul}
    if any(precision.values()):  # devices are no part of it: they change the rounding, not the run
        description["precision"] = precision
    folder = request.folder or request.runs / experiment.name / identity.run_id(request.preset, description)
    folder = folder.expanduser().resolve()
    with contextlib.ExitStack() as held:
        if not devices.led(lambda: folders.take(folder, description, request.fresh, held)):
            _Run(experiment, config, request, folder).to_the_end()
    return folder


class _Run:
    """A run in its folder, which this process has to itself. Only process 0 of many writes there."""

    _checkpoints: saving.Checkpoints  # of process 0

    def __init__(self, experiment: Experiment, config: Any, request: Request, folder: Path) -> None:
        started = time.monotonic()
        self.experiment, self.module, self.config, self.request = experiment, experiment.module, config, request
        self.folder, self.mesh = folder, devices.build(request.devices)
        self.data = machine.cast(experiment.data(config, request.data), request.dtype)
        digest = np.frombuffer(bytes.fromhex(provenance.digest(self.data)), np.uint8)
        if not np.array_equal(devices.from_leader({"data": digest})["data"], digest):
            raise exits.Refused("this process has other data than process 0")
        states = [self.module.init(config, jax.random.key(seed), *self.data) for seed in request.seeds]
        self.states = machine.cast(_stack(states), request.dtype)
        self.lines, self.faults = files.Lines(folder / "metrics.jsonl"), files.Lines(folder / "faults.jsonl")
        notes = self._restore()
        self.remedies = rollback.Remedies(
            redraws=rollback.draws(self.states),
            lowers=hasattr(self.module, "lower_rate"),
            lowered=notes.get("rates_halved", 0),
        )
        self.attempt = 1 + max((line["attempt"] for line in self.lines.read()), default=0)
        self.spent = sum(line["seconds"] for line in record.last_lines(self.lines.read(), self.step))
        self.unsaved: exits.NotSaved | None = None
        self._place(self.states)
        self.placed_data = devices.place(self.data, self.mesh)
        self.prepared = prepared = time.monotonic() - started
        compiled = self._compile()
        if devices.leads():
            with exits.refusing_full_disk(folder):
                more = {"attempt": self.attempt, "devices": request.devices, "processes": jax.process_count()}
                more |= {"compiled": {"seconds": round(compiled.seconds, 2), "cache": compiled.cache}}
                files.write_json(folder / "provenance.json", provenance.collect(self.data) | more)
        print(
            f"{experiment.name}: {folder}\n{f'resuming after block {self.step}' if self.step else 'starting'}, "
            f"{len(request.seeds)} seed(s), data and state ready in {prepared:.1f} s, "
            f"compiled in {compiled.seconds:.1f} s ({compiled.cache})",
            flush=True,
        )
        if self.mesh is not None:
            what = "seeds" if devices.deals_seeds(self.mesh, len(request.seeds)) else "batches"
            print(f"{what} dealt out to {self.mesh.size} devices of {jax.process_count()} process(es)", flush=True)

    def to_the_end(self) -> None:
        """The loop, then the record."""
        total = self.module.blocks(self.config) if hasattr(self.module, "blocks") else None
        mine = self.folder if devices.leads() else None
        events = tensorboard.sink(mine if self.request.tensorboard else None, self.request.seeds, self.step)
        with Signals() as signals, events as sink, Meter(self.experiment.name, total, self.step, mine) as meter:
            finished = self._done()
            while not finished:
                begun = time.monotonic()
                states, metrics, ill = self.advance(self.states, *self.placed_data)
                values = {name: np.asarray(value) for name, value in devices.local(metrics).items()}
                excused = getattr(self.module, "MAY_NOT_BE_FINITE", ())
                complaints = rollback.complaints(devices.local(ill), values, excused)
                if complaints:
                    self._remedy(complaints)
                else:
                    self._accept(states, values, time.monotonic() - begun)
                    meter.advance(self.step, note(values))
                    sink(self.step, values)
                finished = self._done()
                self._save_and_stop(signals, finished)
        if devices.leads():
            self._checkpoints.close()
        if self.unsaved:
            raise self.unsaved
        if devices.leads():
            try:
                self._finish()
            except OSError as error:
                raise exits.NotSaved(f"{self.folder}: {error.strerror}; the same command writes the result") from error
        devices.most(0)  # no process leaves before the record is written

    def _restore(self) -> dict[str, Any]:
        """Takes the newest good checkpoint; returns its notes."""
        found = saving.Restored(0, self.states, [], {})

        def restore() -> int:
            nonlocal found
            with exits.refusing_full_disk(self.folder):
                self._checkpoints = saving.Checkpoints(self.folder / "checkpoints")
            found = self._checkpoints.restore(self.states)
            for warning in found.warnings:
                print(f"warning: {warning}")
            return found.step

        self.step = devices.led(restore)
        leaves = devices.from_leader(saving.named_leaves(found.state))
        self.states = saving.refill(self.states, {name: leaves[name] for name in sorted(leaves)})
        (halved,) = devices.most(found.notes.get("rates_halved", 0))
        return {"rates_halved": halved}

    def _place(self, states: Any) -> None:
        """Takes `states`, arrays of this process, as the state after the last checkpoint."""
        self.states = devices.place(states, self.mesh)
        self.saved_step, self.saved_states, self.saved_at = self.step, self.states, time.monotonic()

    def _compile(self) -> program.Program:
        config = self.config
        if self.remedies.lowered:
            config = self.module.lower_rate(config, 0.5**self.remedies.lowered)
        try:
            compiled = program.compiled(self.experiment, config, self.states, self.placed_data, self.mesh)
        except TypeError as error:
            if self.request.dtype is None:
                raise
            message = f"--dtype {self.request.dtype}: {self.experiment.name} does not follow it: {error}"
            raise exits.Refused(message.splitlines()[0]) from error
        self.advance: Callable[..., Any] = compiled.advance
        return compiled

    def _done(self) -> bool:
        return bool(self.module.done(self.config, _first(devices.local(self.states))))

    def _accept(self, states: Any, values: dict[str, np.ndarray], seconds: float) -> None:
        self.states = states
        self.step += 1
        self.spent += seconds
        line = {"step": self.step, "attempt": self.attempt, "seconds": seconds}
        if devices.leads():
            with contextlib.suppress(OSError):  # the line waits; the save that follows says so if it must
                self.lines.append(line | {name: value.tolist() for name, value in values.items()})

    def _remedy(self, complaints: dict[str, np.ndarray]) -> None:
        """Nothing of the bad block is kept; the next remedy, or the bundle and FloatingPointError."""
        block, what = self.step + 1, ", ".join(sorted(complaints))
        remedy = self.remedies.next(block)
        bad = np.any(list(complaints.values()), axis=0)
        if devices.leads():
            line = {"block": block, "attempt": self.attempt, "found": sorted(complaints), "remedy": remedy or "stop"}
            with contextlib.suppress(OSError):
                self.faults.append(line | {"seeds": [self.request.seeds[s] for s in np.flatnonzero(bad)]})
        if remedy == rollback.AGAIN:
            print(f"warning: {what} after block {block}; it is computed again", flush=True)
        elif remedy == rollback.REDRAW:
            print(f"warning: {what} after block {block} again; its update is skipped for other draws", flush=True)
            redrawn = rollback.redraw(devices.local(self.states), bad, len(self.remedies.tried))
            self.states = devices.place(redrawn, self.mesh)
        elif remedy == rollback.LOWER:
            self.step, self.states = self.saved_step, self.saved_states
            self._compile()
            rates = f"1/{2**self.remedies.lowered} of the rates"
            print(f"warning: {what} after block {block}; back to block {self.step} with {rates}", flush=True)
        else:
            raise FloatingPointError(self._give_up(block, what, complaints))

    def _give_up(self, block: int, what: str, complaints: dict[str, np.ndarray]) -> str:
        tried = ", ".join(self.remedies.tried)
        message = f"{what} after block {block}, and no remedy helped (tried: {tried})"
        states = devices.local(self.states)
        if devices.leads():
            try:
                if self.step > self.saved_step:
                    self._write(states)
                place = bundle.write(self.folder, block, states, complaints, self.remedies.lowered, self.data)
                message += f"; block {self.step} is saved; `python -m experiments replay {shlex.quote(str(place))}` "
                message += "computes the bad one again and names the operation"
            except (OSError, exits.NotSaved) as error:
                message += f"; block {self.saved_step} is the last one saved, and no bundle could be written: {error}"
        return message

    def _save_and_stop(self, signals: Signals, finished: bool) -> None:
        """Saves if it is time; Interrupted, or NotSaved, if a signal asks to stop."""
        due = devices.leads() and time.monotonic() - self.saved_at >= CHECKPOINT_EVERY
        stop, due = devices.most(bool(signals.received), due)
        if self.step > self.saved_step and (finished or stop or due):
            self._save(finished)
        if stop and not finished:
            if self.unsaved:
                raise self.unsaved
            name = signals.received or "a signal to another process"
            raise Interrupted(f"stopped by {name} after block {self.step}, which is saved; the same command goes on")

    def _save(self, finished: bool) -> None:
        states = devices.local(self.states)
        self.unsaved = None

        def save() -> int:
            try:
                self._write(states)
            except exits.NotSaved as error:
                self.unsaved = error
            return int(self.unsaved is not None)

        if devices.led(save):
            self.unsaved = self.unsaved or exits.NotSaved("process 0 could not save the last state")
            self.saved_at = time.monotonic()
            if not finished:
                print(f"warning: {self.unsaved}; training goes on and tries again", flush=True)
        else:
            self.saved_step, self.saved_states, self.saved_at = self.step, self.states, time.monotonic()

    def _write(self, states: Any) -> None:
        try:
            self.lines.sync()
            self.faults.sync()
        except OSError as error:
            raise exits.NotSaved(f"{self.lines.path}: {error.strerror}") from error
        self._checkpoints.save(self.step, states, {"rates_halved": self.remedies.lowered})

    def _finish(self) -> None:
        """The result, its figures and its record, result.json last: it says that the run is finished."""
        started = time.monotonic()
        states, seeds = devices.local(self.states), self.request.seeds
        metrics = record.stack(record.last_lines(self.lines.read(), self.step))
        rows = [
            self.module.result(
                self.config, {name: values[s] for name, values in metrics.items()}, _seed(states, s), *self.data
            ).rows
            for s in range(len(seeds))
        ]
        style.render(self.module.figure, metrics, self.folder / "figures", self.experiment.name)
        rows = list(zip(*rows, strict=True))
        seconds = self.spent + self.prepared + time.monotonic() - started  # some work in `init` and `result` alone
        made = record.result(self.experiment.name, self.request.preset, self.folder, rows, list(seeds), seconds / 60)
        files.write_json(self.folder / "result.json", made)


def note(values: dict[str, Any]) -> str:
    """The metrics of the newest block, first seed, as a short line."""
    shown = {name: np.ravel(value)[0] for name, value in values.items()}
    return "  ".join(f"{name} {value:.4g}" for name, value in list(shown.items())[:6])


def _stack(states: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *states)


@jax.jit
def _first(states: Any) -> Any:
    return _seed(states, 0)


def _seed(states: Any, s: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[s], states)
