"""The scene of a figure holds what its panels in R^3 show: every point and segment, at one scale, in its colour."""

import sys

import numpy as np
import pytest

from experiments.engine import cli, exits, files, scene, style

X = np.array([[5.0, 0, 0], [5, 4, 0], [5, 0, 2], [5, np.nan, 0]])


def _figure(metrics):
    picture = style.figure(6, 3)
    picture.add_subplot(1, 3, 1).plot([0, 1], [0, 1])
    clouds, curve = style.space(picture, 1, 3, 2), style.space(picture, 1, 3, 3)
    style.points(clouds, X, [0.0, 1.0, 0.5, 0.5], cmap="gray")
    style.sphere(clouds, (5, 0, 0), 4.0)
    style.equal(clouds, np.array([[1.0, -4, -4], [9, 4, 4]]))
    clouds.set_title("on a sphere")
    curve.plot(*X.T, color="red", alpha=1)
    style.frames(curve, np.eye(3)[None])
    return picture


def test_points_and_lines_are_where_the_figure_has_them():
    clouds, curve = scene.panels(style.drawn(_figure, None))
    ((x, colours, size),) = clouds.points
    np.testing.assert_allclose(x, (X[:3] - [5, 0, 0]) / 4, atol=1e-6)  # the point that is NaN is not there
    assert np.all(np.diff(colours[[0, 2, 1]].astype(int), axis=0) > 0), "gray grows with its number"
    assert size > 0
    ((ends, faint),) = clouds.lines
    np.testing.assert_allclose(np.linalg.norm(ends, axis=-1), 1, rtol=1e-6)
    assert ends.shape == faint.shape == (11 * 72, 2, 3)
    assert np.all(faint[0, 0] > 0x99), "what is transparent is paler than its colour"
    *axes, path = curve.lines
    assert [ends.shape for ends, _ in axes] == [(1, 2, 3)] * 3
    assert path[0].shape == (2, 2, 3), "the segment that leads to NaN is not there"
    np.testing.assert_array_equal(path[1][0, 0], [255, 0, 0])
    assert clouds.title == "on a sphere"


def test_panels_stand_side_by_side_in_the_scene():
    class Recorder:
        def __init__(self):
            self.placed = []

        def set_up_direction(self, direction):
            assert direction == "+z"

        def add_point_cloud(self, name, points, colors, *, position, **_):
            self.placed.append((name, len(points), position[0]))

        def add_line_segments(self, name, points, colors, *, position, **_):
            self.placed.append((name, len(points), position[0]))

        def add_label(self, name, text, *, position, **_):
            self.placed.append((name, text, position[0]))

    made = Recorder()
    scene.fill(made, scene.panels(style.drawn(_figure, None)))
    names, contents, places = zip(*made.placed, strict=True)
    assert len(set(names)) == 7, "points, sphere and title; three axes of a frame and the curve"
    assert "on a sphere" in contents
    assert sorted(set(places)) == [-1.25, 1.25]


@pytest.mark.parametrize("missing", [True, False])
def test_refusals_say_what_to_do(tmp_path, monkeypatch, missing, capsys):
    files.write_json(tmp_path / "config.json", {"experiment": "sinkhorn" if missing else "invariance"})
    monkeypatch.setattr(scene.record, "metrics", lambda folder: None)
    flat = lambda metrics: style.figure(1, 1)
    loaded = type("E", (), {"module": type("M", (), {"figure": staticmethod(_figure if missing else flat)})})
    monkeypatch.setattr(scene.experiment, "load", lambda name: loaded)
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["scene", str(tmp_path)])
    assert stopped.value.code == exits.REFUSED
    said = capsys.readouterr().err
    assert "pip install 'haar[scene]'" in said if missing else "is flat" in said
    with pytest.raises(SystemExit):
        cli.main(["scene", str(tmp_path / "nothing")])
    assert "no run folder" in capsys.readouterr().err
