"""`python -m experiments replay BUNDLE`: the block that went wrong, once more, with every operation checked."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.experimental import checkify

from experiments.engine import checkpoint, files, identity, machine, options, provenance, rollback
from experiments.engine import experiment as registry
from experiments.engine.exits import Refused


class Asked(NamedTuple):
    """The bad block of a run that stopped, once more, with every operation checked."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """The bundle, RUN/failure-BLOCK."""
    data: Path | None = None
    """Folder of data files; default: the environment variable HAAR_DATA."""


def command(arguments: list[str]) -> None:
    """`replay BUNDLE` of the command line."""
    asked = tyro.cli(Asked, args=arguments, prog="python -m experiments replay")
    for line in replay(asked.bundle, options.data_folder(asked.data)):
        print(line)


def replay(place: Path, data_folder: Path | None) -> list[str]:
    """Computes the bad block of a bundle again with every operation checked; lines that say what was found.

    Refused if the bundle, its experiment, its config or its data are not those of the run.
    """
    if not (place / "bundle.json").exists():
        raise Refused(f"{place} is no bundle: it has no bundle.json")
    content = files.read_json(place / "bundle.json")
    chosen = registry.load(content["experiment"])
    precision = content.get("precision", {})
    machine.use(None, precision.get("dtype"), precision.get("matmul"))
    config = identity.rebuild(chosen.module.Config, content["config"])
    data = machine.cast(chosen.data(config, data_folder), precision.get("dtype"))
    if (found := provenance.digest(data)) != content["data_sha256"]:
        raise Refused(f"the data are not those of the run: sha256 {found[:12]}, there {content['data_sha256'][:12]}")
    if content["rates_halved"]:
        config = chosen.module.lower_rate(config, 0.5 ** content["rates_halved"])
    seeds = content["seeds"]
    first = machine.cast(chosen.module.init(config, jax.random.key(seeds[0]), *data), precision.get("dtype"))
    template = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * len(seeds)), first)
    restored = checkpoint.Checkpoints(place / "state").restore(template)
    if restored.step != content["block"] - 1:
        raise Refused(f"{place / 'state'} is damaged: {'; '.join(restored.warnings) or 'it holds no state'}")
    lines = [f"{chosen.name}: block {content['block']} of {place}"]
    now = provenance.collect(data)["versions"]
    changed = [f"{name} {old} -> {now[name]}" for name, old in content["versions"].items() if now.get(name) != old]
    lines += [f"note: versions differ from those of the run: {', '.join(changed)}"] if changed else []
    for s in sorted({s for bad in content["found"].values() for s in bad}):
        state = jax.tree.map(lambda leaf, s=s: leaf[s], restored.state)
        lines.append(f"seed {seeds[s]}: {_first_fault(chosen, config, state, data)}")
    return lines


def _first_fault(chosen: registry.Experiment, config: Any, state: Any, data: tuple[Any, ...]) -> str:
    """The first operation of the block that makes NaN or divides by zero, by JAX's own checks."""

    def block(state: Any, *data: Any) -> Any:
        return chosen.module.advance(config, state, *data)

    error, (after, metrics) = jax.jit(checkify.checkify(block, errors=checkify.float_checks))(state, *data)
    if message := error.get():
        return message
    one = jax.tree.map(lambda leaf: leaf[None], (state, after, metrics))
    excused = getattr(chosen.module, "MAY_NOT_BE_FINITE", ())
    values = {name: np.asarray(value) for name, value in one[2].items()}
    found = rollback.complaints(rollback.illness(one[0], one[1]), values, excused)
    return f"{', '.join(found)}, but no operation made NaN: an overflow" if found else "the block is good here"
