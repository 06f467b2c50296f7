"""A training step of NequIP and MACE: energies, forces, gradient of their loss, Adam; against e3nn-jax and mace-torch.

8 molecules of 20 atoms, every pair an edge (3040), 64 channels, degree 2, 2 layers, float32. NequIP's rival is the same
network of e3nn-jax's layers, and the ratio is of processor time, all threads counted. MACE's (correlation 3) is
mace-torch on one thread, in its own environment: HAAR_MACE_PYTHON; the ratio is of wall time, and our processor time
stands beside it. Weights are each library's own, so the outputs are not compared.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks import harness, peer_nequip
from benchmarks.peer_process import Peer
from equivariant import graph as graphs
from equivariant import mace, nequip, potential

MOLECULES, ATOMS, CHANNELS, DEGREE, LAYERS, SPECIES, CUTOFF = 8, 20, 64, 2, 2, 4, 8.0
NEIGHBORS, CORRELATION = float(ATOMS - 1), 3


def measure(options: harness.Options) -> Iterator[harness.Metric]:
    """Ratios of the step's time; seconds of compilation; XLA's temporaries."""
    graph, data = _molecules()
    shared = {"channels": CHANNELS, "max_degree": DEGREE, "layers": LAYERS, "cutoff": CUTOFF, "neighbors": NEIGHBORS}
    if options.wants("nequip"):
        network = nequip.NequIP(SPECIES, parities=1, **shared, rngs=nnx.Rngs(0))
        yield from _nequip(options, *_ours(network, graph, data), graph, data)
    if options.wants("mace"):
        own = {"degree_filter": DEGREE, "correlation": CORRELATION}
        network = mace.MACE(SPECIES, **own, **shared, rngs=nnx.Rngs(0))
        yield from _mace(options, *_ours(network, graph, data), data, shared)


def _molecules() -> tuple[graphs.Graph, dict[str, jax.Array]]:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0, 4, (MOLECULES, ATOMS, 3)), jnp.float32)
    pairs = jax.vmap(lambda x: graphs.radius_graph(x, CUTOFF, max_edges=ATOMS * (ATOMS - 1)))(x)
    graph = graphs.batch(pairs)
    x = x.reshape(-1, 3)
    species = jnp.asarray(rng.integers(0, SPECIES, len(x)), jnp.int32)
    forces = jnp.asarray(rng.normal(size=x.shape), jnp.float32)
    return graph, {"positions": x, "species": species, "forces": forces}


def _stepper(energy: Callable[..., Any], parameters: Any, graph: graphs.Graph, data: dict[str, jax.Array]):
    """(step, its arguments): energy(parameters, vectors) gives those of the molecules, or of all together."""
    optimizer = optax.adam(1e-3)

    def step(parameters, moments, positions, forces):
        def loss(parameters):
            out = potential.forces(lambda vectors: energy(parameters, vectors), positions, graph)
            return jnp.mean(out.energy**2) + jnp.mean((out.forces - forces) ** 2)

        value, gradient = jax.value_and_grad(loss)(parameters)
        updates, moments = optimizer.update(gradient, moments)
        return value, optax.apply_updates(parameters, updates), moments

    return step, (parameters, optimizer.init(parameters), data["positions"], data["forces"])


def _ours(network: nnx.Module, graph: graphs.Graph, data: dict[str, jax.Array]):
    structure, parameters = nnx.split(network)
    energy = lambda parameters, vectors: nnx.merge(structure, parameters)(graph, vectors, data["species"])
    return _stepper(energy, parameters, graph, data)


def _nequip(options, step, arguments, graph, data) -> Iterator[harness.Metric]:
    init, apply = peer_nequip.build(CHANNELS, DEGREE, LAYERS, SPECIES, CUTOFF, NEIGHBORS)
    rest = data["species"], graph.senders, graph.receivers
    parameters = init(jax.random.key(0), graphs.vectors(graph, data["positions"]), *rest)
    molecule = graph.structure

    def energy(parameters, vectors):
        return jax.ops.segment_sum(apply(parameters, vectors, *rest), molecule, MOLECULES)

    their_step, their_arguments = _stepper(energy, parameters, graph, data)
    calls = {"haar": (step, arguments), "e3nn": (their_step, their_arguments)}
    yield from _compiled(options, "nequip", calls)
    timings = _interleaved(options, calls, time.process_time)
    yield _ratio("nequip_cpu", timings, "e3nn", 2.0, 0.25)


def _mace(options, step, arguments, data, shared) -> Iterator[harness.Metric]:
    calls = {"haar": (step, arguments)}
    yield from _compiled(options, "mace", calls)
    settings = {**shared, "correlation": CORRELATION, "species": SPECIES}
    senders, receivers = (a.ravel() for a in np.nonzero(~np.eye(ATOMS, dtype=bool)))
    shift = ATOMS * np.repeat(np.arange(MOLECULES), len(senders))
    edges = {"senders": np.tile(senders, MOLECULES) + shift, "receivers": np.tile(receivers, MOLECULES) + shift}
    with Peer("peer_mace.py", "HAAR_MACE_PYTHON", "mace-torch") as torch:
        torch.give(**data, **edges, structure=np.repeat(np.arange(MOLECULES), ATOMS))
        theirs = lambda: torch.run("step", 300.0, **settings)
        compiled = jax.jit(step)
        ours = lambda: compiled(*arguments)
        timings = harness.interleave({"haar": ours, "mace-torch": theirs}, options.rounds(15))
        cpu = harness.interleave({"haar": ours}, options.rounds(15), clock=time.process_time)
    yield _ratio("mace", timings, "mace-torch", 3.0, 0.25, f"; {cpu.median('haar') * 1e3:.0f} ms of processor time")


def _compiled(options, name, calls) -> Iterator[harness.Metric]:
    for library, seconds in harness.compile_seconds(calls, 1 if options.quick else 2).seconds.items():
        limit = 20.0 if (name, library) == ("mace", "haar") else None
        yield harness.Metric(f"{name}_compile_{library}", min(seconds), "s", "lower", 0.5, goal=limit)
    for library, (function, inputs) in calls.items():
        megabytes = harness.temporary_bytes(function, *inputs) / 1e6
        yield harness.Metric(f"{name}_scratch_{library}", megabytes, "MB", "lower", 0.25)


def _interleaved(options, calls, clock) -> harness.Timings:
    compiled = {library: jax.jit(function) for library, (function, _) in calls.items()}
    runs = {library: (lambda f=compiled[library], a=inputs: f(*a)) for library, (_, inputs) in calls.items()}
    return harness.interleave(runs, options.rounds(15), clock=clock)


def _ratio(name, timings, rival, goal, tolerance, more="") -> harness.Metric:
    note = f"haar {timings.median('haar') * 1e3:.0f} ms, {rival} {timings.median(rival) * 1e3:.0f} ms{more}"
    return harness.Metric(name, timings.ratio(rival, "haar"), "x", "higher", tolerance, goal=goal, note=note)
