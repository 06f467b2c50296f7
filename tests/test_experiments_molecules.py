"""Readers of molecular data: extended XYZ as ASE reads it, the published folders, and clear refusals."""

import gzip

import numpy as np
import pytest

from experiments.engine import exits
from experiments.readers import molecules

TEXT = """2
Properties=pos:R:3:species:S:1:charge:R:1:forces:R:3 config_type="300K MD" energy=-9391.4555442847564 pbc="F F F"
0.25 -1.5 2.0 C 0.1 1.0 2.0 3.0
1.0 0.0 1e-3 H 0.2 -1.0 -2.0 -3.5
2
Properties=pos:R:3:species:S:1:charge:R:1:forces:R:3 energy=-9391.5 pbc="F F F"
0.5 -1.5 2.0 C 0.1 0.0 0.0 0.0
1.0 0.25 1e-3 H 0.2 0.5 0.0 0.0
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "frames.xyz.gz").write_bytes(gzip.compress(TEXT.encode()))
    return tmp_path / "frames.xyz"


def test_columns_are_found_by_name_and_energies_keep_their_digits(path):
    frames = molecules.read(path)
    np.testing.assert_array_equal(frames.numbers, [6, 1])
    np.testing.assert_array_equal(frames.positions[:, 1], [[1, 0, 1e-3], [1, 0.25, 1e-3]])
    np.testing.assert_array_equal(frames.forces[0], [[1, 2, 3], [-1, -2, -3.5]])
    np.testing.assert_array_equal(frames.energy, [-9391.4555442847564, -9391.5])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("-1.5 2.0 C", "-1.5 oops C", "line 1: no frame"),
        ("energy=-9391.5 ", "", "line 5: no frame"),
        ("0.25 1e-3 H", "0.25 1e-3 C", "frames of one molecule"),
        ("1.0 0.25 1e-3 H 0.2 0.5 0.0 0.0\n", "", "2 atoms are announced, 1 follow"),
        (TEXT, "\n", "holds no frame"),
    ],
)
def test_damaged_files_are_refused(path, old, new, message):
    path.write_text(TEXT.replace(old, new))
    with pytest.raises(exits.Refused, match=message):
        molecules.read(path)


def test_missing_and_truncated_files_are_refused(path, tmp_path):
    with pytest.raises(exits.Refused, match=r"other\.xyz\.gz is missing"):
        molecules.read(tmp_path / "other.xyz")
    packed = path.with_name("frames.xyz.gz")
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(exits.Refused, match="cannot be read"):
        molecules.read(path)
    with pytest.raises(exits.Refused, match=r"no folder acac.*BOTNet-datasets"):
        molecules.find(tmp_path, "acac")
    with pytest.raises(exits.Refused, match="no data folder is given"):
        molecules.find(None, "acac")


@pytest.mark.parametrize(
    ("dataset", "file", "shape"), [("acac", "train_300K", (500, 15)), ("ethanol_rmd17", "train", (1000, 9))]
)
def test_published_folders_are_read(data_folder, dataset, file, shape):
    folder = molecules.find(data_folder, dataset)
    frames = molecules.read(folder / f"{file}.xyz")
    assert frames.positions.shape == frames.forces.shape == (*shape, 3)
    assert set(frames.numbers.tolist()) == {1, 6, 8}
    energies = molecules.isolated_energies(folder / "isolated_atoms.xyz")
    bonds = frames.energy - sum(energies[z] for z in frames.numbers.tolist())
    assert (bonds < 0).all()  # molecules are bound
    # Forces of a molecule in no field add up to nothing, but for the noise of the density functional's grid.
    assert np.abs(frames.forces.sum(axis=1)).max() < 0.05


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ase")
def test_frames_are_those_of_ase(data_folder):
    io = pytest.importorskip("ase.io")
    path = molecules.find(data_folder, "acac") / "test_dihedral.xyz.gz"
    ours, theirs = molecules.read(path), io.read(path, ":", format="extxyz")
    np.testing.assert_array_equal(ours.numbers, theirs[0].numbers)
    np.testing.assert_array_equal(ours.positions, [atoms.positions for atoms in theirs])
    np.testing.assert_array_equal(ours.energy, [atoms.get_potential_energy() for atoms in theirs])
