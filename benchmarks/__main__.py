"""Command line: `python -m benchmarks [NAME ...] [--gate] [--quick] [--only PART ...] [--save] [--list]`."""

import argparse
import importlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import jax

from benchmarks import gate, harness, page

_PREFIXES = {"bench_": "", "accuracy_": "accuracy_"}  # file name's start -> what it is called by
_VERSIONS = ("haar", "jax", "jaxlib", "numpy", "scipy", "jaxlie", "e3nn-jax", "e3x", "ott-jax", "cuequivariance-jax")


def discover(folder: Path = Path(__file__).parent) -> dict[str, str]:
    """Name -> module of every benchmark file in the folder."""
    return {
        called + path.stem.removeprefix(start): f"benchmarks.{path.stem}"
        for start, called in _PREFIXES.items()
        for path in sorted(folder.glob(f"{start}*.py"))
    }


def load(module: str) -> ModuleType:
    """The benchmark's module, imported only when it runs."""
    return importlib.import_module(module)


def describe() -> dict[str, str]:
    """The machine and the versions that the figures belong to."""
    machine = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
    }
    for package in _VERSIONS:
        try:
            machine[package] = version(package)
        except PackageNotFoundError:
            machine[package] = "absent"
    return machine


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the named benchmarks (all if none is named); returns the exit status."""
    found = discover()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=harness.__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(found)}; all if none is given")
    parser.add_argument("--gate", action="store_true", help="exit 1 when a metric is worse than its baseline")
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--only", nargs="+", default=(), metavar="PART", help="metrics whose name contains PART")
    parser.add_argument("--save", action="store_true", help="write what was measured into the baseline and its page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured to a file")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in found]
    if unknown:
        parser.error(f"no benchmark called {', '.join(unknown)}; there are {', '.join(found)}")
    if chosen.list:
        print("\n".join(found))
        return 0

    options = harness.Options(quick=chosen.quick, only=tuple(chosen.only))
    machine = describe()
    print("\n".join(f"{key:10} {value}" for key, value in machine.items()))
    print(f"{'copy':10} {harness.copy_rate() / 1e9:.1f} GB/s", flush=True)

    baseline, results, blocked = gate.load(), {}, {}
    for name in chosen.names or found:
        print(f"\n{name}", flush=True)
        results[name] = []
        try:
            for metric in load(found[name]).measure(options):
                results[name].append(metric)
                print(line(metric, baseline.get(name, {}).get(metric.name)), flush=True)
                if chosen.save:
                    gate.save({name: [metric]}, machine)  # at once: a long run that is cut off keeps what it measured
        except harness.Missing as reason:
            blocked[name] = str(reason)
            print(f"  not run: {reason}", flush=True)

    if chosen.save:
        page.PAGE.write_text(page.render(found))
    if chosen.json:
        records = {name: [gate.as_record(metric) for metric in metrics] for name, metrics in results.items()}
        chosen.json.write_text(json.dumps({"machine": machine, "metrics": records}, indent=2) + "\n")
    if not chosen.gate:
        return 0
    wrong = gate.failures(results, baseline, complete=not (chosen.quick or chosen.only), blocked=blocked)
    print("\n" + "\n".join(["gate: failed", *wrong] if wrong else ["gate: passed"]))
    return 1 if wrong else 0


def line(metric: harness.Metric, baseline: float | None) -> str:
    """One row of the printed table: value, baseline, goal (with a mark where it is missed), and the note."""
    before = f"{baseline:9.3g}" if baseline is not None else f"{'new':>9}"
    goal = "" if metric.goal is None else f"{metric.goal:g}" + ("" if metric.reaches_goal() else " MISSED")
    return f"  {metric.name:44} {metric.value:9.3g} {metric.unit:4} {before}  {goal:12} {metric.note}"


if __name__ == "__main__":
    sys.exit(main())
