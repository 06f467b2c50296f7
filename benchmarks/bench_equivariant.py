"""`equivariant`'s node operations against e3nn-jax and cuequivariance-jax: forward and backward, float32, 64 channels.

Like is compared with like: the same irreps, the same functions, gradients by every input and weight, each library in
its own layout, so that neither pays for converting to the other's. Ratios of time; then of compile time and of scratch.
e3nn-jax has no LayerNorm: the formula of `over="degree"` is written with its chunks, as its users do.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from benchmarks import harness, peer_cuequivariance
from equivariant import activation, linear, normalization, symmetric_contraction

NODES, CHANNELS = 2000, 64
CONTRACTED, SPECIES, CORRELATION = 160, 4, 3


def measure(options: harness.Options) -> Iterator[harness.Metric]:
    """Linear, Gate and LayerNorm at degrees 1, 2 and 3; the symmetric contraction at degrees 1 and 2."""
    e3nn_jax = harness.peer("e3nn_jax")
    for max_degree in (2,) if options.quick else (1, 2, 3):
        yield from _linear(options, e3nn_jax, max_degree)
        yield from _gate(options, e3nn_jax, max_degree)
        yield from _layer_norm(options, e3nn_jax, max_degree)
    for max_degree in (2,) if options.quick else (1, 2):
        yield from _symmetric_contraction(options, max_degree)


def _linear(options: harness.Options, e3nn_jax: Any, max_degree: int) -> Iterator[harness.Metric]:
    import e3nn_jax.flax  # a part of the peer that loads flax's older API, not wanted before

    irreps = _irreps(e3nn_jax, max_degree)
    layer = e3nn_jax.flax.Linear(irreps, force_irreps_out=True)
    array = _normal(1, NODES, irreps.dim)
    parameters = layer.init(jax.random.key(0), e3nn_jax.IrrepsArray(irreps, array))

    def theirs(parameters, x):
        return layer.apply(parameters, e3nn_jax.IrrepsArray(irreps, x)).array

    def ours(weight, bias, x):
        return linear.linear(weight, bias, x)

    x = _features(max_degree)
    weight, bias = _normal(2, 1, max_degree + 1, CHANNELS, CHANNELS) / 8, jnp.zeros(CHANNELS, jnp.float32)
    goal = {1: 1.5, 2: 2.5, 3: 3.0}[max_degree]
    mine, other = (x, weight, bias, x), (array, parameters, array)
    yield from _compare(options, f"linear_{max_degree}", ours, theirs, mine, other, goal)


def _gate(options: harness.Options, e3nn_jax: Any, max_degree: int) -> Iterator[harness.Metric]:
    gates = CHANNELS * max_degree
    irreps = e3nn_jax.Irreps([(CHANNELS + gates, (0, 1))]) + _irreps(e3nn_jax, max_degree)[1:]
    array = _normal(1, NODES, irreps.dim)

    def theirs(x):
        return e3nn_jax.gate(e3nn_jax.IrrepsArray(irreps, x), even_act=jax.nn.silu).array

    x = _features(max_degree)
    mine, other = (x, x, _normal(3, NODES, gates)), (_normal(4, NODES, irreps.dim - gates), array)
    yield from _compare(options, f"gate_{max_degree}", activation.gate, theirs, mine, other, 3.0)


def _layer_norm(options: harness.Options, e3nn_jax: Any, max_degree: int) -> Iterator[harness.Metric]:
    irreps = _irreps(e3nn_jax, max_degree)
    array = _normal(1, NODES, irreps.dim)

    def theirs(x, weight, bias):
        chunks = []
        for l, chunk in enumerate(e3nn_jax.IrrepsArray(irreps, x).chunks):
            chunk = chunk - jnp.mean(chunk, axis=1, keepdims=True) if l == 0 else chunk
            shrink = jax.lax.rsqrt(jnp.mean(chunk * chunk, axis=(1, 2), keepdims=True) + 1e-5)
            chunk = chunk * shrink * weight[0, l, :, None]
            chunks.append(chunk + bias[:, None] if l == 0 else chunk)
        return e3nn_jax.from_chunks(irreps, chunks, (NODES,), x.dtype).array

    x = _features(max_degree)
    weight, bias = jnp.ones((1, max_degree + 1, CHANNELS), jnp.float32), jnp.zeros(CHANNELS, jnp.float32)

    def ours(x, weight, bias):
        return normalization.layer_norm(x, weight, bias, over="degree")

    mine, other = (x, x, weight, bias), (array, array, weight, bias)
    yield from _compare(options, f"layer_norm_{max_degree}", ours, theirs, mine, other, 1.0)


def _symmetric_contraction(options: harness.Options, max_degree: int) -> Iterator[harness.Metric]:
    try:
        weights, theirs = peer_cuequivariance.symmetric_contraction(max_degree, CHANNELS, CORRELATION)
    except harness.Missing:  # a peer more: the other rows do without
        return
    species = jax.random.randint(jax.random.key(5), (CONTRACTED,), 0, SPECIES, jnp.int32)
    layer = symmetric_contraction.SymmetricContraction(
        max_degree, max_degree, CHANNELS, correlation=CORRELATION, species=SPECIES, rngs=nnx.Rngs(0)
    )
    x = _features(max_degree, CONTRACTED)

    def ours(weight, x):
        kind = {"max_degree": max_degree, "correlation": CORRELATION}
        return symmetric_contraction.symmetric_contraction(weight, x, species, **kind)

    flat = x.reshape(CONTRACTED, -1)
    mine, other = (x, layer.weight[...], x), (flat, _normal(6, SPECIES, weights), flat)
    name = f"symmetric_contraction_{max_degree}"
    theirs_of_species = lambda weight, x: theirs(weight, x, species)
    yield from _compare(options, name, ours, theirs_of_species, mine, other, 1.5, "cuequivariance", alone=True)


def _compare(
    options: harness.Options,
    name: str,
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    our_arguments: tuple[Any, ...],
    their_arguments: tuple[Any, ...],
    goal: float | None,
    peer: str = "e3nn",
    alone: bool = False,
) -> Iterator[harness.Metric]:
    """Forward and backward; with `alone` the forward pass by itself, compile time and scratch memory as well."""
    rounds = options.rounds(25)
    both, other = harness.forward_and_backward(ours), harness.forward_and_backward(theirs)
    if options.wants(name):
        contestants = {peer: other}
        yield harness.versus(name, both, contestants, our_arguments, their_arguments, rounds=rounds, goal=goal)
    if not alone:
        return
    if options.wants(f"{name}_forward"):
        inputs = our_arguments[1:], their_arguments[1:]
        yield harness.versus(f"{name}_forward", ours, {peer: theirs}, *inputs, rounds=rounds)
    if options.wants(f"{name}_compile"):
        timings = harness.compile_seconds({"haar": (both, our_arguments), peer: (other, their_arguments)}, rounds=3)
        note = f"haar {timings.median('haar'):.2f} s, {peer} {timings.median(peer):.2f} s"
        yield harness.Metric(f"{name}_compile", timings.ratio(peer, "haar"), "x", "higher", 0.5, note=note)
    if options.wants(f"{name}_scratch"):
        scratch = [harness.temporary_bytes(f, *a) for f, a in ((both, our_arguments), (other, their_arguments))]
        note = f"haar {scratch[0] / 1e6:.1f} MB, {peer} {scratch[1] / 1e6:.1f} MB"
        yield harness.Metric(f"{name}_scratch", scratch[1] / scratch[0], "x", "higher", 0.1, note=note)


def _irreps(e3nn_jax: Any, max_degree: int) -> Any:
    return e3nn_jax.Irreps([(CHANNELS, (l, (-1) ** l)) for l in range(max_degree + 1)])


def _features(max_degree: int, nodes: int = NODES) -> jax.Array:
    return _normal(0, nodes, 1, (max_degree + 1) ** 2, CHANNELS)


def _normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)
