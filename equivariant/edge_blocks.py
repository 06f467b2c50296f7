"""Sums over edges, a block of edges at a time: nothing as long as all edges is stored but what came so in.

On a CPU a fresh large array costs more than the arithmetic that fills it (page faults: 8 GB/s against 95 in cache). So
messages live for one block, in cache, and are added to their receivers at once. The derivative is written by hand and
recomputes them block by block; it is itself differentiable. So are weights, where they are made in the block: kept for
all edges they halve the perceptron's products, but NequIP's training step (benchmarks/bench_potential.py) takes 73 ms
of processor time for 53 and 46 MB of scratch for 13.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from equivariant import paths

# What a block keeps in flight on CPU. Paths summed, max_degree 2, weights made in the block, 20 000 edges, ms on one
# core: blocks of 250 edges 130, this (650) 147, 2000 186; at max_degree 3 no difference is seen.
_CACHE_BYTES = 1 << 23
_ACCELERATOR_BYTES = 1 << 28


class Frame(NamedTuple):
    """What messages take from the vector of an edge: pytrees of arrays (edges, ...), one that counts as constant."""

    fixed: Any
    moving: Any


@runtime_checkable
class Kernel(Protocol):
    """What happens on the edges of one block: X (edges, parities, orders, channels) are the senders' features."""

    def frame(self, product: paths.Product, vectors: Array) -> Frame:
        """What a message needs of its edge's direction, made for a block at once."""
        ...

    def messages(self, product: paths.Product, X: Array, frame: Frame, W: Array) -> tuple[Array, ...]:
        """Messages, each (edges, ...), linear in features and weights; elementwise over edges and channels."""
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
    weigh: Callable[[Any, Array, Any], Array] | None,
    x: Float[Array, "nodes parities orders channels"],
    vectors: Float[Array, "edges 3"],
    edge_data: Any,
    parameters: Any,
    senders: Int[Array, "edges"],
    receivers: Int[Array, "edges"],
    block_edges: int | None = None,
) -> tuple[Array, ...]:
    """Σ over edges of the kernel's messages, at their receivers: each (nodes + 1, ...); the last row is of no node.

    Edges that do not count have receiver = nodes. `edge_data` is a pytree of arrays (edges, ...): the weights, where
    `weigh` is None, else what it makes them of.
    """
    edges, given, weigh = vectors.shape[0], weigh is None, weigh or _given
    if edges == 0 or x.shape[0] == 0:
        return _zeros(Plan(kernel, product, weigh, 1), x, vectors, edge_data, parameters)
    if not block_edges:
        alone = given and _one_by_one()  # nothing but an edge is in flight then
        block_edges = edges if alone else _block(kernel.floats(product, x.shape[-1]) * x.dtype.itemsize, edges)
    plan = Plan(kernel, product, weigh, max(1, min(block_edges, edges)))
    missing = -edges % plan.block
    if missing:
        pad = partial(_pad, missing)
        vectors, edge_data, senders = jax.tree.map(pad, (vectors, edge_data, senders))
        receivers = _pad(missing, receivers, x.shape[0])
    return _total(plan, x, vectors, edge_data, parameters, senders, receivers)


def _given(_: Any, __: Array, weights: Array) -> Array:
    return weights


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
        frame, W = plan.kernel.frame(plan.product, vectors), plan.weigh(parameters, vectors, edge_data)

        def add_part(sums, part):
            frame, W, s, r = part
            messages = plan.kernel.messages(plan.product, x[s], frame, W)
            return tuple(a.at[r].add(m) for a, m in zip(sums, messages, strict=True)), None

        return _by_parts(add_part, sums, (frame, W, senders, receivers))

    blocks = _split(plan.block, (vectors, edge_data, senders, receivers))
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
        W, pull_weights = jax.vjp(plan.weigh, parameters, v, data)
        frame, pull_frame = jax.vjp(lambda v: plan.kernel.frame(plan.product, v), v)

        @jax.checkpoint
        def add_part(x_sum, part):
            (fixed, moving), W, s, r = part
            messages = lambda X, moving, W: plan.kernel.messages(plan.product, X, Frame(fixed, moving), W)
            _, pull = jax.vjp(messages, x[s], moving, W)
            X_bar, moving_bar, W_bar = pull(tuple(y[r] for y in cotangents))
            return x_sum.at[s].add(X_bar), (moving_bar, W_bar)

        x_sum, (moving_bar, W_bar) = _by_parts(add_part, x_sum, (frame, W, s, r))
        (v_bar,) = pull_frame(Frame(jax.tree.map(jnp.zeros_like, frame.fixed), moving_bar))
        parameters_bar, v_radial, data_bar = pull_weights(W_bar)
        return (x_sum, jax.tree.map(jnp.add, parameter_sum, parameters_bar)), (v_bar + v_radial, data_bar)

    start = jnp.zeros_like(x), jax.tree.map(jnp.zeros_like, parameters)
    blocks = _split(plan.block, (vectors, edge_data, senders, receivers))
    (x_bar, parameters_bar), (v_bar, data_bar) = jax.lax.scan(add, start, blocks)
    v_bar, data_bar = _joined((v_bar, data_bar))
    return x_bar, v_bar, data_bar, parameters_bar, None, None


_total.defvjp(_forward, _backward)


def _by_parts(add: Callable[[Any, Any], tuple[Any, Any]], sums: Any, block: Any) -> tuple[Any, Any]:
    """Adds a block's edges to the sums: on CPU one by one, elsewhere all at once.

    XLA compiles a short loop of elementwise operations into one function, which keeps what it computes of an edge in
    the first cache. The whole block at once takes 1.5 times as long (paths summed, max_degree 2 to 4, forward and
    backward, one core), two edges at a time 1.2 times. Until jax 0.12 such a loop was many calls, 3 times as long.
    """
    if not _one_by_one():
        return add(sums, block)
    sums, rows = jax.lax.scan(add, sums, _split(1, block))
    return sums, _joined(rows)


def _one_by_one() -> bool:
    return jax.default_backend() == "cpu" and jax.__version_info__ >= (0, 12)


def _zeros(plan: Plan, x: Array, vectors: Array, edge_data: Any, parameters: Any) -> tuple[Array, ...]:
    """Sums over no edges, one row more than there are nodes."""
    one_edge = lambda a: jax.ShapeDtypeStruct((1, *a.shape[1:]), a.dtype)
    one_block = jax.tree.map(one_edge, (x, vectors, edge_data))

    def messages(X, v, data):
        frame, W = plan.kernel.frame(plan.product, v), plan.weigh(parameters, v, data)
        return plan.kernel.messages(plan.product, X, frame, W)

    shapes = jax.eval_shape(messages, *one_block)
    return tuple(jnp.zeros((x.shape[0] + 1, *shape.shape[1:]), shape.dtype) for shape in shapes)


def _split(size: int, tree: Any) -> Any:
    """(edges, ...) as (parts, size, ...)."""
    return jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), tree)


def _joined(tree: Any) -> Any:
    """The inverse of `_split`."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)
