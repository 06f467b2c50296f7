"""How haar's figures look: legible at column width, colour-blind safe, the same on every machine."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

from experiments.engine import files

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


def render(draw: Callable[[Any], Figure], metrics: Any, folder: Path, name: str) -> list[Path]:
    """Draws `draw(metrics)` in haar's style into `folder` as `name`.pdf and `name`.png; returns the paths."""
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
