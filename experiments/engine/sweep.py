"""Sweeps: `run NAME --sweep rate=0.1,0.2 --sweep layers=2,3` runs the product, each point an ordinary run.

One process does them all, one after the other, so Python, JAX, data and compiled programs are there from the second
point on. A program is shared where the swept field does not enter it; a constant such as a learning rate does, and
costs a compilation for each value, once per machine. A point already finished is not run again: the same command goes
on where a sweep was stopped. The table of all points is kept as runs/NAME/sweep-HASH/sweep.{txt,csv,png,pdf,json}.
"""

import csv
import dataclasses
import difflib
import io
import itertools
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from experiments.engine import exits, experiment, files, identity, mesh, options, results, style, table

_ABREAST = 5  # points beside each other in one table
_PANELS = 12  # results drawn, at most


@dataclasses.dataclass(frozen=True)
class Options(options.Options):
    """Options of the engine; those of the experiment follow."""

    sweep: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """FIELD=VALUE,VALUE,...: one run for each value; given again, for each combination. Spaces part the entries of a
    value that is a tuple: --sweep "degrees=0,0 1,0 1 2"."""


Values = dict[str, str]  # field -> value as written


@dataclasses.dataclass(frozen=True)
class Point:
    """One combination of values, and the run that it means."""

    values: Values
    asked: options.Options
    config: Any

    @property
    def label(self) -> str:
        return ", ".join(f"{field}={value}" for field, value in self.values.items())


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a point: its record, or why there is none; both are absent as long as it was not tried."""

    point: Point
    folder: Path | None = None
    record: dict[str, Any] | None = None
    failure: str = ""


def carry_out(chosen: experiment.Experiment, asked: Options, arguments: Sequence[str], program: str) -> Path:
    """Runs every point, or goes on with them; shows and keeps their table, and returns the folder it is in."""
    if asked.run:
        raise exits.Refused("a sweep gives each point a folder of its own: --runs, not --run")
    fields = parse(chosen, asked.sweep)
    points = _points(chosen, fields, _without_sweep(arguments), program)
    told = {
        "experiment": chosen.name,
        "preset": asked.preset,
        "seeds": asked.seeds,
        "fields": fields,
        "base": identity.plain(points[0].config) | dict.fromkeys(fields, "swept"),
    }
    folder = asked.runs / chosen.name / identity.run_id("sweep", told)
    outcomes = [Outcome(point) for point in points]
    for i, point in enumerate(points):
        print(f"\npoint {i + 1} of {len(points)}: {point.label}", flush=True)
        run, failure = options.attempt(chosen, point.asked, point.config)
        if not mesh.leads():  # of many processes, one writes
            continue
        outcomes[i] = Outcome(point, run, files.read_json(run / "result.json") if run else None, failure)
        with exits.refusing_full_disk(folder):
            _keep(folder, chosen.name, told, outcomes)
    if not mesh.leads():
        return folder
    with exits.refusing_full_disk(folder):
        style.render(_figure, outcomes, folder, "sweep")
    print((folder / "sweep.txt").read_text(), end="")
    print(f"table: {folder / 'sweep.csv'}\nfigure: {folder / 'sweep.png'}")
    failures = [f"{outcome.point.label}: {outcome.failure}" for outcome in outcomes if outcome.failure]
    if failures:
        raise exits.Incomplete("\n".join(failures))
    return folder


def parse(chosen: experiment.Experiment, sweeps: Sequence[str]) -> dict[str, list[str]]:
    """'rate=0.1,0.2' -> {"rate": ["0.1", "0.2"]}; Refused for a field that Config lacks, an empty or repeated value."""
    known = [field.name for field in dataclasses.fields(chosen.module.Config)]
    fields: dict[str, list[str]] = {}
    for text in sweeps:
        written, equals, values = text.partition("=")
        field = written.strip().lstrip("-").replace("-", "_")
        listed = [value.strip() for value in values.split(",")]
        if not equals or not all(listed):
            raise exits.Refused(f"--sweep {text}: expected FIELD=VALUE,VALUE,..., as in --sweep {known[0]}=1,2")
        if field not in known:
            near = difflib.get_close_matches(field, known, n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
            raise exits.Refused(f"--sweep {text}: {chosen.name} has no field {field}; {hint}")
        if field in fields or len(set(listed)) < len(listed):
            raise exits.Refused(f"--sweep {text}: {field} or one of its values is given twice")
        fields[field] = listed
    return fields


def _without_sweep(arguments: Sequence[str]) -> list[str]:
    """The flags less --sweep and its values."""
    kept, skip = [], False
    for word in arguments:
        if not skip and word != "--sweep" and not word.startswith("--sweep="):
            kept.append(word)
        skip = word == "--sweep"
    return kept


def _points(
    chosen: experiment.Experiment, fields: Mapping[str, Sequence[str]], flags: list[str], program: str
) -> list[Point]:
    """All combinations, parsed as if each had been given as flags: what is wrong is refused before the first runs."""
    for field in fields:
        spellings = [f"--{field}", f"--{field.replace('_', '-')}"]
        if any(word.split("=")[0] in spellings for word in flags):
            raise exits.Refused(f"--{field.replace('_', '-')} is given beside --sweep {field}=...: which is meant?")
    kinds = {field.name: field.type for field in dataclasses.fields(chosen.module.Config)}
    points = []
    for combination in itertools.product(*fields.values()):
        values = dict(zip(fields, combination, strict=True))
        more = [word for field, value in values.items() for word in _as_flags(field, value, kinds[field])]
        try:
            asked, config = options.parse(chosen, flags + more, program)
        except exits.Refused as error:
            written = ", ".join(f"{field}={value}" for field, value in values.items())
            raise exits.Refused(f"--sweep, point {written}: {error}") from error
        points.append(Point(values, asked, config))
    return points


def _as_flags(field: str, value: str, kind: Any) -> list[str]:
    flag = field.replace("_", "-")
    if kind in (bool, "bool"):
        if value.lower() not in ("true", "false"):
            raise exits.Refused(f"--sweep {field}={value}: expected true or false")
        return [f"--{flag}" if value.lower() == "true" else f"--no-{flag}"]
    if kind in (str, "str", float, "float", int, "int"):
        return [f"--{flag}={value}"]  # one word, also where it starts with a minus sign
    return [f"--{flag}", *shlex.split(value)]


def _keep(folder: Path, name: str, told: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Writes what is known so far: the table as text and CSV, and which run each point is."""
    folder.mkdir(parents=True, exist_ok=True)
    points = [
        {"values": outcome.point.values, "run": outcome.folder.name if outcome.folder else None}
        | ({"failure": outcome.failure} if outcome.failure else {})
        for outcome in outcomes
    ]
    files.write_json(folder / "sweep.json", told | {"points": points})
    files.write_bytes(folder / "sweep.csv", spreadsheet(outcomes).encode())
    files.write_bytes(folder / "sweep.txt", text(name, outcomes).encode())


