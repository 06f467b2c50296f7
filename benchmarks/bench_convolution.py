"""Convolution against e3nn-jax and cuequivariance-jax (its CPU method): forward and backward, float32, 64 channels.

2000 edges of 100 nodes, natural parities, gradients by features, vectors and the weights of every edge, path and
channel, which are given. "summed" adds the paths inside, where the peers' product keeps them: that it equals theirs
summed is tested. At 20 000 edges a radial perceptron makes the weights, ours inside the block of edges. Each library
has its own layout; the ratio is to the faster peer.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks import harness, peer_cuequivariance
from equivariant import convolution, features, paths, radial
from equivariant import graph as graphs

CHANNELS, EDGES, MANY, NEIGHBORS = 64, 2000, 20_000, 20
BASIS, HIDDEN = 8, (64, 64)
GOALS = {"summed": {1: 2, 2: 6, 3: 9, 4: 10, 6: 10}, "kept": {1: 1.6, 2: 3, 3: 4, 4: 4, 6: 3}, "radial": {2: 4, 3: 6}}


def measure(options: harness.Options) -> Iterator[harness.Metric]:
    """Ratios of time by semantics and degree; of compile time and scratch memory at degrees 3 (time only), 4 and 6."""
    e3nn_jax = harness.peer("e3nn_jax")
    for max_degree in (2, 3) if options.quick else (1, 2, 3, 4, 6):
        product = paths.product(max_degree, max_degree, max_degree)
        count = len(paths.of(product))
        graph, vectors = _edges(EDGES)
        weights = _normal(3, EDGES, count, CHANNELS)
        x = _normal(0, EDGES // NEIGHBORS, 1, (max_degree + 1) ** 2, CHANNELS)
        peers, peer_arguments = _peers(e3nn_jax, max_degree, x, graph)
        theirs = {key: (lambda x, v, w, f=f: f(x, v, w)) for key, f in peers.items()}
        peer_arguments = {key: (*value, vectors, weights) for key, value in peer_arguments.items()}
        for semantics, function in (("summed", convolution.summed), ("kept", convolution.kept)):
            ours = lambda x, v, w, f=function, p=product, g=graph: f(p, x, g, v, w)
            yield from _compare(options, semantics, max_degree, ours, (x, vectors, weights), theirs, peer_arguments)
    for max_degree in () if options.quick else (2, 3):
        yield from _with_radial(options, e3nn_jax, max_degree)


def _with_radial(options: harness.Options, e3nn_jax: Any, max_degree: int) -> Iterator[harness.Metric]:
    product = paths.product(max_degree, max_degree, max_degree)
    count = len(paths.of(product))
    graph, vectors = _edges(MANY)
    x = _normal(0, MANY // NEIGHBORS, 1, (max_degree + 1) ** 2, CHANNELS)
    sizes = (BASIS, *HIDDEN, count * CHANNELS)
    parameters = tuple(_normal(7 + i, *shape) for i, shape in enumerate(itertools.pairwise(sizes)))
    embedding = _normal(5, MANY, BASIS)
    structure, state = nnx.split(
        convolution.Convolution(
            max_degree, max_degree, CHANNELS, embedding=BASIS, semantics="summed", hidden=HIDDEN, rngs=nnx.Rngs(0)
        )
    )

    def ours(x, v, parameters):
        layer = nnx.merge(structure, jax.tree.unflatten(jax.tree.structure(state), parameters))  # has no others
        return layer(x, graph, v, embedding)

    peers, peer_arguments = _peers(e3nn_jax, max_degree, x, graph)

    def with_radial(f):
        return lambda x, v, p: f(x, v, radial.perceptron(p, embedding).reshape(MANY, count, CHANNELS))

    theirs = {key: with_radial(f) for key, f in peers.items()}
    peer_arguments = {key: (*value, vectors, parameters) for key, value in peer_arguments.items()}
    yield from _compare(options, "radial", max_degree, ours, (x, vectors, parameters), theirs, peer_arguments)


def _compare(
    options: harness.Options,
    name: str,
    max_degree: int,
    ours: Callable[..., Any],
    arguments: tuple[Any, ...],
    theirs: dict[str, Callable[..., Any]],
    peer_arguments: dict[str, tuple[Any, ...]],
) -> Iterator[harness.Metric]:
    goal, full = GOALS[name][max_degree], f"{name}_{max_degree}"
    both, with_cotangent = harness.forward_and_backward(ours), (_cotangent(ours, arguments), *arguments)
    others = {key: harness.forward_and_backward(f) for key, f in theirs.items()}
    given = {key: (_cotangent(f, peer_arguments[key]), *peer_arguments[key]) for key, f in theirs.items()}
    if options.wants(full):
        # Every peer is handed the arguments of all, and takes its own.
        calls = {key: (lambda all_given, f=f, key=key: f(*all_given[key])) for key, f in others.items()}
        yield harness.versus(full, both, calls, with_cotangent, (given,), rounds=options.rounds(15), goal=goal)
    if name != "radial" and max_degree in (3, 6) and options.wants(f"{full}_compile"):
        contestants = {"haar": (both, with_cotangent), **{key: (f, given[key]) for key, f in others.items()}}
        timings = harness.compile_seconds(contestants, rounds=1 if options.quick else 3)
        rival = timings.fastest(others)
        note = f"haar {timings.median('haar'):.2f} s, {rival} {timings.median(rival):.2f} s"
        yield harness.Metric(f"{full}_compile", timings.ratio(rival, "haar"), "x", "higher", 0.5, note=note)
    if name != "radial" and max_degree in (4, 6) and options.wants(f"{full}_scratch"):
        scratch = {key: harness.temporary_bytes(f, *given[key]) for key, f in others.items()}
        rival = min(scratch, key=lambda key: scratch[key])
        mine = harness.temporary_bytes(both, *with_cotangent)
        note = f"haar {mine / 1e6:.1f} MB, {rival} {scratch[rival] / 1e6:.0f} MB"
        goal = 20 if name == "summed" else None
        yield harness.Metric(f"{full}_scratch", scratch[rival] / mine, "x", "higher", 0.1, goal=goal, note=note)


def _peers(
    e3nn_jax: Any, max_degree: int, x: jax.Array, graph: graphs.Graph
) -> tuple[dict[str, Callable[..., Any]], dict[str, tuple[Any, ...]]]:
    """Functions of (features in the peer's layout, vectors, weights), and those features."""
    layout = features.Layout(max_degree, CHANNELS)
    irreps = e3nn_jax.s2_irreps(max_degree)
    senders, receivers, nodes = graph.senders, graph.receivers, x.shape[0]

    def e3nn(x, v, w):
        harmonics = e3nn_jax.spherical_harmonics(irreps, v, True, "component")
        # Channels as a batch axis: uvu for all multiplicities at once, its fastest form here.
        messages = e3nn_jax.IrrepsArray(irreps, x)[senders]
        product = e3nn_jax.tensor_product(messages, harmonics[:, None, :], filter_ir_out=[ir for _, ir in irreps])
        chunks, start = [], 0
        for (mul, _), chunk in zip(product.irreps, product.chunks, strict=True):
            chunks.append(chunk * jnp.swapaxes(w[:, start : start + mul], 1, 2)[..., None])
            start += mul
        weighted = e3nn_jax.from_chunks(product.irreps, chunks, product.array.shape[:-1], x.dtype)
        return e3nn_jax.scatter_sum(weighted, dst=receivers, output_size=nodes).array

    found: dict[str, Callable[..., Any]] = {"e3nn": e3nn}
    given: dict[str, tuple[Any, ...]] = {"e3nn": (jnp.swapaxes(x[:, 0], 1, 2),)}
    try:
        convolve = peer_cuequivariance.convolution(max_degree, CHANNELS)
    except harness.Missing:  # a peer more: e3nn-jax alone does
        return found, given

    def cuequivariance(x, v, w):
        harmonics = e3nn_jax.spherical_harmonics(irreps, v, True, "component").array
        return convolve(x, harmonics, w.reshape(w.shape[0], -1), senders, receivers)

    found["cuequivariance"] = cuequivariance
    given["cuequivariance"] = (x.reshape(nodes, layout.shape[1] * CHANNELS),)
    return found, given


def _cotangent(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    shapes = jax.eval_shape(function, *arguments)
    return jax.tree.map(lambda s: jax.random.normal(jax.random.key(9), s.shape, s.dtype), shapes)


def _edges(edges: int) -> tuple[graphs.Graph, jax.Array]:
    rng = np.random.default_rng(0)
    senders, receivers = rng.integers(0, edges // NEIGHBORS, (2, edges))
    graph = graphs.from_edges(senders, receivers, edges // NEIGHBORS)
    return graph, _normal(1, edges, 3)


def _normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)
