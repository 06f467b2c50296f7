"""The records of reproduced results: kept in docs/results, read, checked; what tables say is computed here from `ours`.

<name>/<preset>.json is the record of a run, .png its figure, .csv its learning curves (scalars only, thinned).
"""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine import experiment, files, record
from experiments.engine.exits import Refused

PRESETS = ("smoke", "cpu", "paper")
BLOCKS = 200  # of a learning curve, at most, in the committed file
_FIELDS = {
    "experiment": str,
    "preset": str,
    "config": dict,
    "seeds": list,
    "rows": list,
    "minutes": (int, float),
    "device": dict,
    "versions": dict,
    "commit": str,
}
_ROW_FIELDS = {
    "name": str,
    "ours": list,
    "published": (int, float, type(None)),
    "source": str,
    "certainty": str,
    "gate": (list, type(None)),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One number of a record, over its seeds."""

    name: str
    ours: tuple[float, ...]
    published: float | None
    source: str
    certainty: str
    low: float
    high: float

    @property
    def mean(self) -> float:
        return math.fsum(self.ours) / len(self.ours)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one seed."""
        if len(self.ours) < 2 or not all(map(math.isfinite, self.ours)):
            return None if len(self.ours) < 2 else math.nan
        return statistics.stdev(self.ours)

    @property
    def gated(self) -> bool:
        return math.isfinite(self.low) or math.isfinite(self.high)

    @property
    def inside(self) -> int | None:
        """How many seeds lie inside the gate; None without one."""
        return sum(self.low <= value <= self.high for value in self.ours) if self.gated else None

    @property
    def verdict(self) -> str:
        """'pass' if every seed lies inside the gate, else how many do; '' without a gate, if all are numbers."""
        if self.inside is None:
            return "" if all(map(math.isfinite, self.ours)) else "FAIL (not finite)"
        return "pass" if self.inside == len(self.ours) else f"FAIL ({self.inside} of {len(self.ours)} seeds inside)"


@dataclasses.dataclass(frozen=True)
class Kept:
    """A record with its lines, and where its figure and curves are if they were kept."""

    content: dict[str, Any]
    lines: tuple[Line, ...]
    figure: Path | None
    curves: Path | None

    @property
    def name(self) -> str:
        return self.content["experiment"]

    @property
    def preset(self) -> str:
        return self.content["preset"]

    @property
    def commit(self) -> str:
        """Eight digits, and a plus if there were uncommitted changes."""
        return self.content["commit"][:8] + ("+" if "uncommitted" in self.content["commit"] else "")

    @property
    def device(self) -> str:
        return f"{self.content['device'].get('count', '?')} x {self.content['device'].get('kind', 'unknown')}"


def keep(run: Path, results: Path, name: str, preset: str) -> None:
    """Copies what a finished run leaves to be committed: record, figure, and its curves as a table."""
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(folder / f"{preset}.json", (run / "result.json").read_bytes())
    files.write_bytes(folder / f"{preset}.png", (run / "figures" / f"{name}.png").read_bytes())
    files.write_bytes(folder / f"{preset}.csv", _curves_table(record.metrics(run)).encode())


def read(folder: Path) -> list[Kept]:
    """Every record below `folder`, by name, longest preset last; Refused where one is damaged or contradicts itself."""
    paths = list(folder.glob("*/*.json"))
    for path in paths:
        if path.stem not in PRESETS:
            raise Refused(f"{path}: records are called {', '.join(f'{preset}.json' for preset in PRESETS)}")
    return [_read_one(path) for path in sorted(paths, key=lambda p: (p.parent.name, PRESETS.index(p.stem)))]


def not_run(kept: Sequence[Kept]) -> list[str]:
    """Registered experiments without any record."""
    return sorted(set(experiment.names()) - {record.name for record in kept})


def curves(path: Path) -> dict[str, np.ndarray]:
    """Columns of a curves table as arrays (seeds, blocks); Refused if it is no such table."""
    try:
        header, *rows = list(csv.reader(io.StringIO(path.read_text())))
        values = np.array([[float(cell) for cell in row] for row in rows], np.float64).reshape(len(rows), len(header))
        if header[:2] != ["seed", "block"]:
            raise ValueError("its first columns are not seed and block")
        seeds = len(set(values[:, 0].tolist()))
        stacked = values.reshape(seeds, -1, len(header)) if seeds else np.zeros((0, 0, len(header)))
    except ValueError as error:
        raise Refused(f"{path} is no table of learning curves: {error}") from error
    return {name: stacked[..., column] for column, name in enumerate(header)}


def _curves_table(metrics: dict[str, np.ndarray]) -> str:
    scalars = {name: values for name, values in metrics.items() if values.ndim == 2 and values.dtype.kind in "biuf"}
    seeds, blocks = next(iter(scalars.values())).shape if scalars else (0, 0)
    kept = np.unique(np.linspace(0, blocks - 1, min(blocks, BLOCKS)).round().astype(int)) if blocks else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("seed", "block", *scalars))
    for s in range(seeds):
        for b in kept:
            writer.writerow((s, b + 1, *(f"{float(values[s, b]):.6g}" for values in scalars.values())))
    return text.getvalue()


def _read_one(path: Path) -> Kept:
    content = files.read_json(path)
    _check_fields(path, "", content, _FIELDS)
    if (content["experiment"], content["preset"]) != (path.parent.name, path.stem):
        raise Refused(f"{path} is a record of {content['experiment']}, preset {content['preset']}")
    lines = tuple(_line(path, row, len(content["seeds"])) for row in content["rows"])
    beside = {ending: path.with_suffix(ending) for ending in (".png", ".csv")}
    figure, table = (place if place.exists() else None for place in beside.values())
    return Kept(content, lines, figure, table)


def line(row: dict[str, Any]) -> Line:
    """A row of a record; its `mean`, `sd` and `passed` are not looked at."""
    low, high = row["gate"] or (None, None)
    return Line(
        row["name"],
        tuple(float(value) for value in row["ours"]),
        row["published"],
        row["source"],
        row["certainty"],
        -math.inf if low is None else float(low),
        math.inf if high is None else float(high),
    )


def _line(path: Path, row: Any, seeds: int) -> Line:
    _check_fields(path, "a row", row, _ROW_FIELDS)
    where = f"row {row['name']!r}"
    if len(row["ours"]) != seeds or seeds == 0:
        raise Refused(f"{path}, {where}: {len(row['ours'])} values for {seeds} seeds")
    if not all(isinstance(value, int | float) for value in row["ours"]):
        raise Refused(f"{path}, {where}: `ours` holds something that is no number")
    if row["gate"] is not None and len(row["gate"]) != 2:
        raise Refused(f"{path}, {where}: a gate is [low, high]")
    found = line(row)
    if row.get("passed", found.inside) != found.inside:
        raise Refused(
            f"{path}, {where}: {row['passed']} seeds are said to pass, its values and gate say {found.inside}"
        )
    return found


def _check_fields(path: Path, where: str, found: Any, expected: dict[str, Any]) -> None:
    if not isinstance(found, dict):
        raise Refused(f"{path}: expected a record, found {type(found).__name__}")
    for field, kind in expected.items():
        if field not in found or not isinstance(found[field], kind):
            raise Refused(f"{path}{', ' if where else ''}{where}: field {field!r} is missing or of a wrong type")
