"""What a run that could not be saved from NaN leaves: all it takes to compute the bad block again, anywhere.

FOLDER/failure-BLOCK/ holds the state before the block (a checkpoint, with digests), bundle.json (config, seeds, rates,
what went wrong, versions, commit, the digest of the data) and the command. The batches follow from the state's random
keys and the data, so `replay` draws the same ones.
"""

import shlex
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import checkify

from experiments.engine import checkpoint, files, machine, provenance, rollback
from experiments.engine import experiment as registry
from experiments.engine.exits import Refused


def write(
    folder: Path, block: int, states: Any, complaints: dict[str, np.ndarray], lowered: int, data: tuple[Any, ...]
) -> Path:
    """Leaves the bundle of `block`, whose state before was `states`, in the run folder; returns its own folder."""
    place = folder / f"failure-{block:06d}"
    shutil.rmtree(place, ignore_errors=True)  # of an earlier attempt at the same block
    store = checkpoint.Checkpoints(place / "state")
    store.save(block - 1, states)
    store.close()
    description = files.read_json(folder / "config.json")
    bad = {name: [int(s) for s in np.flatnonzero(seeds)] for name, seeds in complaints.items()}
    content = {
        "block": block,
        "found": bad,
        "rates_halved": lowered,
        "command": f"python -m experiments replay {shlex.quote(str(place))}",
    }
    files.write_json(place / "bundle.json", provenance.collect(data) | description | content)
    return place


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
    config = rebuild(chosen.module.Config, content["config"])
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


def rebuild(config_class: Any, plain: dict[str, Any]) -> Any:
    """A config from the plain data that `identity.plain` made of it; Refused if a field is not the class's."""
    try:
        return config_class(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        )
    except TypeError as error:
        raise Refused(f"the config does not fit today's code: {error}") from error


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
