"""The command line: python -m experiments list | run NAME | reproduce [NAME ...]."""

import os
import re
import sys
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from experiments.engine import dataset, exits, experiment, files, record, style, table
from experiments.engine import run as engine

_USAGE = """usage: python -m experiments COMMAND

  list                        every experiment, its paper and its claim
  run NAME [options]          run one, or go on with it; `run NAME --help` shows every option
  reproduce [NAME ...]        run all or some, keep their records in docs/results, rebuild the tables
  figure FOLDER               draw the figure of a run again, from its metrics alone

examples:
  python -m experiments run nbody --preset smoke         seconds: is everything in place?
  python -m experiments run nbody --preset cpu           minutes on 2 cores: the paper's ordering
  python -m experiments run nbody --preset cpu --seeds 0:3 --epochs 400

exit status: 0 finished; 2 refused as asked (one line says why); 74 the last save failed; 75 stopped by a signal after
saving, the same command goes on; 1 anything else.
"""


@dataclass(frozen=True)
class Options:
    """Options of the engine; those of the experiment follow."""

    preset: experiment.Preset = "cpu"
    """smoke: seconds, for tests. cpu: minutes on 2 cores. paper: the published protocol."""
    seeds: str = "0"
    """One seed, or a range first:end without its end, as in 0:5; all run in one program."""
    runs: Path = Path("runs")
    """Where run folders go: runs/NAME/PRESET-HASH."""
    run: Path | None = None
    """This run folder instead; refused if it holds a run of another config."""
    data: Path | None = None
    """Folder of data files; default: the environment variable HAAR_DATA."""
    fresh: bool = False
    """Start again; what the folder held is moved into its old/."""


def main(arguments: list[str] | None = None) -> None:
    """Carries out the command line and exits with its status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        sys.exit(_main(arguments))
    except exits.Refused as error:
        _end(error, exits.REFUSED)
    except exits.NotSaved as error:
        _end(error, exits.NOT_SAVED)
    except engine.Interrupted as error:
        _end(error, exits.INTERRUPTED)
    except FloatingPointError as error:
        _end(error, exits.FAILED)


def _end(error: Exception, status: int) -> None:
    print(f"error: {error}" if status != exits.INTERRUPTED else str(error), file=sys.stderr)
    sys.exit(status)


def _main(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return exits.FINISHED if arguments else exits.REFUSED
    command, rest = arguments[0], arguments[1:]
    commands = {"list": _list, "run": _run, "reproduce": _reproduce, "figure": _figure}
    if command not in commands:
        raise exits.Refused(f"no command is called {command!r}; there are: {', '.join(commands)}")
    commands[command](rest)
    return exits.FINISHED


def _list(arguments: list[str]) -> None:
    if arguments:
        raise exits.Refused(f"list takes no arguments, got {' '.join(arguments)}")
    for name in experiment.names():
        print(f"{name:20} {experiment.load(name).claim}")


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise exits.Refused(f"run takes the name of an experiment first; there are: {', '.join(experiment.names())}")
    chosen = experiment.load(arguments[0])
    _run_one(chosen, *_parse(chosen, arguments[1:], f"python -m experiments run {chosen.name}"))


def _reproduce(arguments: list[str]) -> None:
    named = [argument for argument in arguments[: _first_flag(arguments)]]
    flags = arguments[len(named) :]
    root = Path(__file__).resolve().parents[2]
    if not (root / "README.md").exists():
        raise exits.Refused("reproduce rebuilds README.md and docs/results of a checkout; this haar is not in one")
    for name in named or experiment.names():
        chosen = experiment.load(name)
        options, config = _parse(chosen, flags, "python -m experiments reproduce [NAME ...]")
        folder = _run_one(chosen, options, config)
        kept = root / "docs" / "results" / name
        kept.mkdir(parents=True, exist_ok=True)
        files.write_bytes(kept / f"{options.preset}.json", (folder / "result.json").read_bytes())
        picture = folder / "figures" / f"{name}.png"
        files.write_bytes(kept / f"{options.preset}.png", picture.read_bytes())
    for path, text in table.pages(root).items():
        files.write_bytes(path, text.encode())


def _figure(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise exits.Refused("figure takes one run folder")
    folder = Path(arguments[0])
    if not (folder / "config.json").exists():
        raise exits.Refused(f"{folder} is no run folder: it has no config.json")
    name = files.read_json(folder / "config.json")["experiment"]
    draw = experiment.load(name).module.figure
    for path in style.render(draw, record.metrics(folder), folder / "figures", name):
        print(path)


def _run_one(chosen: experiment.Experiment, options: Options, config: Any) -> Path:
    keep_compilations()
    request = engine.Request(
        options.preset, seeds(options.seeds), options.runs, options.run, _data_folder(options.data), options.fresh
    )
    folder = engine.run(chosen, config, request)
    table.show(files.read_json(folder / "result.json"))
    print(f"figure: {folder / 'figures' / (chosen.name + '.png')}\nrecord: {folder / 'result.json'}")
    return folder


def _parse(chosen: experiment.Experiment, arguments: list[str], program: str) -> tuple[Options, Any]:
    """Engine options and config from one flat set of flags; the preset decides the config's defaults."""
    preset = _preset(arguments)
    config_class = Annotated[chosen.module.Config, tyro.conf.arg(name="")]
    both = make_dataclass("Run", [("options", Annotated[Options, tyro.conf.arg(name="")]), ("config", config_class)])
    try:
        default = both(Options(preset=preset), chosen.preset(preset))  # type: ignore[arg-type]
    except KeyError:
        default = both(Options(), chosen.preset("cpu"))  # tyro refuses the preset's name itself
    parsed = tyro.cli(both, default=default, args=arguments, prog=program, description=chosen.claim)
    return parsed.options, parsed.config


def _preset(arguments: list[str]) -> str:
    for i, argument in enumerate(arguments):
        if argument == "--preset" and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith("--preset="):
            return argument.removeprefix("--preset=")
    return "cpu"


def _first_flag(arguments: list[str]) -> int:
    return next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))


def seeds(text: str) -> tuple[int, ...]:
    """'3' -> (3,); '0:5' -> (0, 1, 2, 3, 4). Refused for anything else."""
    if match := re.fullmatch(r"(\d+)(?::(\d+))?", text):
        first, end = int(match[1]), int(match[2]) if match[2] else int(match[1]) + 1
        if first < end:
            return tuple(range(first, end))
    raise exits.Refused(f"--seeds {text}: expected one seed, as 3, or a range first:end, as 0:5")


def _data_folder(given: Path | None) -> Path | None:
    folder = given or (Path(os.environ["HAAR_DATA"]) if os.environ.get("HAAR_DATA") else None)
    if folder is not None and not folder.is_dir():
        raise exits.Refused(f"the data folder {folder} does not exist ({'--data' if given else 'HAAR_DATA'})")
    return folder


def keep_compilations() -> None:
    """JAX's persistent compilation cache in haar's cache folder, unless the user has chosen one."""
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(dataset.cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
