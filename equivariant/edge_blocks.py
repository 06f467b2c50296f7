"""Sums over edges, a block of edges at a time: nothing as long as all edges is stored but what came so in.

On a CPU a fresh large array costs more than the arithmetic that fills it (page faults: 8 GB/s against 95 in cache). So
messages live for one block, in cache, and are added to their receivers at once. The derivative is written by hand and
recomputes them block by block; it is itself differentiable.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from equivariant import paths

# What a block keeps in flight on CPU. Paths summed, max_degree 3, two busy cores, ms of processor time: half as much
# 51, this 38 to 41, twice and four times as much 45.
_CACHE_BYTES = 1 << 23
_ACCELERATOR_BYTES = 1 << 28


@runtime_checkable
class Kernel(Protocol):
    """What happens on the edges of one block: X (edges, parities, orders, channels) are the senders' features."""

    def messages(self, product: paths.Product, X: Array, vectors: Array, W: Array) -> tuple[Array, ...]:
        """Messages, each (edges, ...), trilinear in features, weights and filter."""
        ...

    def cotangents(
        self, product: paths.Product, X: Array, vectors: Array, W: Array, Y: tuple[Array, ...]
    ) -> tuple[Array, Array, Array]:
        """Derivatives of Σ <Y, messages> with respect to X, vectors and W."""
        ...

    def floats(self, product: paths.Product, channels: int) -> int:
        """Numbers that one edge keeps in flight."""
        ...


class Plan(NamedTuple):
    """What is static: the kernel, the product, how weights come about, how many edges make a block."""

    kernel: Any
    product: paths.Product
    weigh: Callable[[Any, Array, Any], Array]  # (parameters, vectors, edge data) of a block -> (edges, paths, channels)
    block: int


def total(
    kernel: Kernel,
    product: paths.Product,
    weigh: Callable[[Any, Array, Any], Array],
    x: Float[Array, "nodes parities orders channels"],
    vectors: Float[Array, "edges 3"],
    edge_data: Any,
    parameters: Any,
    senders: Int[Array, "edges"],
    receivers: Int[Array, "edges"],
    block_edges: int | None = None,
) -> tuple[Array, ...]:
    """Σ over edges of the kernel's messages, at their receivers: each (nodes + 1, ...); the last row is of no node.

    Edges that do not count have receiver = nodes. `edge_data` is a pytree of arrays (edges, ...).
    """
    edges = vectors.shape[0]
    if edges == 0 or x.shape[0] == 0:
        return _zeros(Plan(kernel, product, weigh, 1), x, vectors, edge_data, parameters)
    size = block_edges or _block(kernel.floats(product, x.shape[-1]) * x.dtype.itemsize, edges)
    plan = Plan(kernel, product, weigh, max(1, min(size, edges)))
    missing = -edges % plan.block
    if missing:
        pad = partial(_pad, missing)
        vectors, edge_data, senders = jax.tree.map(pad, (vectors, edge_data, senders))
        receivers = _pad(missing, receivers, x.shape[0])
    return _total(plan, x, vectors, edge_data, parameters, senders, receivers)


def _block(bytes_per_edge: int, edges: int) -> int:
    budget = _CACHE_BYTES if jax.default_backend() == "cpu" else _ACCELERATOR_BYTES
    size = max(16, budget // bytes_per_edge)
    blocks = max(1, -(-edges // size))
    exact = next((n for n in range(blocks, 2 * blocks) if edges % n == 0), blocks)  # no padding if it is near
    return -(-edges // exact)


def _pad(missing: int, a: Array, value: int = 0) -> Array:
    return jnp.concatenate([a, jnp.full((missing, *a.shape[1:]), value, a.dtype)])


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(plan, x, vectors, edge_data, parameters, senders, receivers):
    def add(sums, block):
        vectors, edge_data, senders, receivers = block
        W = plan.weigh(parameters, vectors, edge_data)
        messages = plan.kernel.messages(plan.product, x[senders], vectors, W)
        return tuple(a.at[receivers].add(m) for a, m in zip(sums, messages, strict=True)), None

    blocks = _split(plan, (vectors, edge_data, senders, receivers))
    return jax.lax.scan(add, _zeros(plan, x, vectors, edge_data, parameters), blocks)[0]


def _forward(plan, x, vectors, edge_data, parameters, senders, receivers):
    arguments = (x, vectors, edge_data, parameters, senders, receivers)
    return _total(plan, *arguments), arguments


def _backward(plan, arguments, cotangents):
    x, vectors, edge_data, parameters, senders, receivers = arguments
    # The row of no node takes whatever the edges that do not count send there: nothing may come back from it.
    cotangents = tuple(y.at[-1].set(0) for y in cotangents)

    @jax.checkpoint  # a second derivative recomputes the block, too
    def add(sums, block):
        x_sum, parameter_sum = sums
        v, data, s, r = block
        W, pull = jax.vjp(plan.weigh, parameters, v, data)
        X_bar, v_bar, W_bar = plan.kernel.cotangents(plan.product, x[s], v, W, tuple(y[r] for y in cotangents))
        parameters_bar, v_radial, data_bar = pull(W_bar)
        sums = x_sum.at[s].add(X_bar), jax.tree.map(jnp.add, parameter_sum, parameters_bar)
        return sums, (v_bar + v_radial, data_bar)

    start = jnp.zeros_like(x), jax.tree.map(jnp.zeros_like, parameters)
    blocks = _split(plan, (vectors, edge_data, senders, receivers))
    (x_bar, parameters_bar), (v_bar, data_bar) = jax.lax.scan(add, start, blocks)
    v_bar, data_bar = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), (v_bar, data_bar))
    return x_bar, v_bar, data_bar, parameters_bar, None, None


_total.defvjp(_forward, _backward)


def _zeros(plan: Plan, x: Array, vectors: Array, edge_data: Any, parameters: Any) -> tuple[Array, ...]:
    """Sums over no edges, one row more than there are nodes."""
    one_edge = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
    one_block = jax.tree.map(one_edge, (x, vectors, edge_data))

    def messages(X, v, data):
        return plan.kernel.messages(plan.product, X, v, plan.weigh(parameters, v, data))

    shapes = jax.eval_shape(messages, *one_block)
    return tuple(jnp.zeros((x.shape[0] + 1, *shape.shape[1:]), shape.dtype) for shape in shapes)


def _split(plan: Plan, tree: Any) -> Any:
    return jax.tree.map(lambda a: a.reshape(-1, plan.block, *a.shape[1:]), tree)
