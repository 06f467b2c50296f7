"""A run seen from outside: how far, how fast, every metric as a line of blocks; running, finished or dead."""

import contextlib
import dataclasses
import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.engine import exits, experiment, files, progress, record

_BARS = "▁▂▃▄▅▆▇█"
_SILENT = 60.0  # seconds without a sign of life after which a run on another machine is called silent


@dataclasses.dataclass(frozen=True)
class _Options:
    """Shows a run from its folder alone, whatever computes it; it goes on until the run ends, or Ctrl-C."""

    run: tyro.conf.Positional[str]
    """A run folder, or the name of an experiment: its newest run."""
    runs: Path = Path("runs")
    """Where run folders are, if a name is given."""
    once: bool = False
    """Show it once and end, as happens where the output is no terminal."""
    every: float = 1.0
    """Seconds between two looks."""


@dataclasses.dataclass(frozen=True)
class View:
    """What a run folder tells at one moment."""

    folder: Path
    state: str
    """'running', 'finished', 'stopped: why', 'dead: why', or 'starting'."""
    done: int
    total: int | None
    seconds: float
    """Spent in blocks, over all starts."""
    seconds_per_block: float | None
    compiled: str
    memory: str
    metrics: dict[str, np.ndarray]
    """Scalars, (seeds, blocks)."""

    @property
    def left(self) -> float | None:
        """Seconds to the end, if it is known."""
        if self.total is None or not self.seconds_per_block or self.state != "running":
            return None
        return (self.total - self.done) * self.seconds_per_block


def command(arguments: list[str]) -> None:
    """python -m experiments watch RUN."""
    options = tyro.cli(_Options, args=arguments, prog="python -m experiments watch")
    if not options.every > 0:
        raise exits.Refused(f"--every {options.every}: expected a positive number of seconds")
    folder = find(options.run, options.runs)
    console = Console()
    view = look(folder)
    if options.once or not sys.stdout.isatty():
        console.print(draw(view, console.width))
        return
    with (
        contextlib.suppress(KeyboardInterrupt),
        Live(draw(view, console.width), console=console, auto_refresh=False) as live,
    ):
        while view.state in ("running", "starting"):
            time.sleep(options.every)
            view = look(folder)
            live.update(draw(view, console.width), refresh=True)


def find(run: str, runs: Path) -> Path:
    """The folder that `run` means; Refused if there is none."""
    if (Path(run) / "config.json").exists():
        return Path(run)
    if run in experiment.names() and (runs / run).is_dir():
        folders = [path.parent for path in (runs / run).glob("*/config.json")]
        if folders:
            return max(folders, key=_last_change)
    raise exits.Refused(f"{run} is no run folder (it has no config.json), nor an experiment with a run in {runs}")


def look(folder: Path) -> View:
    """Reads the folder; torn and missing files are read as far as they go."""
    told, lines = _told(folder / progress.FILE), _lines(folder)
    done = max((line["step"] for line in lines), default=0)
    names = [name for name in (lines[-1] if lines else ()) if name not in record.ENGINES and _scalars(lines, name)]
    scalars = {name: np.array([line[name] for line in lines], float).T for name in names}
    recent = [line["seconds"] for line in lines[-20:]]
    made = _told(folder / "provenance.json").get("compiled", {})
    compiled = f"{made.get('seconds', '?')} s, {made.get('cache', '')}" if isinstance(made, dict) and made else ""
    return View(
        folder,
        _state(folder, told),
        done,
        told.get("total"),
        sum(line["seconds"] for line in lines),
        float(np.mean(recent)) if recent else None,
        compiled,
        ", ".join(f"{name[7:-3].replace('_', ' ')} {mb:.0f} MiB" for name, mb in told.items() if name[:7] == "memory_"),
        scalars,
    )


