"""The import name `ot`: POT before or after haar, wheel or editable, inside or outside the repository: told, not mixed.

Slow tests install a real POT wheel into throw-away environments that borrow this one's dependencies.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import types
import venv
from pathlib import Path
from typing import Any

import pytest

import ot
from lie import _neighbours
from ot import _guard

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["lie", "equivariant", "ot", "experiments"]


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("emd", "ot.wasserstein.exact"),
        ("dist", "ot.costs.SquaredEuclidean"),
        ("sinkhorn2", "ot.sinkhorn.solve"),
        ("sinkhorn_unbalanced", "mass_penalty="),
        ("gromov_wasserstein", "ot.gromov.solve"),
        ("da", "no counterpart"),
    ],
)
def test_a_pot_name_is_answered_with_ours(name, ours):
    with pytest.raises(AttributeError, match="not POT") as attribute:
        getattr(ot, name)
    assert ours in str(attribute.value)
    with pytest.raises(ImportError, match="not POT") as imported:
        exec(f"from ot import {name}")
    assert str(imported.value) == str(attribute.value)
    assert not hasattr(ot, name)


def test_an_unknown_name_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="module 'ot' has no attribute 'nonsense'"):
        ot.nonsense  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'nonsense'"):
        exec("from ot import nonsense")


@pytest.mark.parametrize("name", ["sinkhorn", "barycenter", "gromov"])
def test_a_pot_name_that_is_our_module_too_can_still_be_imported(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())  # as if every module were there
    found = _guard.missing(name, imported=True)
    assert isinstance(found, AttributeError), "an ImportError would keep Python from importing the submodule"
    assert "does not have" not in str(found)


def test_calling_a_module_that_is_a_function_in_pot_is_answered():
    module: Any = types.ModuleType("ot.sinkhorn")
    module.__class__ = _guard.FunctionInPOT
    with pytest.raises(TypeError, match=r"not POT.*ot\.sinkhorn\.solve\(x, y, a, b, cost=\.\.\., epsilon=reg\)"):
        module([0.5, 0.5], [0.5, 0.5], [[0.0, 1.0], [1.0, 0.0]], 0.1)


def test_damage_is_seen_and_told(tmp_path, monkeypatch):
    ours = tmp_path / "ot"
    monkeypatch.setattr(_neighbours, "_OURS", ours)
    assert _neighbours.damage() is None, "lie alone, without ot beside it, is no damage"
    ours.mkdir()
    assert "lost its __init__.py" in str(_neighbours.damage())
    (ours / "__init__.py").touch()
    assert _neighbours.damage() is None
    (ours / "utils.py").touch()
    for refuse in (_neighbours.refuse_damage, _neighbours.refuse_strangers):
        with pytest.raises(ImportError, match=r"experiments cannot be imported.*mixed.*pip uninstall POT haar"):
            refuse("experiments")
    with pytest.warns(UserWarning, match="lie and equivariant work"):
        _neighbours.warn()


def test_a_stranger_is_named_and_told_apart_from_pot(tmp_path):
    (tmp_path / "ot.py").touch()
    run = python(sys.executable, tmp_path, "import sys; sys.path.append(sys.argv[1]); import experiments", str(ROOT))
    assert f"another `ot`, {tmp_path / 'ot.py'}. Rename or move" in run.stderr
    assert run.returncode == 1


# Real environments. Every command runs in a process of its own; the outcome is "works", or the text that must be seen.

MIXED = "the files of POT (Python Optimal Transport) are mixed into haar's package `ot`"
OTHER = "`import ot` finds POT (Python Optimal Transport)"
LOST = "has lost its __init__.py"
OURS, POT = "haar's own", "POT's"  # which `ot` a bare import yields without a word
WHOSE = f"import ot; print({OURS!r} if hasattr(ot, '_guard') else {POT!r} if hasattr(ot, 'emd') else 'nobody')"


def python(interpreter, folder, code, *arguments):
    hidden = ("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONWARNINGS", "HAAR_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    return subprocess.run(
        [str(interpreter), "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def pip(*arguments, where=None):
    target = ["--python", str(where)] if where else []
    return subprocess.run([sys.executable, "-m", "pip", *target, *arguments], capture_output=True, text=True)


def install(environment, *arguments):
    run = pip("install", "--no-deps", *arguments, where=environment)
    assert run.returncode == 0, run.stdout + run.stderr


def new_environment(folder):
    """An environment without pip that sees the dependencies, but not the haar, of the environment of this test."""
    venv.create(folder, symlinks=True)
    environment = next(path for path in (folder / "bin" / "python", folder / "Scripts" / "python.exe") if path.exists())
    parents = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (libraries(environment) / "zz_dependencies.pth").write_text("\n".join(parents) + "\n")  # sorts last
    return environment


def libraries(environment):
    return Path(python(environment, ".", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())


def check(environment, folder, *, ot, experiments, warning=None):
    run = python(environment, folder, WHOSE)
    assert (run.stdout.strip() == ot) if ot in (OURS, POT) else (ot in run.stderr and run.returncode == 1), run
    run = python(environment, folder, "import experiments")
    assert (run.returncode == 0) if experiments == "works" else ("ImportError: " in run.stderr), run
    assert experiments == "works" or experiments in run.stderr.splitlines()[-1], run.stderr
    run = python(environment, folder, "import lie, equivariant; from lie import so3, smooth; import lie")
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("UserWarning") == (1 if warning else 0), run.stderr
    assert warning is None or warning in run.stderr


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A copy of the repository, a wheel of it, and POT's wheel; skips where pip cannot get POT."""
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this environment has no pip")
    folder = tmp_path_factory.mktemp("sources")
    download = pip("download", "--no-deps", "--only-binary=:all:", "--dest", str(folder), "POT")
    if download.returncode != 0:
        pytest.skip(f"pip cannot get POT here: {download.stderr.strip().splitlines()[-1]}")
    repository = folder / "repository"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, repository / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, repository / name)
    (repository / "README.md").write_text("# haar\n")
    build = pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(repository))
    assert build.returncode == 0, build.stdout + build.stderr
    (pot,), (haar,) = folder.glob("[pP][oO][tT]-*.whl"), folder.glob("haar-*.whl")
    return types.SimpleNamespace(repository=repository, pot=str(pot), haar=str(haar))


