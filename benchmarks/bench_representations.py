"""Representations against e3nn-jax and e3x: Wigner matrices and spherical harmonics, value, gradient and compile time.

1e4 rotations, 1e5 vectors, float32. Like is compared with like: matrices in and out, harmonics of vectors of any length
in component normalisation. The gradients are those of a sum of cubes (matrices) and of half the squares (harmonics).
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from benchmarks import harness
from lie import harmonics, so3, wigner

ROTATIONS, VECTORS = 10_000, 100_000


def measure(options: harness.Options) -> Iterator[harness.Metric]:
    """Ratios of time to the faster peer, then of compile time."""
    e3nn_jax = harness.peer("e3nn_jax")
    yield from _wigner(options, e3nn_jax)
    yield from _harmonics(options, e3nn_jax)


def _wigner(options: harness.Options, e3nn_jax) -> Iterator[harness.Metric]:
    R = so3.sample((ROTATIONS,), jnp.float32, key=jax.random.key(0))
    for degree in (6, 10):

        def ours(R, degree=degree):
            return wigner.d(R, degree)

        def theirs(R, degree=degree):
            return e3nn_jax.Irrep(degree, 1).D_from_matrix(R)

        yield from _compare(f"wigner_d_{degree}", ours, {"e3nn": theirs}, R, _cubes, options, goal=1.3)


def _harmonics(options: harness.Options, e3nn_jax) -> Iterator[harness.Metric]:
    x = jax.random.normal(jax.random.key(1), (VECTORS, 3), jnp.float32)
    try:
        e3x = harness.peer("e3x")
    except harness.Missing:
        e3x = None
    for max_degree in (4, 8, 12):
        irreps = e3nn_jax.Irreps.spherical_harmonics(max_degree)

        def ours(x, max_degree=max_degree):
            return harmonics.evaluate(x, max_degree)

        def theirs(x, irreps=irreps):
            return e3nn_jax.spherical_harmonics(irreps, x, True, "component").array

        yield from _compare(f"harmonics_{max_degree}", ours, {"e3nn": theirs}, x, _squares, options, goal=3.0)
        if e3x is not None:

            def others(x, max_degree=max_degree, e3x=e3x):
                unit = e3x.ops.normalize(x, axis=-1)
                return e3x.so3.spherical_harmonics(unit, max_degree, cartesian_order=False, normalization="orthonormal")

            yield from _compare(f"harmonics_{max_degree}_e3x", ours, {"e3x": others}, x, _squares, options)


def _compare(name, ours, theirs, x, loss, options, goal=None) -> Iterator[harness.Metric]:
    rounds = options.rounds(25)
    if options.wants(name):
        yield harness.versus(name, ours, theirs, (x,), (x,), rounds=rounds, goal=goal)
    if options.wants(f"{name}_grad"):
        gradients = {key: _gradient(call, loss) for key, call in theirs.items()}
        yield harness.versus(f"{name}_grad", _gradient(ours, loss), gradients, (x,), (x,), rounds=rounds, goal=goal)
    if options.wants(f"{name}_grad_compile"):
        calls = {"haar": (_gradient(ours, loss), (x,))}
        calls |= {key: (_gradient(call, loss), (x,)) for key, call in theirs.items()}
        timings = harness.compile_seconds(calls, rounds=3)
        rival = timings.fastest(theirs)
        note = f"haar {timings.median('haar'):.2f} s, {rival} {timings.median(rival):.2f} s"
        yield harness.Metric(f"{name}_grad_compile", timings.ratio(rival, "haar"), "x", "higher", 0.5, note=note)


def _gradient(function, loss):
    return jax.grad(lambda x: loss(function(x)))


def _cubes(y):
    return jnp.sum(y * y * y)


def _squares(y):
    return jnp.sum(y * y) / 2
