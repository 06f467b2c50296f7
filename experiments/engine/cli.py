"""The command line: python -m experiments list | run NAME | reproduce [NAME ...]."""

import sys
from pathlib import Path

from experiments.engine import (
    downloads,
    exits,
    experiment,
    export,
    launch,
    machine,
    options,
    record,
    replay,
    report,
    reproduce,
    scene,
    style,
    sweep,
    watch,
)

_USAGE = """usage: python -m experiments COMMAND

  list                        every experiment, its paper and its claim
  run NAME [options]          run one, or go on with it; `run NAME --help` shows every option
  reproduce [NAME ...]        run all or some, keep their records in docs/results, rebuild tables and report
  report [options]            rebuild tables and one HTML page, with CSV and BibTeX, from the kept records
  watch RUN                   how a run stands: progress, time left, every metric as a line; it may run elsewhere
  export RUN                  weights (safetensors) and program (StableHLO) of a run, to use without haar
  launch [options] run ...    the processes of a run; when one dies, all start again from the last checkpoint
  replay BUNDLE               what a run that stopped at NaN left: the bad block again, every operation checked
  data list | get | check     public data sets at fixed commits, with their digests
  figure FOLDER               draw the figure of a run again, from its metrics alone
  scene FOLDER                what that figure holds in R^3, to turn and zoom in a browser (haar[scene])

examples:
  python -m experiments run nbody --preset smoke         seconds: is everything in place?
  python -m experiments run nbody --preset cpu           minutes on 2 cores: the paper's ordering
  python -m experiments run nbody --preset cpu --seeds 0:3 --epochs 400
  python -m experiments run nbody --preset cpu --sweep rate-egnn=1e-3,2e-3 --sweep layers=2,4
  python -m experiments reproduce --preset smoke         every experiment, kept apart in runs/kept-smoke

exit status: 0 finished; 2 refused as asked (one line says why); 74 the last save failed; 75 stopped by a signal after
saving, the same command goes on; 1 anything else.
"""


def main(arguments: list[str] | None = None) -> None:
    """Carries out the command line and exits with its status."""
    if arguments is None:  # a process of its own, which has no device yet
        machine.avoid_wrong_sums()
        arguments = sys.argv[1:]
    with exits.as_status():
        _main(arguments)


def _main(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        sys.exit(exits.FINISHED if arguments else exits.REFUSED)
    command, rest = arguments[0], arguments[1:]
    if command not in _COMMANDS:
        raise exits.Refused(f"no command is called {command!r}; there are: {', '.join(_COMMANDS)}")
    _COMMANDS[command](rest)


def _list(arguments: list[str]) -> None:
    if arguments:
        raise exits.Refused(f"list takes no arguments, got {' '.join(arguments)}")
    for name in experiment.names():
        print(f"{name:20} {experiment.load(name).claim}")


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise exits.Refused(f"run takes the name of an experiment first; there are: {', '.join(experiment.names())}")
    chosen = experiment.load(arguments[0])
    program = f"python -m experiments run {chosen.name}"
    asked, config = options.parse(chosen, arguments[1:], program, sweep.Options)
    options.set_up(asked)
    if asked.sweep:
        sweep.carry_out(chosen, asked, arguments[1:], program)
    else:
        options.carry_out(chosen, asked, config)


def _figure(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise exits.Refused("figure takes one run folder")
    folder = Path(arguments[0])
    name = record.asked(folder)["experiment"]
    draw = experiment.load(name).module.figure
    for path in style.render(draw, record.metrics(folder), folder / "figures", name):
        print(path)


_COMMANDS = {
    "list": _list,
    "run": _run,
    "reproduce": reproduce.command,
    "report": report.command,
    "watch": watch.command,
    "data": downloads.command,
    "figure": _figure,
    "scene": scene.command,
    "export": export.command,
    "launch": launch.command,
    "replay": replay.command,
}