def _lines(outcome: Outcome) -> dict[str, results.Line]:
    rows = outcome.record["rows"] if outcome.record else []
    return {row["name"]: results.line(row) for row in rows}


def _names(outcomes: Sequence[Outcome]) -> list[str]:
    return list(dict.fromkeys(name for outcome in outcomes for name in _lines(outcome)))


def spreadsheet(outcomes: Sequence[Outcome]) -> str:
    """One line for each point and result, at full precision; a point without a record has one line that says why."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [*outcomes[0].point.values, "result", "mean", "sd", "values", "verdict", "minutes", "run", "failure"]
    )
    for outcome in outcomes:
        point = list(outcome.point.values.values())
        if not outcome.record or not outcome.folder:
            writer.writerow([*point, "", "", "", "", "", "", "", outcome.failure or "not run yet"])
            continue
        for line in _lines(outcome).values():
            numbers = [line.mean, "" if line.spread is None else line.spread, " ".join(map(repr, line.ours))]
            run = [outcome.record["minutes"], outcome.folder.name]
            writer.writerow([*point, line.name, *numbers, line.verdict, *run, ""])
    return out.getvalue()


def text(name: str, outcomes: Sequence[Outcome]) -> str:
    """Results down, points across, so that a row compares; a few points to a table."""
    console = Console(width=120, file=io.StringIO(), record=True)
    for start in range(0, len(outcomes), _ABREAST):
        part = outcomes[start : start + _ABREAST]
        shown = Table(title=f"{name}, points {start + 1} to {start + len(part)} of {len(outcomes)}")
        shown.add_column("result")
        for outcome in part:
            shown.add_column("\n".join(f"{field}={value}" for field, value in outcome.point.values.items()))
        for row in _names(outcomes):
            cells = [_cell(_lines(outcome)[row]) if row in _lines(outcome) else "" for outcome in part]
            shown.add_row(row, *cells)
        ends = [
            f"{outcome.record['minutes']:.2f}" if outcome.record else outcome.failure or "not run" for outcome in part
        ]
        shown.add_row("minutes", *ends)
        console.print(shown)
    return console.export_text()


def _cell(line: results.Line) -> str:
    _, ours, _, _, verdict = table.cells(line)
    return f"{ours}\n{verdict}" if verdict else ours


def _figure(outcomes: Sequence[Outcome]) -> "style.Figure":
    """Each result against the first field; the other fields are lines of their own; dotted is published."""
    names = _names(outcomes)[:_PANELS]
    across = min(3, max(1, len(names)))
    down = max(1, math.ceil(len(names) / across))
    picture = style.figure(3.4 * across, 2.6 * down + 0.3)
    panels = picture.subplots(down, across, squeeze=False).ravel()
    first, *others = outcomes[0].point.values
    places, numeric = _places([outcome.point.values[first] for outcome in outcomes])
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(", ".join(f"{f}={outcome.point.values[f]}" for f in others), []).append(outcome)
    for axes, name in zip(panels, names, strict=False):
        for label, group in groups.items():
            found = [(places[o.point.values[first]], _lines(o)[name]) for o in group if name in _lines(o)]
            found.sort(key=lambda pair: pair[0])
            x, lines = [place for place, _ in found], [line for _, line in found]
            spread = [line.spread or 0.0 for line in lines]
            axes.errorbar(x, [line.mean for line in lines], spread, marker="o", markersize=3, capsize=2, label=label)
        some = next(line[name] for line in map(_lines, outcomes) if name in line)
        if some.published is not None:
            axes.axhline(some.published, color=style.PUBLISHED, linestyle=":", linewidth=1)
        axes.set_title("\n".join(_broken(name)), fontsize=7)
        axes.set_xlabel(first)
        if numeric and min(places.values()) > 0 and max(places.values()) > 8 * min(places.values()):
            axes.set_xscale("log")
        if not numeric:
            axes.set_xticks(list(places.values()), list(places), rotation=20 if len(places) > 3 else 0)
    for axes in panels[len(names) :]:
        axes.axis("off")
    if others:
        panels[0].legend(fontsize=6)
    if not names:
        panels[0].set_title("no point is finished")
    return picture


def _places(values: Sequence[str]) -> tuple[dict[str, float], bool]:
    """Where each value stands on the axis: at its number, or one after the other where some value is no number."""
    try:
        places = {value: float(value) for value in values}
    except ValueError:
        return {value: float(i) for i, value in enumerate(dict.fromkeys(values))}, False
    return places, bool(np.isfinite(list(places.values())).all())


def _broken(title: str, width: int = 44) -> list[str]:
    words, lines = title.split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
