"""The public data sets of the experiments: where each is, at which commit, under which licence, its SHA-256 digests.

The files are those of the named repositories, byte for byte, but for ebsd_so3, whose R data frames become arrays.
"""

from typing import NamedTuple


class File(NamedTuple):
    """A file of a repository, or of an archive in it: its path there, digest and size in bytes."""

    path: str
    sha256: str
    size: int

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


class Made(NamedTuple):
    """Arrays made of a file by a function of readers.r_rotations, kept instead of it: the digest is theirs."""

    name: str
    source: str
    function: str
    sha256: str


class DataSet(NamedTuple):
    """A set that `experiments data` can get; `archive`, if there is one, is what is fetched, and holds the files."""

    what: str
    repository: str
    commit: str
    licence: str
    files: tuple[File, ...]
    archive: File | None = None
    made: tuple[Made, ...] = ()

    def url(self, file: File) -> str:
        return f"https://raw.githubusercontent.com/{self.repository}/{self.commit}/{file.path}"


_BOTNET = ("davkovacs/BOTNet-datasets", "29e6d467317e4b5967b7ea5cbee54de953fa0d45", "MIT")
SETS = {
    "acac": DataSet(
        "acetylacetone, DFT energies and forces (extxyz; eV, eV/Å)",
        *_BOTNET,
        (
            File("train_300K.xyz", "8f5706d6902360555a5be59395612d2afc3489a75688388a58e7275fdad68af3", 880100),
            File("train_600K.xyz", "180c2538508f7810a623c279426f44953ee7cfb2af77e48ea3986ff97645a71c", 880112),
            File("test_MD_300K.xyz", "2291f3186a3cc6a5e05e92952c84a9237ca53f862d78fd3316a769360719ec43", 1144100),
            File("test_MD_600K.xyz", "d5a5bba154ec43f915eb7529f86ec3af60e6f911743859daba030181a0378ff7", 1144153),
            File("test_dihedral.xyz", "0c2246a593579de5a4450698d5f4ba5802b095824b7f211aa5889339967c6809", 43974),
            File("test_H_transfer.xyz", "ea4d76c79cf4cfccd2f93eaf755172b0b648886c4907eb0f82dff07a77530743", 14306),
            File("isolated_atoms.xyz", "b74f321b453374621b447d65c60979f70df1b7182c8ee0215388b2c574f33823", 455),
        ),
        File("dataset_acac.tar.gz", "fac37eaf369d81633e681f530f32a2a4775938bf7daebaaee1be925080c0c8e3", 1257112),
    ),
    "ethanol_rmd17": DataSet(
        "ethanol of rMD17, DFT energies and forces (extxyz; eV, eV/Å)",
        *_BOTNET,
        (
            File("train.xyz", "a26a16d8910581fa321fedc3bd3dfe31f2460e8cbfdc7a8f65243f4fd7250dd0", 1115876),
            File("test_MD.xyz", "b8726933d5b9083989d8e3cc7013c18e0950cf0cbc6f6cd570fdb9759001031c", 1110863),
            File("test_norm_mode_874.xyz", "13f363e0c141dc25af4d8f59668623a27e024c781a07a52f8565fc6bb0e58f99", 24180),
            File("test_norm_mode_3005.xyz", "9412f0ac3562ee3f307e823eae5f6a9b793e1805feea908f58c9d24a0068f6b0", 11769),
            File("test_H_removal.xyz", "8d9f13272eb1c7570edaf6afc31e6f8670df38c41b82611504878576708b1a1c", 38519),
            File("isolated_atoms.xyz", "a2a662390f31ad623ce493038e680bc34214f88d4432566bf8fbd0761be57583", 608),
        ),
        File("dataset_ethanol.tar.gz", "f52fb66cec225c996651dcd763c78c67ff5dadfe70be194b93e20c8354f24c39", 1399126),
    ),
    "boltzmann": DataSet(
        "samples of the double well DW4 and the Lennard-Jones cluster LJ13 (npy, float32)",
        "jarridrb/DEM",
        "8e9531987b0bfe4e770d5009c10a56b8434c0f0a",
        "MIT",
        (
            File(
                "data/train_split_DW4.npy", "03e4cd085b52bf021cebc7f5f6d05aec0cdccff890a476b36595c2e343b1c58a", 3200128
            ),
            File("data/val_split_DW4.npy", "05683af2442aea8c358d35482a1c6877fc53796e46c9f5335fa92aa4f3670de6", 320128),
            File("data/test_split_DW4.npy", "ef4466793b3502b2fe405aad22d3ae43b34827971594c5bab28684771d828244", 320128),
            File(
                "data/val_split_LJ13-1000.npy",
                "77a051cd50b16bec41e8fa056f6f77e21804d530a7461369f3a3ee985a576eb7",
                1560128,
            ),
            File(
                "data/test_split_LJ13-1000.npy",
                "c5064a56282e96441f1ff2f1babb13c241a99cd1077aee3667951d06055a785b",
                1560128,
            ),
        ),
    ),
    "posegraph": DataSet(
        "pose graphs sphere2500, torus3D, smallGrid3D, tinyGrid3D (g2o), the standard sets of Carlone et al.",
        "david-m-rosen/SE-Sync",
        "9b631b6b82d8aa7d32ab846412ae1c070412b7b6",
        "the repository is LGPL-3.0; the graphs have no separate licence: cite them, do not relicense",
        (
            File("data/sphere2500.g2o", "104ab57593394f24351d9f692f3b923f8b98fff1eb638c64356cf5049e06cf3c", 1094712),
            File("data/torus3D.g2o", "1ef8831023b372188d33ca63ce0da079d51df89364df71f2bce1c5c7c69ed5ec", 3262828),
            File("data/smallGrid3D.g2o", "9ea56c2ad1ebcc322560eb2f8d83cb3a60f99e2e2acc35e097b1162cdbafd649", 101258),
            File("data/tinyGrid3D.g2o", "c341eb0d09f7556b337be5a62b9354384885333a25fa718fd699fafb19620493", 4106),
        ),
    ),
    "ebsd_so3": DataSet(
        "orientations in nickel (EBSD) and of drilling arms, from the R package rotations 1.6.6 (become npz)",
        "cran/rotations",
        "8c70e9a781f1973a8f004a50e8ddc17ec9112afd",
        "MIT (2015 Bryan Stanfill)",
        (
            File("data/nickel.rda", "06fe44165b938e4bf1bc25b102400d97adb029d835181a20206fd6045115ce24", 2355788),
            File("data/drill.rda", "775d3907b2b264f793595a9b0bfadbbdec8126de403fc6c8693fc110ad3d7d9c", 18272),
        ),
        made=(
            Made(
                "nickel_ebsd.npz",
                "nickel.rda",
                "nickel",
                "7252e4dae5f0f5ee40f278b3d4e1284e03732732252e8f4e63215058eb24bfaa",
            ),
            Made("drill.npz", "drill.rda", "drill", "d209c1b7cbd02f4684e2598473c85ae0916a17b6bb46e40abb0f28d7c7280c55"),
        ),
    ),
    "earth_s2": DataSet(
        "places of earthquakes, volcanic eruptions and fires (csv; latitude, longitude in degrees)",
        "oxcsml/riemannian-score-sde",
        "b35b739464ca8264e418e400301f5f45cb7a16b3",
        "no licence file; the files name NOAA NGDC and NASA FIRMS, public domain, as their source",
        (
            File("data/quakes_all.csv", "3e5e1a10fb2faf1899106264289334037d039f00f5265d13dad388a93d8ff2f7", 96092),
            File("data/volerup.csv", "f7bbaf32a412f5fe82350f48e0c55100be260803969c16557343f687fd0593fc", 11295),
            File("data/fire.csv", "c5c6c9490b1d8c58ba9eb78d9e2f82d1c1e62694ca5cff917c54600d3d83f459", 178949),
        ),
    ),
}
"""What is not here is made, not fetched: the charged particles of `nbody` are simulated on first use."""
