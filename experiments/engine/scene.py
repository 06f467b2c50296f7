"""What a figure holds in R^3, to turn and zoom in a browser: the points and lines of its panels. Needs viser."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import tyro

from experiments.engine import exits, experiment, record, style

_APART = 2.5  # between the middles of two panels, whose largest side is 2


@dataclasses.dataclass(frozen=True)
class _Options:
    """Serves the figure of a run, what it holds in R^3, until Ctrl-C; needs haar[scene]."""

    folder: tyro.conf.Positional[Path]
    """A run folder."""
    host: str = "127.0.0.1"
    """Who may look: this machine alone, or 0.0.0.0 for everybody who reaches it."""
    port: int = 8080
    """Where; the next free one if it is taken."""


class Panel(NamedTuple):
    """A panel of a figure, scaled to a cube of side 2: points and segments with their colours, red, green, blue."""

    title: str
    points: list[tuple[np.ndarray, np.ndarray, float]]
    """(n, 3) places, (n, 3) colours, diameter; one for each cloud."""
    lines: list[tuple[np.ndarray, np.ndarray]]
    """(n, 2, 3) ends of segments, (n, 2, 3) colours; one for each bundle of lines."""


def command(arguments: list[str]) -> None:
    """`python -m experiments scene FOLDER`."""
    asked = tyro.cli(_Options, args=arguments, prog="python -m experiments scene")
    name = record.asked(asked.folder)["experiment"]
    found = panels(style.drawn(experiment.load(name).module.figure, record.metrics(asked.folder)))
    if not found:
        raise exits.Refused(f"the figure of {name} is flat: its pictures are in {asked.folder / 'figures'}")
    server = library().ViserServer(host=asked.host, port=asked.port, label=f"haar: {name}", verbose=False)
    server.initial_camera.position = (0.4 * len(found), -2.4 - len(found), 1.6)
    fill(server.scene, found)
    print(f"{name}: http://{asked.host}:{server.get_port()} until Ctrl-C", flush=True)
    try:
        server.sleep_forever()
    except KeyboardInterrupt:
        server.stop()


def library() -> ModuleType:
    """viser; Refused, with what to do, where it is not installed."""
    try:
        import viser  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise exits.Refused("scene needs viser: pip install 'haar[scene]'") from error
    return viser


def panels(figure: "style.Figure") -> list[Panel]:
    """The panels of `figure` that lie in R^3, with the clouds and lines that are seen in them."""
    from mpl_toolkits.mplot3d.axes3d import Axes3D

    return [_panel(axes) for axes in figure.axes if isinstance(axes, Axes3D)]


def fill(scene: Any, found: Sequence[Panel]) -> None:
    """Puts the panels side by side into viser's `scene`, z up, each above its title."""
    scene.set_up_direction("+z")
    for k, panel in enumerate(found):
        place = (_APART * (k - (len(found) - 1) / 2), 0.0, 0.0)
        for i, (x, colours, size) in enumerate(panel.points):
            scene.add_point_cloud(
                f"/panel {k + 1}/points{i}",
                x,
                colours,
                point_size=size,
                point_shape="circle",
                precision="float32",
                position=place,
            )
        for i, (ends, colours) in enumerate(panel.lines):
            scene.add_line_segments(
                f"/panel {k + 1}/lines{i}", ends, colours, thickness=1.2, thickness_units="screen", position=place
            )
        if panel.title:
            scene.add_label(f"/panel {k + 1}/title", panel.title, position=(place[0], 0.0, -1.2), anchor="top-center")


def _panel(axes: Any) -> Panel:
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba_array
    from mpl_toolkits.mplot3d.art3d import Line3DCollection, Path3DCollection

    low, high = np.array([axes.get_xlim3d(), axes.get_ylim3d(), axes.get_zlim3d()]).T
    scaled = lambda x: ((x - (low + high) / 2) * 2 / np.max(high - low)).astype(np.float32)
    panel = Panel(axes.get_title(), [], [])
    for artist in axes.collections:
        if isinstance(artist, Path3DCollection):
            x = np.stack([np.ma.filled(a, np.nan) for a in artist._offsets3d], axis=-1)  # type: ignore[attr-defined]
            seen = np.isfinite(x).all(axis=-1)
            artist.update_scalarmappable()
            unfaded = np.asarray(PathCollection.get_facecolor(artist))  # Path3DCollection's own fade and sort by depth
            size = 0.014 * float(np.sqrt(np.mean(artist.get_sizes())))
            panel.points.append((scaled(x[seen]), _opaque(unfaded, len(x))[seen], size))
        elif isinstance(artist, Line3DCollection):
            ends, colours = _segments(artist._segments3d, np.asarray(artist.get_color()))  # type: ignore[attr-defined]
            panel.lines.append((scaled(ends), colours))
    for line in axes.lines:
        ends, colours = _segments([np.stack(line.get_data_3d(), axis=-1)], to_rgba_array(line.get_color()))
        panel.lines.append((scaled(ends), colours))
    return panel


def _segments(lines: Sequence[Any], rgba: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends (n, 2, 3) and colours (n, 2, 3) of the segments of `lines`, but of those that lead to NaN."""
    parts = [np.stack([x[:-1], x[1:]], axis=1) for x in (np.asarray(line, float) for line in lines)]
    ends = np.concatenate(parts)
    colours = np.repeat(_opaque(rgba, len(parts)), [len(part) for part in parts], axis=0)
    seen = np.isfinite(ends).all(axis=(1, 2))
    return ends[seen], np.repeat(colours[seen, None], 2, axis=1)


def _opaque(rgba: np.ndarray, count: int) -> np.ndarray:
    """`count` colours, those of (n, 4) in turn, as they look on white, in bytes."""
    rgb, alpha = rgba[:, :3], rgba[:, 3:]
    return np.round(255 * (alpha * rgb + 1 - alpha)).astype(np.uint8)[np.arange(count) % len(rgba)]
