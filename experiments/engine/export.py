"""A trained model to take away: weights as safetensors and its program as StableHLO, which run without haar.

`python -m experiments export RUN` writes RUN/export/: weights.safetensors (see weights.py), model.stablehlo for cpu,
cuda and tpu with any batch size, once differentiable, and README.md with the lines that load them.
"""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.engine import checkpoint, exits, files, identity, machine, options, provenance, record, weights
from experiments.engine import experiment as registry

PLATFORMS = ("cpu", "cuda", "tpu")


class Asked(NamedTuple):
    """Weights and program of a run, to use without haar."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    seed: int | None = None
    """Which seed of the run; default: the first."""
    to: Path | None = None
    """Where to; default: RUN/export."""
    data: Path | None = None
    """Folder of data files; default: the environment variable HAAR_DATA."""


def command(arguments: list[str]) -> None:
    """`export RUN ...` of the command line."""
    asked = tyro.cli(Asked, args=arguments, prog="python -m experiments export")
    for line in export(asked.run, asked.to or asked.run / "export", asked.seed, options.data_folder(asked.data)):
        print(line)


def export(run: Path, to: Path, seed: int | None, data_folder: Path | None) -> list[str]:
    """Writes the model of one seed of the run folder `run` into `to`; lines that say what was written."""
    description = record.asked(run)
    seeds, precision = description["seeds"], description.get("precision", {})
    seed = int(seeds[0] if seed is None else seed)
    if seed not in seeds:
        raise exits.Refused(f"--seed {seed}: the run has the seeds {', '.join(map(str, seeds))}")
    machine.use(None, precision.get("dtype"), precision.get("matmul"))
    chosen = registry.load(description["experiment"])
    config = identity.rebuild(chosen.module.Config, description["config"])
    data = machine.cast(chosen.data(config, data_folder), precision.get("dtype"))
    first = machine.cast(chosen.module.init(config, jax.random.key(seed), *data), precision.get("dtype"))
    template = jax.tree.map(lambda leaf: jnp.stack([jnp.asarray(leaf)] * len(seeds)), first)
    with files.locked(run):
        store = checkpoint.Checkpoints(run / "checkpoints")
        restored = store.restore(template)
        store.close()
    if not restored.step:
        raise exits.Refused(f"{run} has no good checkpoint: {'; '.join(restored.warnings) or 'it was never saved'}")
    state = jax.tree.map(lambda leaf: leaf[seeds.index(seed)], restored.state)
    about = {
        "experiment": chosen.name,
        "claim": chosen.claim,
        "config": description["config"],
        "seed": seed,
        "block": restored.step,
        "commit": provenance.git_state()["commit"],
        "versions": provenance.collect(data)["versions"],
    }
    lines = [f"warning: {warning}" for warning in restored.warnings]
    to.mkdir(parents=True, exist_ok=True)
    if not hasattr(chosen.module, "model"):
        weights.write(to / "weights.safetensors", state, about)
        note = f"{chosen.name} names no model: these are all arrays of its state"
        return [*lines, f"{to / 'weights.safetensors'} ({note})"]
    model = chosen.module.model(config, state, *data)
    serialized = program(model)
    about["inputs"] = {name: f"{shape} {dtype}" for name, (shape, dtype) in model.inputs.items()}
    weights.write(to / "weights.safetensors", model.parameters, about)
    files.write_bytes(to / "model.stablehlo", serialized)
    files.write_bytes(to / "README.md", _readme(chosen.claim, about).encode())
    error = difference(model, to)
    if not error <= 1e-4:
        raise exits.Refused(f"the exported program differs from the model by {error:.1e}; it is left in {to}")
    made = (
        f"{to / 'model.stablehlo'} ({len(serialized) / 1e6:.1f} MB; read back, differs from the model by {error:.1e})"
    )
    return [*lines, str(to / "weights.safetensors"), made, str(to / "README.md")]


def program(model: registry.Model) -> bytes:
    """The model as StableHLO: a function of (weights by name, *inputs), the batch symbolic."""
    names, structure = list(weights.named(model.parameters)), jax.tree.structure(model.parameters)

    def apply(arrays: dict[str, jax.Array], *inputs: jax.Array) -> Any:
        return model.apply(structure.unflatten([arrays[name] for name in names]), *inputs)

    arrays = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), weights.named(model.parameters))
    scope = jax.export.SymbolicScope()
    inputs = [
        jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape, scope=scope), dtype)
        for shape, dtype in model.inputs.values()
    ]
    exported = jax.export.export(jax.jit(apply), platforms=PLATFORMS)(arrays, *inputs)
    return bytes(exported.serialize(vjp_order=1))


def difference(model: registry.Model, folder: Path) -> float:
    """Largest difference, over the largest value, between what the files in `folder` compute and the model itself."""
    arrays, _ = weights.read(folder / "weights.safetensors")
    loaded = jax.export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    rng = np.random.default_rng(0)
    inputs = []
    for shape, dtype in model.inputs.values():
        sizes = [int(size) if size.strip().isdigit() else 3 for size in shape.split(",")]
        inputs.append(jnp.asarray(rng.normal(size=sizes), dtype))
    ours, theirs = (
        jax.tree.leaves(out) for out in (model.apply(model.parameters, *inputs), loaded.call(arrays, *inputs))
    )
    errors = [jnp.max(jnp.abs(a - b)) / jnp.maximum(jnp.max(jnp.abs(a)), 1) for a, b in zip(ours, theirs, strict=True)]
    return max(float(error) for error in errors)


def _readme(claim: str, about: dict[str, Any]) -> str:
    listed = ", ".join(about["inputs"])
    inputs = "\n".join(f"- `{name}`: {shape}" for name, shape in about["inputs"].items())
    return f"""# {about["experiment"]}, seed {about["seed"]}, block {about["block"]}

{claim}

Needs `jax`, `flatbuffers` and `safetensors`, not haar. Inputs (any `batch`):

{inputs}

```python
import jax
import jax.export
from safetensors.numpy import load_file

weights = load_file("weights.safetensors")
model = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
output = model.call(weights, {listed})  # jax.grad goes through it, too
```

With haar, `experiments.engine.weights.read` checks every byte against the digests in the file.
"""
