"""What a command line asks of a run: the engine's options and the experiment's config, from one flat set of flags."""

import os
import re
import traceback
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import tyro

from experiments.engine import dataset, downloads, exits, experiment, files, machine, mesh, table, tensorboard
from experiments.engine import run as engine


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
    """Folder of data files; default: HAAR_DATA, else what `data get` has fetched."""
    fresh: bool = False
    """Start again; what the folder held is moved into its old/."""
    tensorboard: bool = False
    """Metrics go to the run folder's tensorboard/, too, a run for each seed; needs haar[tensorboard]."""
    device: str | None = None
    """cpu, gpu, cuda, rocm or tpu; cpu:8 makes 8 devices of the processor. Default: the best there is."""
    dtype: machine.Dtype | None = None
    """Real numbers of data and state; default: as the experiment makes them, float32."""
    matmul_precision: machine.Matmul | None = None
    """Of the networks' products; default: JAX's, bfloat16 on TPU and perhaps TF32 on GPU."""
    mesh: str = "data=1"
    """data=N deals seeds, or else batches, out to N devices (docs/scaling.md)."""
    join: str | None = None
    """One of many processes: auto on SLURM or TPU pods, else HOST:PORT,COUNT,RANK (docs/scaling.md)."""


Asked = TypeVar("Asked", bound=Options)


def parse(
    chosen: experiment.Experiment, arguments: list[str], program: str, kind: type[Asked] = Options
) -> tuple[Asked, Any]:
    """Engine options, of the given kind, and config from one flat set of flags; the preset decides the defaults."""
    preset = _preset(arguments)
    config_class = Annotated[chosen.module.Config, tyro.conf.arg(name="")]
    both = make_dataclass("Run", [("options", Annotated[kind, tyro.conf.arg(name="")]), ("config", config_class)])
    try:
        default = both(kind(preset=preset), chosen.preset(preset))  # type: ignore[arg-type]
    except KeyError:
        default = both(kind(), chosen.preset("cpu"))  # tyro refuses the preset's name itself
    parsed = tyro.cli(both, default=default, args=arguments, prog=program, description=chosen.claim)
    return parsed.options, parsed.config


def set_up(options: Options) -> None:
    """What is done once in a process, before the first array: devices, precision, other processes, caches."""
    if options.tensorboard:
        tensorboard.library()
    machine.use(options.device, options.dtype, options.matmul_precision)
    if options.join:
        mesh.join(options.join)
    machine.check(options.device)
    keep_compilations()


def carry_out(chosen: experiment.Experiment, options: Options, config: Any) -> Path:
    """Runs what was asked, or goes on with it; shows its table and returns its folder. `set_up` comes first."""
    request = engine.Request(
        options.preset,
        seeds(options.seeds),
        options.runs,
        options.run,
        data_folder(options.data),
        options.fresh,
        devices=mesh.parse(options.mesh),
        dtype=options.dtype,
        matmul=options.matmul_precision,
        tensorboard=options.tensorboard,
    )
    folder = engine.run(chosen, config, request)
    if not mesh.leads():
        return folder
    table.show(files.read_json(folder / "result.json"))
    print(f"figure: {folder / 'figures' / (chosen.name + '.png')}\nrecord: {folder / 'result.json'}")
    return folder


def attempt(chosen: experiment.Experiment, options: Options, config: Any) -> tuple[Path | None, str]:
    """`carry_out` as one of many: (folder, ''), or (None, why not in one line). A signal still ends everything."""
    try:
        return carry_out(chosen, options, config), ""
    except engine.Interrupted:
        raise
    except (exits.Refused, exits.NotSaved, FloatingPointError) as error:
        line = str(error)
    except Exception as error:  # a bug of one run must not cost the others
        traceback.print_exc()
        line = f"{type(error).__name__}: {error}"
    print(f"not done, going on with the others: {line}\n", flush=True)
    return None, line


def seeds(text: str) -> tuple[int, ...]:
    """'3' -> (3,); '0:5' -> (0, 1, 2, 3, 4). Refused for anything else."""
    if match := re.fullmatch(r"(\d+)(?::(\d+))?", text):
        first, end = int(match[1]), int(match[2]) if match[2] else int(match[1]) + 1
        if first < end:
            return tuple(range(first, end))
    raise exits.Refused(f"--seeds {text}: expected one seed, as 3, or a range first:end, as 0:5")


def keep_compilations() -> None:
    """JAX's persistent compilation cache in haar's cache folder, unless the user has chosen one."""
    if not getattr(jax.config, "jax_compilation_cache_dir", None):
        jax.config.update("jax_compilation_cache_dir", str(dataset.cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _preset(arguments: list[str]) -> str:
    for i, argument in enumerate(arguments):
        if argument == "--preset" and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith("--preset="):
            return argument.removeprefix("--preset=")
    return "cpu"


def data_folder(given: Path | None) -> Path | None:
    """The folder of data files: `given`, else HAAR_DATA, else what `data get` has made, else None."""
    folder = given or downloads.folder()
    if folder.is_dir():
        return folder
    if given or os.environ.get("HAAR_DATA"):
        raise exits.Refused(f"the data folder {folder} does not exist ({'--data' if given else 'HAAR_DATA'})")
    return None
