"""The committed baseline, and the verdict of a run against it."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import Metric

BASELINE = Path(__file__).with_name("baseline.json")

Baseline = Mapping[str, Mapping[str, float]]


def load(path: Path = BASELINE) -> dict[str, dict[str, float]]:
    """Baseline values by benchmark and metric name; empty if the file does not exist."""
    return json.loads(path.read_text())["metrics"] if path.exists() else {}


def save(results: Mapping[str, Iterable[Metric]], machine: Mapping[str, str], path: Path = BASELINE) -> None:
    """Writes the measured values over those of the same name and keeps the rest, with the machine they came from."""
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"machine": {}, "metrics": {}}
    for benchmark, metrics in results.items():
        values = document["metrics"].setdefault(benchmark, {})
        values.update({metric.name: float(f"{metric.value:.4g}") for metric in metrics})
        document["metrics"][benchmark] = dict(sorted(values.items()))
        document["machine"][benchmark] = dict(machine)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")


def failures(
    results: Mapping[str, Iterable[Metric]], baseline: Baseline, *, complete: bool, blocked: Mapping[str, str]
) -> list[str]:
    """What is wrong, one line each; empty means that the gate is open.

    Fails on a metric that worsened beyond its tolerance, on one without a baseline, on a benchmark whose peer is
    `blocked` (name -> reason) and, in a `complete` run, on a baseline that was not measured: a gate that skips silently
    holds nothing.
    """
    found = [f"{benchmark}: not run, {reason}" for benchmark, reason in blocked.items()]
    for benchmark, metrics in results.items():
        known, seen = baseline.get(benchmark, {}), set()
        for metric in metrics:
            seen.add(metric.name)
            if metric.name not in known:
                found.append(f"{benchmark} {metric.name}: no baseline, run with --save")
            elif metric.worsened(known[metric.name]):
                allowed = f"{metric.tolerance:g} {metric.unit}" if metric.absolute else f"{metric.tolerance:.0%}"
                found.append(
                    f"{benchmark} {metric.name}: {metric.value:.4g} {metric.unit}, baseline "
                    f"{known[metric.name]:.4g} ({metric.direction} is better, tolerance {allowed})"
                )
        if complete and benchmark not in blocked:
            found += [f"{benchmark} {name}: in the baseline but not measured" for name in known if name not in seen]
    return found


def as_record(metric: Metric) -> dict[str, Any]:
    """The metric as plain data, for a file beside the table."""
    return dataclasses.asdict(metric)
