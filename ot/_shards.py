"""Rows that lie on several devices: each device works on its own, and what is summed over rows is summed over devices.

Arrays over n rows become (devices, n/devices, ...), and a function of one device's rows is mapped over the first axis,
which is laid out over the devices: XLA then runs a part on each and adds up the sums by an all-reduce. Nothing larger
than a vector over the columns leaves a device.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec


def of_rows(points: Any, events: Any) -> NamedSharding | None:
    """How the rows of a cloud lie, where they lie on several devices and the array is concrete."""
    leaves = [leaf for leaf in jax.tree.leaves(points) if isinstance(leaf, jax.Array)]
    if not leaves or isinstance(leaves[0], Tracer) or not isinstance(leaves[0].sharding, NamedSharding):
        return None
    axis = leaves[0].ndim - 1 - max(jax.tree.leaves(events))
    spec = (*leaves[0].sharding.spec, *[None] * leaves[0].ndim)
    if axis != 0 or spec[0] is None:
        return None
    rows = NamedSharding(leaves[0].sharding.mesh, PartitionSpec(spec[0]))
    return rows if count(rows) > 1 else None


def count(rows: NamedSharding) -> int:
    """On how many devices the rows lie."""
    names = rows.spec[0] if isinstance(rows.spec[0], tuple) else (rows.spec[0],)
    total = 1
    for name in names:
        total *= rows.mesh.shape[name]
    return total


def each(rows: NamedSharding | None, function: Callable[..., Any], *arrays: Any) -> tuple[Any, Any]:
    """function(*arrays) -> (arrays over the rows, arrays that are sums over them), device by device."""
    if rows is None:
        return function(*arrays)
    devices = count(rows)

    def split(leaf):
        return jax.lax.with_sharding_constraint(leaf.reshape(devices, -1, *leaf.shape[1:]), rows)

    kept, added = jax.vmap(function)(*jax.tree.map(split, arrays))
    joined = lambda leaf: jax.lax.with_sharding_constraint(leaf.reshape(-1, *leaf.shape[2:]), rows)
    return jax.tree.map(joined, kept), jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), added)
