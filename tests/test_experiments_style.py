"""Pictures of things in R^3: clouds, frames and spheres are where their coordinates say, on one scale."""

import subprocess
import sys

import numpy as np
from matplotlib import image
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from experiments.engine import style


def test_cloud_frames_and_sphere_are_drawn_on_one_scale(tmp_path):
    random = np.random.default_rng(0)
    x = random.normal(size=(200, 3))
    x = x / np.linalg.norm(x, axis=1, keepdims=True) * 2 + np.array([5.0, 0, 0])
    R = Rotation.from_rotvec(random.normal(size=(20, 3))).as_matrix()
    axes = {}

    def draw(_):
        figure = Figure(figsize=(6, 3))
        for place, name in ((1, "cloud"), (2, "frames")):
            axes[name] = style.space(figure, 1, 2, place)
        style.sphere(axes["cloud"], (5, 0, 0), 2.0)
        style.points(axes["cloud"], x, x[:, 2], cmap="viridis")
        style.equal(axes["cloud"], x)
        style.frames(axes["frames"], R, x[:20], length=0.7)
        style.equal(axes["frames"], x[:20], x[:20, None] + 0.7 * np.swapaxes(R, 1, 2))
        return figure

    paths = style.render(draw, None, tmp_path, "solid")
    picture = image.imread(paths[1])
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 100
    for panel in axes.values():
        limits = np.array([panel.get_xlim(), panel.get_ylim(), panel.get_zlim()])
        np.testing.assert_allclose(np.ptp(limits, axis=1), np.ptp(limits[0]))
    low, high = axes["cloud"].get_xlim()
    assert low <= x[:, 0].min()
    assert high >= x[:, 0].max()
    # the sphere's lines lie on the sphere, the frames' lines are the columns of R
    circles, *lines = (c for panel in axes.values() for c in panel.collections if hasattr(c, "_segments3d"))
    on_sphere = np.concatenate([np.asarray(s) for s in circles._segments3d])
    np.testing.assert_allclose(np.linalg.norm(on_sphere - [5, 0, 0], axis=1), 2.0, rtol=1e-6)
    assert len(lines) == 3
    for column, drawn in enumerate(lines):
        ends = np.asarray(drawn._segments3d)
        np.testing.assert_allclose(ends[:, 1] - ends[:, 0], 0.7 * R[:, :, column], atol=1e-12)
    first = paths[1].read_bytes()
    style.render(draw, None, tmp_path, "solid")
    assert paths[1].read_bytes() == first  # the same picture from the same numbers


def test_a_single_point_has_a_scale_too():
    axes = style.space(Figure())
    style.equal(axes, np.ones((1, 3)))
    assert np.isfinite(axes.get_xlim()).all()
    style.frames(axes, np.eye(3))


def test_a_run_starts_without_matplotlib():
    code = "import sys, experiments.engine.cli, experiments.satorras2021_nbody; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
