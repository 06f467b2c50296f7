"""The best setting of each peer on one instance, and the race of it against ours: same clouds, same true error."""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from benchmarks import harness, peer_process, transport_instances

TOLERANCE = 1e-3
SLACK = 1.5  # a peer has met the tolerance up to this factor, as it checks one marginal only
_SLOW = 3.0  # seconds after which a try that is not the best yet gets no second run
_LONG = 30.0
_POT_LIMIT = 60.0


@dataclass(frozen=True)
class Contestant:
    """A solver under one setting, compiled and warm: what to call and the true error it reaches."""

    name: str
    call: Callable[[], Any]
    error: float

    @property
    def met(self) -> bool:
        """Whether it did what it was asked for."""
        return self.error <= SLACK * TOLERANCE

    def __str__(self) -> str:
        return f"{self.name} error {self.error:.1e}" + ("" if self.met else " NOT MET")


@dataclass(frozen=True)
class Instance:
    """One problem with uniform weights: ε, its ratio to the mean cost, clouds or a matrix, and the exact cost."""

    epsilon: float
    relative: float
    exact: transport_instances.Matrix
    x: Any = None
    y: Any = None
    C: Any = None

    @property
    def shape(self) -> tuple[int, int]:
        """How many points there are on each side."""
        return self.C.shape if self.C is not None else (len(self.x), len(self.y))

    def error(self, f: Any, g: Any) -> float:
        """True error of potentials in our convention."""
        f, g = (np.asarray(p, np.float64) for p in (f, g))
        return transport_instances.true_error(self.exact, f, g, self.epsilon)


def fastest(contestants: Iterable[tuple[Contestant, float]]) -> Contestant | None:
    """The fastest of those that met the tolerance, else the one with the smallest error."""
    tried = list(contestants)
    met = [pair for pair in tried if pair[0].met]
    if met:
        return min(met, key=lambda pair: pair[1])[0]
    return min(tried, key=lambda pair: np.nan_to_num(pair[0].error, nan=np.inf))[0] if tried else None


def ott(instance: Instance, limit: int = 4000) -> Contestant | None:
    """OTT-JAX at the best of its settings. Raises Missing."""
    harness.peer("ott")
    from benchmarks import peer_ott

    n, m = instance.shape
    epsilon = np.float32(instance.epsilon)
    shift = instance.epsilon * np.log([n, m])  # its plan is e^((f+g−C)/ε), without the weights
    arguments = (instance.x, instance.y) if instance.C is None else (instance.C,)
    solver = peer_ott.clouds if instance.C is None else peer_ott.matrix

    def tries():
        best = np.inf
        for setting in peer_ott.candidates(n, instance.relative):
            solve = jax.jit(solver(setting, instance.relative, TOLERANCE, limit))
            call = lambda solve=solve: solve(*arguments, epsilon)
            first, (f, g, steps) = _timed(call)
            error = instance.error(*(np.asarray(p, np.float64) + s for p, s in zip((f, g), shift, strict=True)))
            seconds = first if first > _SLOW + 2 * best else _timed(call)[0]
            contestant = Contestant(f"ott {setting} ({int(steps)} iterations)", call, error)
            best = min(best, seconds) if contestant.met else best
            yield contestant, seconds

    return fastest(tries())


def pot(peer: peer_process.Peer, instance: Instance) -> Contestant | None:
    """POT at the best of its settings, from the clouds as we are; None where it solves nothing in time."""
    n, m = instance.shape
    if instance.C is None:
        peer.give(x=instance.x, y=instance.y)
    else:
        peer.give(C=instance.C)
    threshold = 1.25 * TOLERANCE / np.sqrt(m)  # POT's is the Euclidean norm over one marginal; the other is exact

    def tries():
        for method, dtype in _pot_settings(n, instance.relative):
            settings = {"epsilon": instance.epsilon, "method": method, "dtype": dtype, "max_steps": 20_000}
            call = lambda settings=settings: peer.run("sinkhorn", _POT_LIMIT, threshold=threshold, **settings)
            try:
                seconds, _ = _timed(call)
            except TimeoutError:
                continue
            found = peer.result()
            contestant = Contestant(f"pot {method} {dtype}", call, instance.error(found["f"], found["g"]))
            yield contestant, seconds
            if contestant.met:
                return

    best = fastest(tries())
    return best if best is not None and best.met else None


def _pot_settings(n: int, relative: float) -> list[tuple[str, str]]:
    if relative >= 0.01:
        return [("sinkhorn", "float32"), ("sinkhorn", "float64")]
    return [("sinkhorn_stabilized", "float64")] if n <= 512 else []  # at 2048 no result in a minute


def race(contestants: Iterable[Contestant], rounds: int = 3) -> harness.Timings:
    """Times warm contestants once a round in rotating order, with no further warming: some take a minute."""
    calls = {contestant.name: contestant.call for contestant in contestants}
    return race_of(calls, rounds)


def race_of(calls: Mapping[str, Callable[[], Any]], rounds: int) -> harness.Timings:
    """The same for bare calls. No round begins after `_LONG` seconds."""
    seconds, order = {name: [] for name in calls}, list(calls)
    start = time.perf_counter()
    for turn in range(rounds):
        if turn > 0 and time.perf_counter() - start > _LONG:
            break
        shift = turn % len(order)
        for name in order[shift:] + order[:shift]:
            seconds[name].append(_timed(calls[name])[0])
    return harness.Timings(seconds)


def best(timings: harness.Timings, name: str) -> float:
    """Seconds of the best round."""
    return min(timings.seconds[name])


def load() -> str:
    """The machine's load now, which belongs beside every figure."""
    return f"load {os.getloadavg()[0]:.1f}"


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result
