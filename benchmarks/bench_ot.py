"""`ot` against OTT-JAX, POT and SciPy: the default call against each peer's best setting, at the same true error.

Groups, each of which `--only` takes: entropic, geomloss, tight, batched, gradient, exact, line, grid, hierarchical,
large, compile. Ours and OTT run interleaved in this process, POT in its own (HAAR_POT_PYTHON is a Python with POT,
which shares the name `ot` and cannot live beside ours), GeomLoss under HAAR_GEOMLOSS_PYTHON. Ratios are of the best of
three rounds, the medians stand in the note. Every error is the L1 violation of both marginals recomputed in float64
from the potentials (ours: f + f_low and g + g_low), against a tolerance of 1e-3 unless said; a peer, which checks one
marginal, has met it up to 1.5e-3.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from benchmarks import harness, peer_process, transport_alone, transport_instances, transport_rivals
from benchmarks import transport_structured as structured
from benchmarks.harness import Metric, Options
from benchmarks.transport_rivals import TOLERANCE, Contestant, Instance
from lie import so3
from ot import costs, sinkhorn, wasserstein

_SHOWN_ONLY = float("inf")  # a figure in seconds belongs to one machine on one day: no gate holds on it
_NOISE = 0.35  # of a ratio of best rounds on a machine that does other work
_RELATIVE = (0.05, 0.01, 0.001)
_OVER_OTT = {512: (2.0, 4.0, 8.0), 2048: (3.5, 7.0, 5.0), 8192: (8.0, 8.0, None)}
_OVER_POT = 2.5


def measure(options: Options) -> Iterator[Metric]:
    """All groups; one whose peer is missing says so and the others go on."""
    print(f"  GEMM {gemm_rate() / 1e9:.0f} Gflop/s, {transport_rivals.load()}", flush=True)
    with contextlib.ExitStack() as stack:
        pot = _or_reason(lambda: stack.enter_context(peer_process.Peer("peer_pot.py", "HAAR_POT_PYTHON", "POT 0.9")))
        small = entropic, rotations, geomloss, batched, tight, gradient, exact, line
        for group in (*small, structured.images, structured.maps, large, compilation):
            try:
                yield from group(options, pot)
            except harness.Missing as reason:
                print(f"  {group.__name__}: not run: {reason}", flush=True)


def gemm_rate(n: int = 2048) -> float:
    """Float32 operations per second of a product of two n x n matrices."""
    A, product = jnp.ones((n, n), jnp.float32), jax.jit(lambda A: jnp.dot(A, A, precision="highest"))
    return 2 * n**3 / harness.interleave({"product": lambda: product(A)}, 5).median("product")


def _or_reason(make: Callable[[], Any]) -> Any:
    """The peer, or None after its reason is printed."""
    try:
        return make()
    except harness.Missing as reason:
        print(f"  not run: {reason}", flush=True)
        return None


def entropic(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """One problem of n x n points in d dimensions, over ε as a fraction of the mean cost."""
    sizes = [(512, 3), (2048, 3), (2048, 64)] + ([] if options.quick else [(8192, 3)])
    for n, d in sizes:
        x, y = transport_instances.clouds(n, d)
        for relative, goal in zip(_RELATIVE, _OVER_OTT[n], strict=True):
            name = f"entropic/n{n} d{d} eps{relative:g}"
            if not options.wants(name):
                continue
            epsilon = _single(relative * transport_instances.mean_cost(x, y))
            clouds = (jnp.asarray(x), jnp.asarray(y))
            instance = Instance(epsilon, relative, transport_instances.squared_euclidean(x, y), *clouds)
            ours = _ours(instance, lambda c=clouds, e=epsilon: sinkhorn.solve(*c, epsilon=e))
            yield from _against(name, instance, ours, pot, goal if d == 3 else None, n * relative == 8.192)


def rotations(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """SO(3) with the squared geodesic: the peers get the matrix of costs, ours the rotations, then the matrix too."""
    n = 2048
    R, S = (so3.sample((n,), jnp.float32, key=key) for key in jax.random.split(jax.random.key(0)))
    cost = costs.Geodesic(so3)
    with jax.enable_x64(True):
        C = np.asarray(cost(R.astype(jnp.float64), S.astype(jnp.float64)))
    matrix = jnp.asarray(C, jnp.float32)
    for title, goal, problem in (
        ("so3", 3.0, (R, S, cost)),
        ("so3 matrix", None, (None, None, costs.Precomputed(matrix))),
    ):
        for relative in _RELATIVE:
            name = f"entropic/{title} n{n} eps{relative:g}"
            if not options.wants(name):
                continue
            epsilon = _single(relative * float(C.mean()))
            instance = Instance(
                epsilon, relative, transport_instances.given(C if goal else np.asarray(matrix)), C=matrix
            )
            ours = _ours(instance, lambda p=problem, e=epsilon: sinkhorn.solve(p[0], p[1], cost=p[2], epsilon=e))
            yield from _against(name, instance, ours, pot if goal else None, goal, False)


def geomloss(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """GeomLoss has no tolerance: the ratio of times at the finest of its usual schedules, and the error that leaves."""
    if not any(options.wants(f"geomloss/n2048 d3 eps{relative:g}") for relative in (0.05, 0.01)):
        return
    x, y = transport_instances.clouds(n := 2048, 3)
    with peer_process.Peer("peer_geomloss.py", "HAAR_GEOMLOSS_PYTHON", "torch and geomloss") as peer:
        for relative in (0.05, 0.01):
            if not options.wants(name := f"geomloss/n{n} d3 eps{relative:g}"):
                continue
            epsilon = _single(relative * transport_instances.mean_cost(x, y))
            pairs, exact = (jnp.asarray(x), jnp.asarray(y)), transport_instances.squared_euclidean(x, y)
            instance = Instance(epsilon, relative, exact, *pairs)
            ours = _ours(instance, _bound(partial(sinkhorn.solve, epsilon=epsilon), *pairs))
            peer.give(x=x, y=y)
            call = _bound(partial(peer.run, epsilon=epsilon, scaling=0.97), "sinkhorn")
            call()
            found = peer.result()
            theirs = Contestant("geomloss scaling .97", call, instance.error(found["f"], found["g"]))
            timings = transport_rivals.race([ours, theirs])
            yield _ratio(name, timings, theirs.name, None, f"{ours.error:.1e}", str(theirs))


def _ours(instance: Instance, call: Callable[[], sinkhorn.Potentials]) -> Contestant:
    solved = call()
    jax.block_until_ready(call())
    return Contestant("haar", call, instance.error(*_potentials(solved)))


def _potentials(solved: sinkhorn.Potentials) -> tuple[np.ndarray, np.ndarray]:
    f, f_low, g, g_low = (np.asarray(p, np.float64) for p in (solved.f, solved.f_low, solved.g, solved.g_low))
    return f + f_low, g + g_low


def _against(
    name: str,
    instance: Instance,
    ours: Contestant,
    pot: peer_process.Peer | None,
    goal: float | None,
    timed: bool,
) -> Iterator[Metric]:
    """Our true error, and the ratio of times to each peer that is there; `timed`: our milliseconds first."""
    yield Metric(f"{name}/error", ours.error / TOLERANCE, "tol", "lower", 0.3, absolute=True, goal=1.0)
    if timed:
        ms = transport_rivals.best(transport_rivals.race([ours]), "haar") * 1e3
        yield Metric(f"{name}/ms", ms, "ms", "lower", _SHOWN_ONLY, goal=2500.0, note=_load())
    theirs = {
        "ott": _or_reason(lambda: transport_rivals.ott(instance)),
        "pot": None if pot is None else transport_rivals.pot(pot, instance),
    }
    rivals = {peer: rival for peer, rival in theirs.items() if rival is not None}
    timings = transport_rivals.race([ours, *rivals.values()])
    for peer, rival in rivals.items():
        aim = goal if peer == "ott" else _OVER_POT
        yield _ratio(f"{name}/{peer}", timings, rival.name, aim, f"{ours.error:.1e}", str(rival))


def _ratio(
    name: str, timings: harness.Timings, rival: str, goal: float | None, our_error: str = "", said: str | None = None
) -> Metric:
    """theirs over ours, of the best rounds."""
    ours, theirs = (transport_rivals.best(timings, side) for side in ("haar", rival))
    note = (
        f"haar {ours * 1e3:.4g} ms{' error ' * bool(our_error)}{our_error}, {theirs * 1e3:.4g} ms {said or rival}; "
        f"medians {timings.ratio(rival, 'haar'):.3g}; {_load()}"
    )
    return Metric(name, theirs / ours, "x", "higher", _NOISE, goal=goal, note=note)


def _single(epsilon: float) -> float:
    """ε as float32 solvers get it: its rounding alone would show in an error of 1e-6."""
    return float(np.float32(epsilon))


def _load() -> str:
    return transport_rivals.load()


def batched(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """256 problems of 64 x 64 points in 8 dimensions: over OTT's vmap, and over SciPy's exact assignments in a loop."""
    x, y = transport_instances.clouds(64, 8, batch=(256,))
    mean = transport_instances.mean_cost(x, y)
    pairs = (jnp.asarray(x), jnp.asarray(y))

    def assignments():
        for p, q in zip(x, y, strict=True):
            linear_sum_assignment(cdist(p, q, "sqeuclidean"))

    def worst(f, g, epsilon, shift=0.0):
        f, g = (np.asarray(p, np.float64) + shift for p in (f, g))
        exact = (transport_instances.squared_euclidean(p, q) for p, q in zip(x, y, strict=True))
        return max(transport_instances.true_error(C, p, q, epsilon) for C, p, q in zip(exact, f, g, strict=True))

    for relative in (0.05, 0.01):
        name = f"batched/256x64x64 d8 eps{relative:g}"
        if not options.wants(name):
            continue
        epsilon = _single(relative * mean)
        call = lambda e=epsilon: sinkhorn.solve(*pairs, epsilon=e)
        solved = call()
        ours = Contestant("haar", call, worst(*_potentials(solved), epsilon))
        yield Metric(f"{name}/error", ours.error / TOLERANCE, "tol", "lower", 0.3, absolute=True, goal=1.0)

        def best_of_ott(relative=relative, epsilon=epsilon):
            harness.peer("ott")
            from benchmarks import peer_ott

            def tries():
                for setting in peer_ott.candidates(64, relative):
                    over = jax.vmap(peer_ott.clouds(setting, relative, TOLERANCE, 4000), (0, 0, None))
                    solve = jax.jit(over)
                    call = lambda solve=solve: solve(*pairs, np.float32(epsilon))
                    f, g, steps = call()
                    error = worst(f, g, epsilon, epsilon * np.log(64))
                    contestant = Contestant(f"ott vmap {setting} ({int(steps.max())} iterations)", call, error)
                    yield contestant, transport_rivals.race([contestant], 1).median(contestant.name)

            return transport_rivals.fastest(tries())

        ott = _or_reason(best_of_ott)
        loop = Contestant("scipy loop", assignments, 0.0)
        timings = transport_rivals.race([ours, loop, *([] if ott is None else [ott])])
        ms = transport_rivals.best(timings, "haar") * 1e3
        yield Metric(f"{name}/ms", ms, "ms", "lower", _SHOWN_ONLY, goal=60.0 if relative == 0.01 else None)
        yield _ratio(f"{name}/scipy", timings, "scipy loop", None, f"{ours.error:.1e}")
        if ott is not None:
            aim = 10.0 if relative == 0.05 else None
            yield _ratio(f"{name}/ott", timings, ott.name, aim, f"{ours.error:.1e}", str(ott))


def tight(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """True error 1e-6 from float32 clouds, in units of 1e-6."""
    for n, d in ((512, 3), (512, 64), (2048, 3), (2048, 64)):
        x, y = transport_instances.clouds(n, d)
        exact = transport_instances.squared_euclidean(x, y)
        for relative in _RELATIVE:
            if not options.wants(name := f"tight/n{n} d{d} eps{relative:g}"):
                continue
            epsilon = _single(relative * transport_instances.mean_cost(x, y))
            pairs = jnp.asarray(x), jnp.asarray(y)
            call = lambda p=pairs, e=epsilon: sinkhorn.solve(*p, epsilon=e, tolerance=1e-6)
            solved = call()
            error = transport_instances.true_error(exact, *_potentials(solved), epsilon)
            seconds = transport_rivals.best(transport_rivals.race_of({"haar": call}, 1 if options.quick else 3), "haar")
            note = f"{seconds * 1e3:.4g} ms, {int(solved.steps)} steps, converged {bool(solved.converged)}; {_load()}"
            yield Metric(name, error / 1e-6, "1e-6", "lower", 0.3, absolute=True, goal=1.0, note=note)


def gradient(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """The divergence's gradient over OTT's implicit one, and Hessian-vector products in both modes."""

    def ours(x, y, epsilon):
        return wasserstein.sinkhorn_divergence(x, y, epsilon=epsilon).value

    yield from _divergence_gradient(options, ours)
    yield from _hessian_products(options, ours)


def _divergence_gradient(options: Options, ours: Callable[..., Any]) -> Iterator[Metric]:
    n, relative = 2048, 0.05
    if not options.wants(name := f"gradient/divergence n{n} d3 eps{relative:g}"):
        return
    x, y = transport_instances.clouds(n, 3)
    epsilon = _single(relative * transport_instances.mean_cost(x, y))
    reference = transport_instances.divergence_gradient(x.astype(np.float64), y.astype(np.float64), epsilon)
    relative_error = lambda found: float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
    pairs = (jnp.asarray(x), jnp.asarray(y), jnp.float32(epsilon))
    calls = {"haar": _bound(jax.jit(jax.grad(ours)), *pairs)}

    def theirs():
        harness.peer("ott")
        from benchmarks import peer_ott

        of = lambda *options: jax.jit(jax.grad(peer_ott.divergence(*options)))
        implicit, danskin = (of("momentum 1.5", TOLERANCE, by_danskin) for by_danskin in (False, True))
        return {
            "ott implicit float32": _bound(implicit, *pairs),
            "ott implicit float64": _in_doubles(implicit, x, y, epsilon),
            "ott danskin float32": _bound(danskin, *pairs),
        }

    calls |= _or_reason(theirs) or {}
    errors = {}
    for side, call in list(calls.items()):
        try:
            errors[side] = relative_error(np.asarray(call(), np.float64))
        except jax.errors.JaxRuntimeError:  # its linear solver raises where it meets a NaN
            print(f"  {name}: {side} fails", flush=True)
            del calls[side]
    timings = transport_rivals.race_of(calls, 3)
    yield Metric(f"{name}/error", errors["haar"] / 1e-4, "1e-4", "lower", 0.3, absolute=True, goal=1.0)
    for rival in calls:
        if rival != "haar":
            goal = 6.0 if "implicit" in rival else None
            said = f"{rival} error {errors[rival]:.1e}"
            yield _ratio(f"{name}/{rival}", timings, rival, goal, f"{errors['haar']:.1e}", said)


def _hessian_products(options: Options, ours: Callable[..., Any]) -> Iterator[Metric]:
    n, relative = 256, 0.05
    x, y = transport_instances.clouds(n, 3)
    epsilon = _single(relative * transport_instances.mean_cost(x, y))
    v = np.random.default_rng(1).normal(size=x.shape)
    if not options.wants(name := f"gradient/hvp n{n} d3 eps{relative:g}"):
        return
    reference = transport_instances.divergence_hessian_product(x.astype(np.float64), y.astype(np.float64), epsilon, v)
    pairs, direction = (jnp.asarray(x), jnp.asarray(y), jnp.float32(epsilon)), jnp.asarray(v, jnp.float32)

    def forward_over_reverse(value):
        return lambda x, y, e: jax.jvp(lambda x: jax.grad(value)(x, y, e), (x,), (direction,))[1]

    def reverse_over_reverse(value):
        return lambda x, y, e: jax.grad(lambda x: jnp.sum(jax.grad(value)(x, y, e) * direction))(x)

    for mode in (forward_over_reverse, reverse_over_reverse):
        call = _bound(jax.jit(mode(ours)), *pairs)
        found = np.asarray(call(), np.float64)
        error = float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
        seconds = transport_rivals.best(transport_rivals.race_of({"haar": call}, 3), "haar")
        title = mode.__name__.replace("_", " ")
        note = f"{seconds * 1e3:.4g} ms; {_load()}"
        yield Metric(f"{name}/{title}", error / 1e-3, "1e-3", "lower", 0.3, absolute=True, goal=1.0, note=note)


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _in_doubles(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    def call():
        with jax.enable_x64(True):
            return function(*(jnp.asarray(argument, jnp.float64) for argument in arguments))

    return call


def exact(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """Unregularised distance between clouds of equal size: our gap, and times over POT's simplex (SciPy's at 1024)."""
    for n, d, goal in ((1024, 3, 120.0), (1024, 64, 120.0), (4096, 3, 3000.0), (4096, 64, 3000.0)):
        if not options.wants(name := f"exact/n{n} d{d}") or (options.quick and n > 1024):
            continue
        x, y = transport_instances.clouds(n, d)
        pairs = jnp.asarray(x), jnp.asarray(y)
        calls: dict[str, Callable[[], Any]] = {"haar": _bound(wasserstein.exact, *pairs)}
        values: dict[str, float] = {}
        solved = calls["haar"]()

        def scipy(x=x, y=y):
            C = cdist(x, y, "sqeuclidean")
            return C[linear_sum_assignment(C)].mean()

        if pot is not None:
            pot.give(x=x.astype(np.float64), y=y.astype(np.float64))
            calls["pot emd2"] = lambda: pot.run("emd", 120.0)
            calls["pot emd2"]()
            values["pot emd2"] = float(pot.result()["value"])
        if n <= 1024 or pot is None:
            calls["scipy"] = scipy
            values["scipy"] = float(scipy())
        off = max(abs(float(solved.value) / value - 1) for value in values.values())
        timings = transport_rivals.race_of(calls, 3)
        yield Metric(f"{name}/value", off / 1e-6, "1e-6", "lower", 0.3, absolute=True, goal=1.0)
        yield Metric(f"{name}/gap", float(solved.gap) / 1e-6, "1e-6", "lower", 0.3, absolute=True, goal=1.0)
        ms = transport_rivals.best(timings, "haar") * 1e3
        yield Metric(f"{name}/ms", ms, "ms", "lower", _SHOWN_ONLY, goal=goal, note=_load())
        for rival in calls:
            if rival != "haar":
                yield _ratio(f"{name}/{rival}", timings, rival, 1.0)


def line(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """One dimension and slices of 64, outside jit: over POT's two solvers of a line and its sliced distance."""
    if pot is None:
        return
    if options.wants(name := "line/n100000"):
        x, y = (points[:, 0] for points in transport_instances.clouds(100_000, 1))
        pot.give(x=x, y=y)
        ours = _bound(wasserstein.one_dimensional, jnp.asarray(x), jnp.asarray(y))
        yield from _over_pot(name, pot, ours, ("line_emd", "line_quantiles"), 1e-5)
    if options.wants(name := "line/sliced n8192 d64 k128"):
        x, y = transport_instances.clouds(8192, 64)
        directions = np.random.default_rng(1).normal(size=(64, 128)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        pot.give(x=x, y=y, directions=directions)
        pairs, given = (jnp.asarray(x), jnp.asarray(y)), jnp.asarray(directions.T)
        ours = lambda: wasserstein.sliced(*pairs, p=2, directions=given)
        yield from _over_pot(name, pot, ours, ("sliced",), 1e-5)


def _over_pot(
    name: str, pot: peer_process.Peer, ours: Callable[[], Any], tasks: tuple[str, ...], accuracy: float
) -> Iterator[Metric]:
    calls = {"haar": ours, **{task: (lambda task=task: pot.run(task)) for task in tasks}}
    calls[tasks[0]]()
    value = float(pot.result()["value"])
    off = abs(float(ours()) / value - 1)
    yield Metric(f"{name}/value", off / accuracy, f"{accuracy:.0e}", "lower", 0.3, absolute=True, goal=1.0)
    timings = transport_rivals.race_of(calls, 7)
    for task in tasks:
        yield _ratio(f"{name}/pot {task}", timings, task, 1.0)


def large(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """Clouds whose kernel is never stored, each in a fresh process: seconds, and peak memory beyond the imports."""
    for n, seconds, megabytes in ((32_768, 4.0, 450.0), (100_000, 60.0, 1000.0)):
        if not options.wants(name := f"large/n{n} d3 eps0.05") or options.quick:
            continue
        found = transport_alone.run(n, 0.05, calls=2 if n < 100_000 else 1)
        times = f"first call {found['first']:.3g} s; processor {found['processor'][-1]:.3g} s"
        note = f"{times}; {found['steps']} steps, error {found['error']:.1e}; {_load()}"
        yield Metric(f"{name}/s", found["seconds"], "s", "lower", _SHOWN_ONLY, goal=seconds, note=note)
        yield Metric(f"{name}/MB", found["peak"] / 1e6, "MB", "lower", 0.25, goal=megabytes)
        yield Metric(f"{name}/error", found["error"] / TOLERANCE, "tol", "lower", 0.3, absolute=True, goal=1.0)


def compilation(options: Options, pot: peer_process.Peer | None) -> Iterator[Metric]:
    """First call minus the second in a fresh process, after one operation: cold, and with jax's persistent cache."""
    for n in (512, 2048):
        if not options.wants(name := f"compile/n{n} d3 eps0.05"):
            continue
        for kind, goal, found in transport_alone.compilations(n, 0.05):
            times = f"first {found['first']:.3g} s, then {found['seconds']:.3g} s"
            note = f"{times}; processor {found['processor'][0]:.3g} s; {_load()}"
            yield Metric(f"{name}/{kind}", found["first"] - found["seconds"], "s", "lower", 0.5, goal=goal, note=note)
