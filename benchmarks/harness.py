"""Fair measurement: ratios to a peer, interleaved in one process, so that other load on the machine cancels.

A rate in seconds depends on the machine and on its neighbours; the median of ratios of adjacent runs depends on neither
to first order. Compilation is timed from cold tracing caches, with no persistent cache.
"""

import importlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from types import ModuleType
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

Call = Callable[..., Any]


@dataclass(frozen=True)
class Metric:
    """One measured figure, and how much worse than its baseline it may become before the gate fails.

    `tolerance` is a fraction of the baseline, or in the metric's own unit if `absolute` (an error in eps has no scale
    at 0). `goal` is the value aimed at, shown but not gated; `note` carries the figures behind the value.
    """

    name: str
    value: float
    unit: str
    direction: Literal["higher", "lower"]
    tolerance: float
    absolute: bool = False
    goal: float | None = None
    note: str = ""

    def worsened(self, baseline: float) -> bool:
        """True if the value is worse than `baseline` by more than the tolerance; NaN is always worse."""
        allowed = self.tolerance if self.absolute else self.tolerance * abs(baseline)
        loss = baseline - self.value if self.direction == "higher" else self.value - baseline
        return not loss <= allowed

    def reaches_goal(self) -> bool:
        """True if there is no goal, or the value is at it or beyond."""
        return self.goal is None or (self.value >= self.goal if self.direction == "higher" else self.value <= self.goal)


@dataclass(frozen=True)
class Options:
    """What the caller asked for: `quick` takes fewer sizes and rounds, `only` keeps names that contain one of them."""

    quick: bool = False
    only: tuple[str, ...] = ()

    def wants(self, name: str) -> bool:
        """True if a metric of this name is to be measured."""
        return not self.only or any(part in name for part in self.only)

    def rounds(self, full: int) -> int:
        """`full` rounds, a fifth of them (but 5 at least) when quick."""
        return max(5, full // 5) if self.quick else full


class Missing(Exception):
    """What to compare with is not there: a library, or the truth tables."""


def peer(name: str) -> ModuleType:
    """The module `name`, imported only now; raises Missing that says what to install."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise Missing(f"{name} is not installed: pip install 'haar[benchmarks]'") from error


@dataclass(frozen=True)
class Timings:
    """Seconds per call of each contestant, round by round: entry i of every list was measured side by side."""

    seconds: Mapping[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Median seconds of one call."""
        return median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """Median over rounds of time(slow) / time(fast): how many times faster `fast` is."""
        return median(s / f for s, f in zip(self.seconds[slow], self.seconds[fast], strict=True))

    def fastest(self, names: Iterable[str]) -> str:
        """The name with the smallest median."""
        return min(names, key=self.median)


def interleave(
    calls: Mapping[str, Callable[[], Any]],
    rounds: int,
    shortest: float = 1e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Times every call once a round, `rounds` times, in an order that rotates so that none always runs first.

    A call faster than `shortest` seconds is repeated within its turn until the turn takes that long. Compiles first.
    `clock` time.perf_counter counts seconds on the wall, time.process_time those of all our threads.
    """
    repeats = {}
    for name, call in calls.items():
        for _ in range(3):  # compiles, then fills the allocator's and the processor's caches
            jax.block_until_ready(call())
        repeats[name] = max(1, math.ceil(shortest / max(_seconds(call, 3, clock), 1e-9)))
    seconds = {name: [] for name in calls}
    order = list(calls)
    for turn in range(rounds):
        shift = turn % len(order)
        for name in order[shift:] + order[:shift]:
            seconds[name].append(_seconds(calls[name], repeats[name], clock))
    return Timings(seconds)


def _seconds(call: Callable[[], Any], repeats: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(repeats):
        jax.block_until_ready(call())
    return (clock() - start) / repeats


def compile_seconds(calls: Mapping[str, tuple[Call, tuple[Any, ...]]], rounds: int = 5) -> Timings:
    """Seconds to trace, lower and compile each function for its arguments, from cold caches, interleaved."""
    seconds = {name: [] for name in calls}
    order = list(calls.items())
    with compiling_anew():
        for turn in range(rounds):
            shift = turn % len(order)
            for name, (function, arguments) in order[shift:] + order[:shift]:
                jax.clear_caches()
                start = time.perf_counter()
                jax.jit(_fresh(function)).lower(*arguments).compile()
                seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)


@contextmanager
def compiling_anew() -> Iterator[None]:
    """No executable is read from or written to a persistent cache inside."""
    enabled = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # jax looks at the flag once, until told to forget
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", enabled)
        compilation_cache.reset_cache()


def _fresh(function: Call) -> Call:
    return lambda *arguments: function(*arguments)  # a new object, so that nothing cached under the old one is found


def temporary_bytes(function: Call, *arguments: Any) -> int:
    """Bytes of scratch memory that XLA reserves for the compiled function, besides arguments and result."""
    analysis = jax.jit(_fresh(function)).lower(*arguments).compile().memory_analysis()
    if analysis is None:
        raise RuntimeError("this backend reports no memory analysis")
    return analysis.temp_size_in_bytes


def copy_rate(megabytes: int = 64, rounds: int = 9) -> float:
    """Bytes per second read plus written by a copy of one float32 array: what no memory-bound operation can beat."""
    source = jnp.ones(megabytes * 2**18, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * source.nbytes / interleave({"copy": lambda: copy(source)}, rounds).median("copy")


def forward_and_backward(function: Call) -> Call:
    """(value, gradients by all inputs) of function(*inputs) for a given cotangent, the first argument."""

    def both(cotangent, *inputs):
        value, pull_back = jax.vjp(function, *inputs)
        return value, pull_back(cotangent)

    return both


def versus(
    name: str,
    ours: Call,
    theirs: Mapping[str, Call],
    arguments: tuple[Any, ...],
    their_arguments: tuple[Any, ...],
    *,
    rounds: int,
    tolerance: float = 0.25,
    goal: float | None = None,
    unit: str = "x",
) -> Metric:
    """How many times faster `ours(*arguments)` is than the fastest of `theirs`, each under jit, interleaved.

    Where a peer can be called in several ways (vmap, broadcasting), pass all: the ratio is to its best.
    """
    compiled = {"haar": jax.jit(_fresh(ours)), **{key: jax.jit(_fresh(call)) for key, call in theirs.items()}}
    inputs = {key: arguments if key == "haar" else their_arguments for key in compiled}
    calls = {key: _bind(function, inputs[key]) for key, function in compiled.items()}
    if len(theirs) > 1:
        trial = interleave({key: calls[key] for key in theirs}, 3)
        calls = {"haar": calls["haar"], (best := trial.fastest(theirs)): calls[best]}
    timings = interleave(calls, rounds)
    rival = next(key for key in calls if key != "haar")
    note = f"haar {_duration(timings.median('haar'))}, {rival} {_duration(timings.median(rival))}"
    return Metric(name, timings.ratio(rival, "haar"), unit, "higher", tolerance, goal=goal, note=note)


def _bind(function: Call, arguments: tuple[Any, ...]) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _duration(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
