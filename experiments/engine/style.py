"""How haar's figures look: legible at column width, colour-blind safe, the same on every machine."""

import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.engine import files

# Okabe and Ito's palette: distinct under the common colour deficiencies and in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
PUBLISHED = "#666666"

_SETTINGS: dict[str, Any] = {
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
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


def subplots(*shape: int, **options: Any) -> tuple[Figure, Any]:
    """plt.subplots in haar's style; the settings do not leak into the caller's session."""
    with plt.rc_context(_SETTINGS):
        return plt.subplots(*shape, **options)


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `name`.pdf and `name`.png into `folder`, closes the figure, returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with plt.rc_context(_SETTINGS):
        for ending, metadata in (("pdf", {"CreationDate": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, metadata=metadata)
            paths.append(folder / f"{name}.{ending}")
            files.write_bytes(paths[-1], buffer.getvalue())
    plt.close(figure)
    return paths
