"""What structure saves: images, whose cost is a sum over two axes, over OTT-JAX's grids; one-to-one maps of many.

Part of bench_ot. Errors of images are recomputed in float64, one axis at a time.
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from benchmarks import harness, peer_process, transport_instances, transport_rivals
from benchmarks.harness import Metric, Options
from benchmarks.transport_rivals import TOLERANCE, Contestant
from ot import costs, hierarchical, sinkhorn, wasserstein

_SHOWN_ONLY = float("inf")
_NOISE = 0.35


def images(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """Two images of size² pixels with random positive values, squared distances in the unit square."""
    for size, relative in ((64, 0.05), (64, 0.01), (256, 0.05), (256, 0.01)):
        if not options.wants(name := f"grid/{size}x{size} eps{relative:g}"):
            continue
        generator = np.random.default_rng(0)
        a, b = (w / w.sum() for w in (0.1 + generator.random((2, size, size)) ** 4).astype(np.float32))
        axis = np.linspace(0, 1, size, dtype=np.float32)
        cost = costs.grid([jnp.asarray(axis)] * 2)
        line = np.square(axis[:, None].astype(np.float64) - axis)
        mean = float(sum(a.sum(k) @ line @ b.sum(k) for k in (0, 1)))
        epsilon = float(np.float32(relative * mean))
        weights = [jnp.asarray(w.ravel()) for w in (a, b)]
        call = partial(sinkhorn.solve, None, None, *weights, cost=cost, epsilon=epsilon)
        solved = call()
        f, g = (np.asarray(p, np.float64) for p in (solved.f, solved.g))
        f, g = f + np.asarray(solved.f_low, np.float64), g + np.asarray(solved.g_low, np.float64)
        error = image_error(line, a, b, f, g, epsilon)
        yield Metric(f"{name}/error", error / TOLERANCE, "tol", "lower", 0.3, absolute=True, goal=1.0)
        ours = Contestant("haar", call, error)
        rival = _ott(relative, axis, line, a, b, epsilon)
        timings = transport_rivals.race([ours, *([] if rival is None else [rival])])
        seconds = transport_rivals.best(timings, "haar")
        note = f"{int(solved.steps)} steps; {transport_rivals.load()}"
        yield Metric(f"{name}/ms", seconds * 1e3, "ms", "lower", _SHOWN_ONLY, note=note)
        if rival is not None:
            theirs = transport_rivals.best(timings, rival.name)
            note = f"haar {seconds * 1e3:.4g} ms, {theirs * 1e3:.4g} ms {rival}; {transport_rivals.load()}"
            yield Metric(f"{name}/ott", theirs / seconds, "x", "higher", _NOISE, note=note)


def _ott(relative: float, axis: NDArray, line: NDArray, a: NDArray, b: NDArray, epsilon: float) -> Contestant | None:
    """OTT's grid at the best of its settings; None, and the reason printed, where it is not installed."""
    try:
        harness.peer("ott")
    except harness.Missing as reason:
        print(f"  not run: {reason}", flush=True)
        return None
    from benchmarks import peer_ott

    arguments = jnp.asarray(axis), jnp.asarray(a.ravel()), jnp.asarray(b.ravel()), np.float32(epsilon)

    def tries() -> Iterator[tuple[Contestant, float]]:
        for setting in peer_ott.candidates(a.size, relative):
            solve = jax.jit(peer_ott.grid(setting, relative, TOLERANCE, 4000))
            call = lambda solve=solve: solve(*arguments)
            f, g, steps = call()
            # its plan is e^((f+g−C)/ε), without the weights
            f, g = (np.asarray(p, np.float64) - epsilon * np.log(w.ravel()) for p, w in ((f, a), (g, b)))
            error = image_error(line, a, b, f, g, epsilon)
            contestant = Contestant(f"ott grid {setting} ({int(steps)} iterations)", call, error)
            yield contestant, transport_rivals.race([contestant], 1).median(contestant.name)

    return transport_rivals.fastest(tries())


def image_error(line: NDArray, a: NDArray, b: NDArray, f: Any, g: Any, epsilon: float) -> float:
    """Σ|P 1 − a| + Σ|P^T 1 − b| over Σ P for P = a b^T exp((f + g − C)/ε), in float64 by two products with one axis."""
    K = np.exp(-line / epsilon)
    p, q = (w.astype(np.float64) * np.exp(np.reshape(v, w.shape) / epsilon) for w, v in ((a, f), (b, g)))
    rows, columns = p * (K @ q @ K.T), q * (K.T @ p @ K)
    return float((np.abs(rows - a).sum() + np.abs(columns - b).sum()) / rows.sum())


def maps(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """One-to-one maps by recursion: seconds, and the excess over the exact optimum where that can be had."""
    for n in (4096, 65_536):
        if not options.wants(name := f"hierarchical/n{n} d3") or (options.quick and n > 4096):
            continue
        x, y = (jnp.asarray(points) for points in transport_instances.clouds(n, 3))
        hierarchical.solve(x, y)
        start = time.perf_counter()
        found = hierarchical.solve(x, y)
        seconds = time.perf_counter() - start
        permutation = np.asarray(found.permutation)
        note = f"{found.steps} sweeps; {transport_rivals.load()}"
        yield Metric(f"{name}/s", seconds, "s", "lower", _SHOWN_ONLY, note=note)
        whole = float(np.array_equal(np.sort(permutation), np.arange(n)))
        yield Metric(f"{name}/one to one", whole, "true", "higher", 0.0, goal=1.0)
        if n <= 4096:
            excess = float(found.value) / float(wasserstein.exact(x, y).value) - 1
            yield Metric(f"{name}/excess", excess * 100, "%", "lower", 0.3, goal=0.5)
