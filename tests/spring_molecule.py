"""Frames of a four-atom molecule of springs as extended XYZ: tests of experiments on molecules need no data."""

import numpy as np

HEADER = 'Properties=species:S:1:pos:R:3:forces:R:3 energy={energy:.12f} pbc="F F F"'
ATOMS = {"C": -1026.25, "O": -2037.5, "H": -13.5}


def frames(count, heat, seed):
    """Frames of a four-atom molecule of springs: total energies with thousands of eV of isolated atoms."""
    random = np.random.default_rng(seed)
    rest = np.array([[0.0, 0, 0], [1.3, 0.1, 0], [-0.7, 1.0, 0.2], [-0.6, -0.9, 0.3]])
    length = np.linalg.norm(rest[:, None] - rest, axis=-1)
    lines = []
    for _ in range(count):
        x = rest + heat * random.normal(size=rest.shape)
        difference = x[:, None] - x
        r = np.linalg.norm(difference, axis=-1) + np.eye(4)
        stretch = (r - length) * (1 - np.eye(4))
        force = -np.sum((20 * stretch / r)[..., None] * difference, axis=1)
        energy = 0.25 * 20 * np.sum(stretch**2) - 12 + sum(ATOMS[s] for s in "COHH")
        lines += ["4", HEADER.format(energy=energy)]
        lines += [f"{s} {' '.join(f'{v:.10f}' for v in (*p, *f))}" for s, p, f in zip("COHH", x, force, strict=True)]
    return "\n".join(lines) + "\n"


def write(folder, sets):
    """`name`.xyz for each name: (frames, heat) of `sets`, and isolated_atoms.xyz."""
    folder.mkdir()
    for seed, (name, (count, heat)) in enumerate(sets.items()):
        (folder / f"{name}.xyz").write_text(frames(count, heat, seed))
    atoms = "".join(f"1\n{HEADER.format(energy=e)}\n{s} 0 0 0 0 0 0\n" for s, e in ATOMS.items())
    (folder / "isolated_atoms.xyz").write_text(atoms)
