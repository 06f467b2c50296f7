"""Frames of molecules with energies and forces from extended XYZ files, gzipped or not.

Data sets: acac (acetylacetone) and ethanol_rmd17, from the MIT-licensed repository davkovacs/BOTNet-datasets; units are
eV and Å. Energies stay in float64: a total energy of −9391 eV keeps only millielectronvolts in float32.
"""

import gzip
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.engine.exits import Refused

SYMBOLS = (
    *("", "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar"),
    *("K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr"),
)  # up to krypton, by atomic number
SOURCE = "davkovacs/BOTNet-datasets"


class Frames(NamedTuple):
    """Frames of one molecule, atoms in one order: energy in eV, forces in eV/Å."""

    numbers: np.ndarray  # (n,) atomic numbers
    positions: np.ndarray  # (frames, n, 3) Å, float64
    energy: np.ndarray  # (frames,) float64
    forces: np.ndarray  # (frames, n, 3) float64, zeros where the file has none


def find(folder: Path | None, dataset: str) -> Path:
    """The folder `dataset` below the data folder; Refused, with what to do, where there is none."""
    if folder is None or not (folder / dataset).is_dir():
        where = "no data folder is given" if folder is None else f"{folder} has no folder {dataset}"
        raise Refused(f"{where}: give --data or HAAR_DATA a folder with {dataset}/*.xyz.gz of {SOURCE}")
    return folder / dataset


def read(path: Path) -> Frames:
    """All frames of an extended XYZ file; `path` may name it with or without .gz.

    Refused where the file is missing or damaged, or its frames are not of one molecule with its atoms in one order.
    """
    frames = _frames(path)
    numbers, positions, energies, forces = zip(*frames, strict=True)
    if any(len(n) != len(numbers[0]) or (n != numbers[0]).any() for n in numbers):
        raise Refused(f"{path}: expected frames of one molecule with its atoms in one order")
    return Frames(numbers[0], np.stack(positions), np.array(energies), np.stack(forces))


def isolated_energies(path: Path) -> dict[int, float]:
    """Energy in eV of each isolated atom, by atomic number, from a file with one atom in each frame."""
    return {int(numbers[0]): energy for numbers, _, energy, _ in _frames(path)}


def _frames(path: Path) -> list[tuple[np.ndarray, np.ndarray, float, np.ndarray]]:
    path = path if path.exists() else path.with_name(path.name + ".gz")
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()
    except FileNotFoundError as error:
        raise Refused(f"{path} is missing") from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise Refused(f"{path} cannot be read: {error}") from error
    frames, start = [], 0
    while start < len(lines) and lines[start].strip():
        try:
            count = int(lines[start])
            rows = [line.split() for line in lines[start + 2 : start + 2 + count]]
            frames.append(_frame(lines[start + 1], rows, count))
        except (ValueError, IndexError, KeyError) as error:
            raise Refused(f"{path}, line {start + 1}: no frame of an extended XYZ file ({error})") from error
        start += 2 + count
    if not frames:
        raise Refused(f"{path} holds no frame")
    return frames


def _frame(comment: str, rows: list[list[str]], count: int) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """(numbers, positions, energy, forces); the Properties entry says which columns are which."""
    entries = {key: value.strip('"') for key, value in re.findall(r'(\w+)=("[^"]*"|\S+)', comment)}
    if len(rows) != count:
        raise ValueError(f"{count} atoms are announced, {len(rows)} follow")
    columns, at = {}, 0
    words = entries["Properties"].split(":")
    for name, size in zip(words[::3], words[2::3], strict=True):
        columns[name], at = slice(at, at + int(size)), at + int(size)
    numbers = np.array([SYMBOLS.index(row[columns["species"]][0]) for row in rows])
    positions = np.array([row[columns["pos"]] for row in rows], np.float64)
    forces = np.array([row[columns["forces"]] for row in rows], np.float64) if "forces" in columns else 0 * positions
    return numbers, positions, float(entries["energy"]), forces
