"""Flow matching on any group of lie: coupled pairs, geodesics or bridges between them, a network and a sampler."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lie import group, processes
from ot import costs, coupling, paths

LATEST = 0.99  # time up to which the bridges' drift is learned: its variance is infinite at 1
Network = list[dict[str, Array]]


def network(widths: tuple[int, ...], key: Array) -> Network:
    """An untrained perceptron: `widths` from the input, entries and time, to the velocity."""
    shapes = list(itertools.pairwise(widths))
    ends = np.cumsum([a * b for a, b in shapes])
    parts = jnp.split(jax.random.normal(key, (ends[-1],), jnp.float32), ends[:-1])
    return [
        {"weight": part.reshape(a, b) / math.sqrt(a), "bias": jnp.zeros(b, jnp.float32)}  # as SELU wants it
        for part, (a, b) in zip(parts, shapes, strict=True)
    ]


def field(parameters: Network, t: Array, x: Any) -> Array:
    """Velocity in the body frame at time t, a number or one for each element of x: a perceptron on entries and t."""
    leaves = jax.tree.leaves(x)
    h = [leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:])) for leaf in leaves]
    h = jnp.concatenate([*h, jnp.broadcast_to(t, leaves[0].shape[:1])[:, None]], axis=1)
    for layer in parameters[:-1]:
        h = jax.nn.selu(h @ layer["weight"] + layer["bias"])
    return h @ parameters[-1]["weight"] + parameters[-1]["bias"]


def bridge(on: group.Group, x0: Any, x1: Any, t: Array, noise: Array, *, key: Array) -> tuple[Array, Any, Array]:
    """(times, points, velocities) to learn from: on geodesics or, with noise > 0, on Brownian bridges up to LATEST.

    Given its end, the bridge's drift is log(x_t⁻¹ x_1)/(1 − t); its mean over the pairs drives the SDE that has the
    bridges' marginals. The bridge's own law is taken as exp of a normal vector of scale noise √(t (1 − t)), at most
    0.05: IGSO(3) to 1e-4.
    """
    t = jnp.where(noise > 0, LATEST * t, t)
    x = paths.interpolate(x0, x1, t, group=on)
    straight = paths.velocity(x0, x1, t, group=on)
    spread = noise * jnp.sqrt(t * (1 - t))
    x = on.retract(x, spread[:, None] * jax.random.normal(key, straight.shape, straight.dtype))
    return t, x, jnp.where(noise > 0, on.local(x, x1) / (1 - t)[:, None], straight)


def sample(on: group.Group, parameters: Any, noise: Array, start: Any, times: Array, *, key: Array) -> Any:
    """Where `start` is at the end of `times`: geodesic Euler steps, with noise for the stochastic method."""
    return processes.sde(on, partial(field, parameters), noise, start, times, key=key).final


def couple(
    on: group.Group, noise: Callable[[Array], Any], points: Any, shape: tuple[int, int, int], passes: int, key: Array
) -> Array:
    """Indices (passes x batches, batch) of the points that optimal assignments give to each batch's noise.

    shape is (batches in a pass, batch, how many are coupled at once); noise(index) is the batch of that index; the cost
    is the squared distance. Each pass takes the points in a new order. Assignments are found on the host.
    """
    batches, batch, coupled = shape
    cost, total = costs.Geodesic(on, 2), len(jax.tree.leaves(points)[0])
    in_groups = partial(jax.tree.map, lambda leaf: leaf.reshape(-1, coupled, *leaf.shape[2:]))

    @jax.jit
    def one_pass(number: Array) -> tuple[Array, Array]:
        drawn = jax.vmap(noise)(number * batches + jnp.arange(batches, dtype=jnp.int32))
        order = jax.random.permutation(jax.random.fold_in(key, number), total)[: batches * batch]
        order = order.astype(jnp.int32).reshape(batches, batch)
        return order.reshape(-1, coupled), cost(in_groups(drawn), in_groups(take(points, order)))

    found = []
    for number in range(passes):
        order, C = one_pass(jnp.int32(number))
        pairs = coupling.pair(None, None, cost=costs.Precomputed(C), key=key)  # an assignment: the key is not used
        found.append(np.take_along_axis(np.asarray(order), np.asarray(pairs.j), axis=1))
    return jnp.asarray(np.reshape(found, (-1, batch)))


def take(tree: Any, index: Any) -> Any:
    """The elements at `index` of an array, or of each array of a tuple."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