def draw(view: View, width: int) -> Group:
    """A header and a line for each metric."""
    ended = view.state.split(":")[0]
    colour = {"running": "green", "finished": "blue", "starting": "yellow"}.get(ended, "red")
    name = view.folder.absolute()
    header = Text.assemble((f"{name.parent.name}/{name.name}", "bold"), "  ", (view.state, colour))
    parts = [f"block {view.done}" + (f" of {view.total}" if view.total else "")]
    parts.append(f"{progress.clock(view.seconds)} in blocks")
    if view.seconds_per_block:
        parts.append(f"{view.seconds_per_block:.3g} s/block")
    if view.left is not None:
        parts.append(f"{progress.clock(view.left)} left")
    if view.compiled:
        parts.append(f"compiled in {view.compiled}")
    if view.memory:
        parts.append(f"memory {view.memory}")
    table = Table(box=None, pad_edge=False)
    for name, side in (("metric", "left"), ("newest", "right"), ("least", "right"), ("most", "right"), ("", "left")):
        table.add_column(name, justify=side, no_wrap=bool(name), overflow="ellipsis")  # type: ignore[arg-type]
    room = max(10, min(60, width - 72))
    for name, values in view.metrics.items():
        middle = np.median(values, axis=0)
        finite = middle[np.isfinite(middle)]
        ends = (f"{finite.min():.4g}", f"{finite.max():.4g}") if len(finite) else ("", "")
        table.add_row(name, f"{middle[-1]:.4g}", *ends, sparkline(middle, room))
    if not view.metrics:
        return Group(header, Text(", ".join(parts)), Text("no block is finished yet"))
    seeds = len(next(iter(view.metrics.values())))
    if seeds > 1:
        parts.append(f"metrics: median of {seeds} seeds")
    return Group(header, Text(", ".join(parts)), table)


def sparkline(values: Sequence[float] | np.ndarray, room: int) -> str:
    """`values` as at most `room` blocks of eight heights, logarithmic where they span decades; '×' is no number."""
    x = np.asarray(values, float)
    parts = np.array_split(x, min(room, len(x))) if len(x) else []
    means = np.array([np.mean(part) for part in parts])
    good = np.isfinite(means)
    if good.any() and means[good].min() > 0 and means[good].max() > 8 * means[good].min():
        means[good] = np.log(means[good])
    low, high = (means[good].min(), means[good].max()) if good.any() else (0.0, 0.0)
    heights = np.where(good, (means - low) / ((high - low) or 1.0) * (len(_BARS) - 1), 0)
    return "".join(_BARS[round(h)] if ok else "×" for h, ok in zip(heights.tolist(), good, strict=True))


def _state(folder: Path, told: dict[str, Any]) -> str:
    if (folder / "result.json").exists():
        return "finished"
    state = str(told.get("state", ""))
    if not told or "pid" not in told:
        return "starting" if time.time() - _last_change(folder) < _SILENT else "dead: it never came to its first block"
    if state == "finished":  # blocks are done, result and figures are being made
        state = "running"
    if state != "running":
        return state
    if told.get("host") == socket.gethostname():
        return state if _alive(int(told["pid"])) else f"dead: process {told['pid']} is gone; the same command goes on"
    silent = time.time() - float(told.get("updated", 0))
    slow = max(_SILENT, 10 * float(told.get("seconds_per_block", 0)))
    return state if silent < slow else f"dead: no sign of life from {told.get('host')} for {progress.clock(silent)}"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _told(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The newest line of each step, up to the last line written: a step of an earlier start may come after it."""
    whole = [line for line in files.Lines(folder / "metrics.jsonl").read() if _usable(line)]
    if not whole:
        return []
    kept = record.last_lines(whole, whole[-1]["step"])
    names = set(kept[-1])
    return [line for line in kept if set(line) == names]


def _usable(line: Any) -> bool:
    return isinstance(line, dict) and all(isinstance(line.get(name), int | float) for name in record.ENGINES)


def _scalars(lines: Sequence[dict[str, Any]], name: str) -> bool:
    """Whether every line has one number for each seed under `name`."""
    values = [line.get(name) for line in lines]
    flat = all(isinstance(value, list) and len(value) == len(values[-1] or ()) for value in values)
    return flat and all(isinstance(number, int | float) for value in values for number in value or ())


def _last_change(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.iterdir()), default=folder.stat().st_mtime)
