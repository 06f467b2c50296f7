"""One default solve in a fresh process: time of the first call and of the last, and the peak of memory.

`python -m benchmarks.transport_alone N RELATIVE CALLS` prints a line of JSON. jax's persistent cache is what the
environment says.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import transport_instances
from ot import sinkhorn

_VISITED = 2048  # rows and columns whose sums are recomputed, of more points


def run(n: int, relative: float, calls: int, cache: str | None = None) -> dict[str, Any]:
    """What `main` prints: seconds of the first and the best later call, seconds of processor of
    every call, peak bytes, true error, steps.

    `cache`: a folder for jax's persistent cache, which is off for None.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION_CACHE")}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = str(cache is not None)
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "benchmarks.transport_alone", str(n), str(relative), str(calls)]
    root = Path(__file__).parents[1]
    process = subprocess.run(command, cwd=root, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def compilations(n: int, relative: float) -> Iterator[tuple[str, float, Mapping[str, Any]]]:
    """(kind, goal in seconds, what `run` found), cold and with a cache that an earlier process filled."""
    yield "cold", 2.0, run(n, relative, calls=3)
    with tempfile.TemporaryDirectory() as cache:
        run(n, relative, calls=1, cache=cache)
        yield "cached", 0.3, run(n, relative, calls=3, cache=cache)


def main(n: int, relative: float, calls: int) -> None:
    """Solves `calls` times and prints what it saw."""
    x, y = transport_instances.clouds(n, 3)
    epsilon = float(np.float32(relative * transport_instances.mean_cost(x, y)))
    points = jnp.asarray(x), jnp.asarray(y)
    jax.block_until_ready(points[0] + 1)  # the backend is up: what follows is the solver's
    before = _peak()
    seconds, processor = [], []
    for _ in range(calls):
        start, begun = time.perf_counter(), time.process_time()
        solved = jax.block_until_ready(sinkhorn.solve(*points, epsilon=epsilon))
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - begun)
    peak = _peak() - before
    f, f_low, g, g_low = (np.asarray(p, np.float64) for p in (solved.f, solved.f_low, solved.g, solved.g_low))
    stride = max(1, n // _VISITED)
    error = transport_instances.true_error(
        transport_instances.squared_euclidean(x, y), f + f_low, g + g_low, epsilon, stride
    )
    found = {"first": seconds[0], "seconds": min(seconds[1:] or seconds), "processor": processor}
    found |= {"peak": peak, "error": error}
    print(json.dumps(found | {"steps": int(solved.steps), "converged": bool(solved.converged)}))


def _peak() -> int:
    """Bytes of resident memory at most so far; Linux's own count, as getrusage keeps the parent's from the fork."""
    status = Path("/proc/self/status")
    if status.exists() and "VmHWM" in (text := status.read_text()):
        return int(text.split("VmHWM:")[1].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
