"""Runs all experiments or some, keeps their records, and rebuilds every table and the report from what is kept."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.engine import exits, experiment, mesh, options, report, results

_PROGRAM = "python -m experiments reproduce [NAME ...]"


@dataclass(frozen=True)
class Options(options.Options):
    """Options of the engine; those of the experiment follow."""

    results: Path | None = None
    """Folder where records are kept; default: docs/results of this checkout, but RUNS/kept-smoke for --preset smoke."""


def command(arguments: list[str]) -> None:
    """python -m experiments reproduce: what cannot be run is reported at the end, when all others have run."""
    first_flag = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    named, flags = arguments[:first_flag], arguments[first_flag:]
    if len(set(named)) < len(named):
        raise exits.Refused(f"an experiment is named twice: {' '.join(named)}")
    if not named and {"-h", "--help"} & set(flags):  # no experiment's own flags: they differ
        tyro.cli(Options, args=["--help"], prog=_PROGRAM, description="Runs every experiment, or those that are named.")
    # All are parsed before the first one runs: a wrong flag is told in seconds, not after hours.
    asked = [(chosen, *_parse(chosen, flags)) for chosen in map(experiment.load, named or experiment.names())]
    if not asked:
        raise exits.Refused("no experiment is registered")
    folder = _folder(asked[0][1])
    options.set_up(asked[0][1])
    begun = time.monotonic()
    failures = [line for chosen, one, config in asked if (line := _reproduce(chosen, one, config, folder))]
    if mesh.leads():  # of many processes, one writes
        for path in report.rebuild(folder):
            print(path)
    print(
        f"{len(asked) - len(failures)} of {len(asked)} experiments ran, {(time.monotonic() - begun) / 60:.1f} minutes"
    )
    if failures:
        raise exits.Incomplete("\n".join(failures))


def _parse(chosen: experiment.Experiment, flags: list[str]) -> tuple[Options, Any]:
    one, config = options.parse(chosen, flags, _PROGRAM, Options)
    if one.run:
        raise exits.Refused("reproduce gives each experiment a folder of its own: --runs, not --run")
    return one, config


def _folder(one: Options) -> Path:
    if one.results:
        return one.results.expanduser().resolve()
    return (one.runs / "kept-smoke").resolve() if one.preset == "smoke" else report.committed()


def _reproduce(chosen: experiment.Experiment, one: Options, config: Any, folder: Path) -> str:
    """Runs and keeps one experiment; what prevented it, in one line, or ''."""
    begun = time.monotonic()
    run, failure = options.attempt(chosen, one, config)
    if run is None:
        return f"{chosen.name}: {failure}"
    if not mesh.leads():
        return ""
    with exits.refusing_full_disk(folder):
        results.keep(run, folder, chosen.name, one.preset)
    print(f"{chosen.name}: kept in {folder / chosen.name}, {time.monotonic() - begun:.0f} s\n", flush=True)
    return ""