@pytest.mark.slow
def test_haar_wheel_over_pot_refuses(sources, tmp_path):
    environment = new_environment(tmp_path / "environment")
    install(environment, sources.pot)
    names = python(environment, tmp_path, "import ot; print(*ot.__all__)")
    assert names.returncode == 0, names.stderr
    assert set(names.stdout.split()) <= set(_guard.COUNTERPARTS), "POT has names that our `ot` does not answer"

    install(environment, sources.haar)
    check(environment, tmp_path, ot=MIXED, experiments=MIXED, warning=MIXED)
    check(environment, sources.repository, ot=OURS, experiments="works")

    assert pip("uninstall", "--yes", "POT", "haar", where=environment).returncode == 0  # the remedy that is named
    install(environment, sources.haar)
    check(environment, tmp_path, ot=OURS, experiments="works")


@pytest.mark.slow
def test_pot_over_haar_wheel_is_seen_by_all_but_a_bare_import(sources, tmp_path):
    environment = new_environment(tmp_path / "environment")
    install(environment, sources.haar)
    check(environment, tmp_path, ot=OURS, experiments="works")

    install(environment, sources.pot)
    check(environment, tmp_path, ot=POT, experiments=MIXED, warning=MIXED)
    check(environment, sources.repository, ot=OURS, experiments="works")

    assert pip("uninstall", "--yes", "POT", where=environment).returncode == 0
    run = python(environment, tmp_path, "import experiments")
    assert LOST in run.stderr.splitlines()[-1], run.stderr
    assert LOST in python(environment, tmp_path, "import lie").stderr


@pytest.mark.slow
@pytest.mark.parametrize("pot_comes_first", [True, False])
def test_pot_beside_an_editable_haar(sources, tmp_path, pot_comes_first):
    environment = new_environment(tmp_path / "environment")
    order = [[sources.pot], ["--editable", str(sources.repository)]]
    for arguments in order if pot_comes_first else reversed(order):
        install(environment, *arguments)
    (path_file,) = libraries(environment).glob("*editable*.pth")
    assert path_file.read_text().strip() == str(sources.repository), "one plain path, which editors resolve"
    check(environment, tmp_path, ot=POT, experiments=OTHER)
    check(environment, sources.repository, ot=OURS, experiments="works")

    assert pip("uninstall", "--yes", "POT", where=environment).returncode == 0  # the remedy that is named
    check(environment, tmp_path, ot=OURS, experiments="works")
