"""OTT-JAX's solvers as bench_ot calls them, each under the settings that have won somewhere. Imported where ott is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from ott.geometry import epsilon_scheduler, geometry, pointcloud  # type: ignore[import-not-found]
from ott.geometry import grid as ott_grid  # type: ignore[import-not-found]
from ott.solvers import linear  # type: ignore[import-not-found]
from ott.solvers.linear import acceleration  # type: ignore[import-not-found]
from ott.tools import sinkhorn_divergence  # type: ignore[import-not-found]


@dataclass(frozen=True)
class Setting:
    """decay: of ε per iteration, from the mean cost down; memory: of Anderson's acceleration; momentum: 1 for none."""

    decay: float = 1.0
    memory: int = 0
    momentum: float = 1.0

    def schedule(self, epsilon: Any, relative: float) -> Any:
        """ε by iteration. OTT's `init` is a multiple of the target: 1/relative starts at the mean cost."""
        return epsilon_scheduler.Epsilon(epsilon, init=1.0 if self.decay == 1 else 1 / relative, decay=self.decay)

    def options(self, tolerance: float, limit: int) -> Mapping[str, Any]:
        """What the solver is called with. It stops by one marginal; under momentum the other one is off as well."""
        threshold = tolerance if self.momentum == 1 else 0.8 * tolerance
        options: dict[str, Any] = {"threshold": threshold, "max_iterations": limit}
        if self.memory:
            options["anderson"] = acceleration.AndersonAcceleration(memory=self.memory)
        if self.momentum != 1:
            options["momentum"] = acceleration.Momentum(value=self.momentum)
        return options


SETTINGS = {
    "anderson 5": Setting(memory=5),
    "decay .9 + anderson 5": Setting(0.9, 5),
    "decay .97": Setting(0.97),
    "momentum 1.5": Setting(momentum=1.5),
    "decay .8 + momentum 1.8": Setting(0.8, momentum=1.8),
    "decay .9 + momentum 1.9": Setting(0.9, momentum=1.9),
}


def candidates(n: int, relative: float) -> tuple[str, ...]:
    """The settings that win or come close in a cell; from 8192 points on, where a try takes seconds, fewer of them.

    Of 24 tried at n = 512, momentum with a fast decay takes the fewest iterations for ε <= 0.01 (50 against 70 with
    Anderson's, 150 against 900 with a slow decay), plain momentum at 0.05 (20 against 30).
    """
    if relative >= 0.05:
        return "momentum 1.5", "anderson 5"
    if relative >= 0.01:
        return "decay .8 + momentum 1.8", "decay .9 + anderson 5"
    return ("decay .9 + momentum 1.9", *(("decay .9 + anderson 5", "decay .97") if n < 8192 else ()))


def clouds(setting: str, relative: float, tolerance: float, limit: int) -> Callable[..., Any]:
    """(x, y, ε) -> (f, g, iterations) for one problem of point clouds, not yet under jit."""
    chosen = SETTINGS[setting]

    def solve(x, y, epsilon):
        geom = pointcloud.PointCloud(x, y, epsilon=chosen.schedule(epsilon, relative))
        solved = linear.solve(geom, **chosen.options(tolerance, limit))
        return solved.f, solved.g, solved.n_iters

    return solve


def matrix(setting: str, relative: float, tolerance: float, limit: int) -> Callable[..., Any]:
    """(C, ε) -> (f, g, iterations) for a cost matrix that is there."""
    chosen = SETTINGS[setting]

    def solve(C, epsilon):
        geom = geometry.Geometry(cost_matrix=C, epsilon=chosen.schedule(epsilon, relative))
        solved = linear.solve(geom, **chosen.options(tolerance, limit))
        return solved.f, solved.g, solved.n_iters

    return solve


def grid(setting: str, relative: float, tolerance: float, limit: int) -> Callable[..., Any]:
    """(coordinates, a, b, ε) -> (f, g, iterations) for two images on one square grid."""
    chosen = SETTINGS[setting]

    def solve(axis, a, b, epsilon):
        geom = ott_grid.Grid(x=(axis, axis), epsilon=chosen.schedule(epsilon, relative))
        solved = linear.solve(geom, a, b, **chosen.options(tolerance, limit))
        return solved.f, solved.g, solved.n_iters

    return solve


def divergence(setting: str, tolerance: float, danskin: bool = False) -> Callable[..., jax.Array]:
    """(x, y, ε) -> Sinkhorn divergence, differentiated by the implicit function theorem unless `danskin`.

    The setting is that of the term between x and y; OTT has its own for the other two.
    """
    options = dict(SETTINGS[setting].options(tolerance, 2000), use_danskin=danskin)
    return lambda x, y, epsilon: sinkhorn_divergence.sinkdiv(x, y, epsilon=epsilon, solve_kwargs=options)[0]
