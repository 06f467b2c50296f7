"""How haar's figures look: legible at column width, colour-blind safe, the same on every machine; in R^3 as well."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from cycler import cycler

from experiments.engine import files

if TYPE_CHECKING:  # matplotlib waits for the first figure: a warm start took 5.4 s with it, 4.7 s without
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d.axes3d import Axes3D

# Okabe and Ito's palette: distinct under the common colour deficiencies and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PUBLISHED = "#666666"

_SETTINGS: Any = {
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.size": 9,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
    "svg.hashsalt": "haar",
}


def figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def drawn(draw: Callable[[Any], "Figure"], metrics: Any) -> "Figure":
    """`draw(metrics)` in haar's style."""
    import matplotlib

    with matplotlib.rc_context(_SETTINGS):
        return draw(metrics)


def render(draw: Callable[[Any], "Figure"], metrics: Any, folder: Path, name: str) -> list[Path]:
    """Draws `draw(metrics)` in haar's style into `folder` as `name`.pdf and `name`.png; returns the paths."""
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(_SETTINGS):
        figure = draw(metrics)
        for ending, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, metadata=metadata)
            paths.append(folder / f"{name}.{ending}")
            files.write_bytes(paths[-1], buffer.getvalue())
    return paths


def space(figure: "Figure", *position: int, elevation: float = 20.0, azimuth: float = 35.0) -> "Axes3D":
    """Axes for what lies in R^3, at `position` as in add_subplot: no box, so that only the things are seen."""
    axes = figure.add_subplot(*(position or (1, 1, 1)), projection="3d", elev=elevation, azim=azimuth)
    axes.set_proj_type("ortho")
    axes.set_axis_off()
    return axes


def equal(axes: "Axes3D", *things: np.ndarray) -> None:
    """Shows all of `things`, arrays (..., 3), with one scale on the three axes: a ball looks like a ball."""
    x = np.concatenate([np.reshape(thing, (-1, 3)) for thing in things])
    low, high = np.nanmin(x, axis=0), np.nanmax(x, axis=0)
    half = 0.5 * float((high - low).max()) or 1.0  # one point has no size: any scale shows it
    for limits, middle in zip((axes.set_xlim, axes.set_ylim, axes.set_zlim), (low + high) / 2, strict=True):
        limits(middle - half, middle + half)
    axes.set_box_aspect((1, 1, 1), zoom=1.35)  # type: ignore[arg-type]


def sphere(axes: "Axes3D", centre: Sequence[float] = (0, 0, 0), radius: float = 1.0) -> None:
    """A sphere as its meridians and parallels, thin enough for what lies on it to be seen."""
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    turn = np.linspace(0, 2 * np.pi, 73)
    lines = [np.stack([np.cos(turn) * np.cos(a), np.cos(turn) * np.sin(a), np.sin(turn)], -1) for a in _every(30, 180)]
    for b in _every(30, 180)[1:]:
        ring = np.full_like(turn, np.cos(b))
        lines.append(np.stack([np.sin(b) * np.cos(turn), np.sin(b) * np.sin(turn), ring], -1))
    lines = [np.asarray(centre) + radius * line for line in lines]
    axes.add_collection3d(Line3DCollection(lines, colors="#999999", linewidths=0.4, alpha=0.6))


def points(axes: "Axes3D", x: np.ndarray, colour: Any = COLOURS[0], size: float = 6.0, **more: Any) -> None:
    """A cloud x (n, 3), faded with its distance; `colour` may be one for each point, or numbers with `cmap`."""
    axes.scatter(*np.moveaxis(np.asarray(x), -1, 0), c=colour, s=size, linewidths=0, **more)  # type: ignore[arg-type]


def frames(axes: "Axes3D", R: np.ndarray, position: np.ndarray | None = None, length: float = 1.0) -> None:
    """Rotations R (n, 3, 3) as their three axes, the columns: x orange, y green, z blue, from `position` (n, 3)."""
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    R = np.asarray(R).reshape(-1, 3, 3)
    start = np.zeros((len(R), 3)) if position is None else np.asarray(position).reshape(-1, 3)
    for column, colour in enumerate((COLOURS[1], COLOURS[2], COLOURS[0])):
        lines = np.stack([start, start + length * R[:, :, column]], axis=1)
        axes.add_collection3d(Line3DCollection(lines, colors=colour, linewidths=1.2))


def _every(degrees: int, end: int) -> np.ndarray:
    return np.deg2rad(np.arange(0, end, degrees))
