"""What a run leaves behind: metrics by step, and result.json, from which every table is built."""

import datetime
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.engine import files
from experiments.engine.exits import Refused
from experiments.engine.experiment import Row

ENGINES = ("step", "attempt", "seconds")


def asked(folder: Path) -> dict[str, Any]:
    """What a run folder was made for: its config.json; Refused where `folder` is none."""
    if not (folder / "config.json").exists():
        raise Refused(f"{folder} is no run folder: it has no config.json")
    return files.read_json(folder / "config.json")


def last_lines(lines: Sequence[dict[str, Any]], last_step: int) -> list[dict[str, Any]]:
    """The valid line of each step up to `last_step`: the last one written."""
    valid = {line["step"]: line for line in lines if line["step"] <= last_step}
    return [valid[step] for step in sorted(valid)]


def stack(lines: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Metrics as arrays (seeds, blocks, ...), in the order of the lines."""
    names = [name for name in (lines[0] if lines else {}) if name not in ENGINES]
    return {name: np.moveaxis(np.array([line[name] for line in lines]), 0, 1) for name in names}


def metrics(folder: Path) -> dict[str, np.ndarray]:
    """The metrics of a finished or unfinished run folder."""
    return stack(last_lines(files.Lines(folder / "metrics.jsonl").read(), 2**62))


def result(
    experiment: str, preset: str, folder: Path, rows: list[tuple[Row, ...]], seeds: list[int], minutes: float
) -> dict[str, Any]:
    """The record of a finished run; `rows` holds for each number the rows of all seeds."""
    source, made_for = files.read_json(folder / "provenance.json"), asked(folder)
    faults = files.Lines(folder / "faults.jsonl").read()
    return {
        "experiment": experiment,
        "preset": preset,
        "id": folder.name,
        "config": made_for["config"],
        "seeds": seeds,
        "rows": [_merge(per_seed) for per_seed in rows],
        "minutes": round(minutes, 2),
        "device": source["device"],
        "mesh": {"devices": source.get("devices", 1), "processes": source.get("processes", 1)},
        "precision": made_for.get("precision", {}),
        "remedies": [
            f"{fault['remedy']} at block {fault['block']}" for fault in faults
        ],  # against NaN: see rollback.py
        "versions": source["versions"],
        "commit": source["git"]["commit"] + (" with uncommitted changes" if source["git"]["uncommitted"] else ""),
        "data_sha256": source["data_sha256"],
        "finished": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
    }


def _merge(rows: tuple[Row, ...]) -> dict[str, Any]:
    ours = [float(row.value) for row in rows]
    first = rows[0]
    gate = [_finite(first.low), _finite(first.high)] if first.gated else None
    return {
        "name": first.name,
        "ours": ours,
        "mean": math.fsum(ours) / len(ours),
        "sd": float(np.std(ours, ddof=1)) if len(ours) > 1 else None,
        "published": first.published,
        "source": first.source,
        "certainty": first.certainty,
        "gate": gate,
        "passed": sum(row.low <= row.value <= row.high for row in rows) if gate else None,
    }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
