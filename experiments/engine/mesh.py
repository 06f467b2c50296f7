"""One run on many devices: `--mesh data=N` deals its seeds, or else the examples of every batch, out to N devices.

The rule. Between blocks the state is whole on every device, and so are the data; a checkpoint therefore knows nothing
of devices, and any number of them can go on with it. Where the number of seeds is a multiple of N, each device computes
its share of the seeds, and nothing is sent. Elsewhere an array that the experiment passes through `split` is dealt out
along its axis of examples, and XLA sums the gradients over the devices; everything else is computed on all of them.

Many processes (`join`) are the same picture: all compute the same blocks, process 0 alone owns the run folder.
"""

import os
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from experiments.engine.exits import Refused

AXIS = "data"
_HEARTBEAT = 30  # seconds after which a silent process is taken for dead; JAX then ends all others


def parse(text: str) -> int:
    """'data=8' -> 8. Refused for anything else."""
    if match := re.fullmatch(r"data=([1-9]\d*)", text):
        return int(match[1])
    raise Refused(f"--mesh {text}: expected data=N, as in data=8")


def join(text: str) -> None:
    """Makes this process one of many, before any array: 'auto' on SLURM, TPU pods, ...; else 'HOST:PORT,COUNT,RANK'.

    Only process 0 prints: the others compute the same.
    """
    match = re.fullmatch(r"(?P<address>[^,]+:\d+),(?P<count>\d+),(?P<rank>\d+)", text)
    if not match and text != "auto":
        raise Refused(f"--join {text}: expected auto, or HOST:PORT,COUNT,RANK, as in 10.0.0.1:4321,2,0")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        if match:
            count, rank = int(match["count"]), int(match["rank"])
            jax.distributed.initialize(match["address"], count, rank, heartbeat_timeout_seconds=_HEARTBEAT)
        else:
            jax.distributed.initialize(heartbeat_timeout_seconds=_HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        raise Refused(f"--join {text}: {str(error).splitlines()[0]}") from error
    if not leads():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the life of the process


def leads() -> bool:
    """Whether this process owns the run folder."""
    return jax.process_index() == 0


def build(count: int) -> Mesh | None:
    """A mesh of the first `count` devices; None for one device of one process. Refused if there are too few."""
    found = jax.device_count()
    if jax.process_count() > 1 and count != found:
        raise Refused(f"--mesh data={count}: {jax.process_count()} processes have {found} devices; take data={found}")
    if count > found:
        kind = jax.devices()[0].platform
        hint = f"; --device cpu:{count} makes {count} of the processor" if kind == "cpu" else ""
        raise Refused(f"--mesh data={count}: there are {found} {kind} device(s){hint}")
    if count == 1 and jax.process_count() == 1:
        return None
    return Mesh(np.array(jax.devices()[:count]), (AXIS,), axis_types=(AxisType.Auto,))


def deals_seeds(mesh: Mesh, seeds: int) -> bool:
    """Whether whole seeds are dealt out; else the examples of each batch are."""
    return seeds % mesh.size == 0


def split(tree: Any, axis: int = 0) -> Any:
    """`tree` with the examples along `axis` dealt out to the devices of the run's mesh; itself where there is none.

    Inside jit. Arrays whose number of examples is no multiple of the number of devices stay whole on all.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or AXIS not in mesh.axis_names or mesh.axis_types != (AxisType.Auto,):
        return tree
    spec = PartitionSpec(*[None] * axis, AXIS)

    def one(leaf: jax.Array) -> jax.Array:
        return leaf if leaf.shape[axis] % mesh.size else jax.lax.with_sharding_constraint(leaf, spec)

    return jax.tree.map(one, tree)


def place(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays of this process, whole on every device of `mesh`; all processes give the same."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec())

    def one(leaf: Any) -> jax.Array:
        if jax.process_count() == 1:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        value = np.asarray(leaf)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    return jax.tree.map(one, tree)


def local(tree: Any) -> Any:
    """Arrays that are whole on every device as arrays of this process alone, to look at without the other processes."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree) if jax.process_count() > 1 else tree


def most(*values: int) -> tuple[int, ...]:
    """Each value's maximum over the processes: what one of them saw, all know."""
    if jax.process_count() == 1:
        return values
    gathered = multihost_utils.process_allgather(np.array(values, np.int32))
    return tuple(int(value) for value in np.max(gathered, axis=0))


def led(action: Callable[[], int]) -> int:
    """What `action` returns on process 0, which alone carries it out; all processes stop if it raises."""
    if jax.process_count() == 1:
        return action()
    answer, error = 0, None
    if leads():
        try:
            answer = action()
        except Exception as raised:  # told to the others first, then raised again
            answer, error = -1, raised
    answer = int(multihost_utils.broadcast_one_to_all(np.int32(answer)))
    if error is not None:
        raise error
    if answer < 0:
        raise Refused("process 0 stopped; its message says why")
    return answer


def from_leader(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Process 0's arrays, on every process; all have the same names, shapes and dtypes."""
    return arrays if jax.process_count() == 1 else multihost_utils.broadcast_one_to_all(arrays)
