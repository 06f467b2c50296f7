"""Draws docs/conventions.svg: an increment acts on the right, along the axes of the body.

python docs/conventions_figure.py
"""

from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib import pyplot

from lie import se2

X, Y, GREY = "#c0392b", "#2471a3", "#888888"


def frame(axes, pose, name, beside=(0.0, -0.25), length=0.6, color=None):
    """A pose as its two axes, drawn where the pose puts them."""
    R, t = np.asarray(pose.rotation), np.asarray(pose.translation)
    for column, own in ((R[:, 0], X), (R[:, 1], Y)):
        arrow = {"arrowstyle": "-|>", "color": color or own, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
        tip = t + length * column
        axes.annotate("", tip, t, arrowprops=arrow, annotation_clip=False)
        axes.update_datalim([t, tip])
    x, y = t + np.array(beside)
    axes.text(x, y, name, ha="center", va="center", fontsize=9, color=color or "black")
    axes.update_datalim([(x - 0.3, y - 0.1), (x + 0.3, y + 0.1)])


def path(axes, start, xi, color, before=False):
    """Where exp(s xi) takes the pose for s = 0..1: on its right, or (before) on its left."""
    steps = se2.exp(jnp.linspace(0, 1, 41)[:, None] * xi)
    poses = se2.compose(steps, start) if before else se2.compose(start, steps)
    axes.plot(*np.asarray(poses.translation).T, color=color, lw=1.2, ls="--" if before else "-")
    return se2.Pose(poses.rotation[-1], poses.translation[-1])


def main():
    """Two panels: the same xi as a translation, and as a translation with a rotation."""
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "haar", "font.size": 9})
    figure, panels = pyplot.subplots(1, 2, figsize=(7.2, 3.1), layout="constrained")
    world = se2.identity()
    T = se2.Pose(se2.exp(jnp.array([0.0, 0.0, 0.9])).rotation, jnp.array([1.5, 0.6]))
    cases = [("xi = (v, 0), v = (1.4, 0)", [1.4, 0.0, 0.0]), ("xi = (v, omega), omega = 1.5", [1.4, 0.0, 1.5])]
    for axes, (title, xi) in zip(panels, cases, strict=True):
        xi = jnp.array(xi)
        right = path(axes, T, xi, "black")
        left = path(axes, T, xi, GREY, before=True)
        frame(axes, world, "world")
        frame(axes, T, "T")
        frame(axes, right, "T exp(xi)", beside=(0.6, 0.0))
        frame(axes, left, "exp(xi) T", beside=(-0.6, 0.0) if xi[2] else (0.0, -0.25), color=GREY)
        axes.set(title=title, aspect="equal")
        axes.autoscale_view()
        axes.axis("off")
    figure.savefig(Path(__file__).with_name("conventions.svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
