"""Data from elsewhere: nothing is taken without its digest; no file can run, escape its folder, fill the memory."""

import ast
import gzip
import hashlib
import io
import lzma
import struct
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest

from experiments.engine import cli, dataset, downloads, exits, options, provenance
from experiments.readers import catalogue, r_rotations, rdata

ROOT = Path(__file__).resolve().parents[1]
CONTENT = b"latitude,longitude\n1,2\n"
FILE = catalogue.File("data/fire.csv", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))


def _tar(members: dict[str, bytes], **changes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            information = tarfile.TarInfo(name)
            information.size = len(content)
            for field, value in changes.items():
                setattr(information, field, value)
            archive.addfile(information, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def sets(monkeypatch, tmp_path):
    """Two small sets, one of them in an archive, in place of the public ones, and no network."""
    archive = _tar({"inside/fire.csv": CONTENT})
    packed = catalogue.File("fire.tar.gz", hashlib.sha256(archive).hexdigest(), len(archive))
    answers = {FILE.path: CONTENT, packed.path: archive}

    def urlopen(url, timeout):
        path = url.split("/0123abc/")[1]
        if path not in answers:
            raise urllib.error.URLError("Name or service not known")
        return io.BytesIO(answers[path])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(
        catalogue,
        "SETS",
        {
            "plain": catalogue.DataSet("fires", "some/repository", "0123abc", "MIT", (FILE,)),
            "packed": catalogue.DataSet("fires", "some/repository", "0123abc", "MIT", (FILE,), packed),
        },
    )
    monkeypatch.setenv("HAAR_DATA", str(tmp_path / "data"))
    return answers


def _data(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["data", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_sets_are_fetched_checked_and_found_in_place(sets, tmp_path, capsys):
    assert _data("get", "all") == exits.FINISHED
    for name in ("plain", "packed"):
        assert (tmp_path / "data" / name / "fire.csv").read_bytes() == CONTENT
        assert "some/repository at commit 0123abc" in (tmp_path / "data" / name / "SOURCE.txt").read_text()
    assert _data("check") == exits.FINISHED
    assert capsys.readouterr().out.count("right") == 4
    sets.clear()
    assert _data("get", "plain") == exits.FINISHED  # nothing to fetch
    (tmp_path / "data" / "packed" / "fire.csv").rename(tmp_path / "data" / "packed" / "kept")
    (tmp_path / "data" / "plain" / "fire.csv").write_bytes(CONTENT.replace(b"1", b"7"))
    assert _data("check") == exits.FAILED
    told = capsys.readouterr().err
    assert "plain/fire.csv is damaged" in told
    assert "packed/fire.csv is missing" in told
    assert _data("list") == exits.FINISHED
    shown = capsys.readouterr().out
    assert "plain          damaged" in shown
    assert "packed         not here" in shown
    (tmp_path / "data" / "plain" / "fire.csv").unlink()
    (tmp_path / "data" / "plain" / "fire.csv.gz").write_bytes(gzip.compress(CONTENT))
    assert _data("check", "plain") == exits.FINISHED


@pytest.mark.parametrize("path", [FILE.path, "fire.tar.gz"])
@pytest.mark.parametrize("change", [lambda c: c + b"x", lambda c: c[:-1], lambda c: bytes([c[0] ^ 1]) + c[1:]])
def test_what_has_another_digest_is_not_kept(sets, tmp_path, path, change, capsys):
    sets[path] = change(sets[path])
    name = "plain" if path == FILE.path else "packed"
    assert _data("get", name) == exits.REFUSED
    assert "is not the file with SHA-256" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.csv"))


def test_set_can_come_from_a_folder_or_an_archive_without_network(sets, tmp_path, capsys):
    sets.clear()
    assert _data("get", "plain") == exits.REFUSED
    assert (
        "cannot be fetched (Name or service not known); give what you have of it by --source" in capsys.readouterr().err
    )
    place = tmp_path / "stick"
    place.mkdir()
    (place / "fire.csv").write_bytes(b"another file of that name")
    assert _data("get", "plain", "--source", str(place)) == exits.REFUSED
    assert f"has no fire.csv with SHA-256 {FILE.sha256}" in capsys.readouterr().err
    (place / "deep").mkdir()
    (place / "deep" / "fire.csv").write_bytes(CONTENT)
    assert _data("get", "plain", "--source", str(place)) == exits.FINISHED
    (place / "all.tar.gz").write_bytes(_tar({"x/fire.csv": CONTENT}))
    assert _data("get", "packed", "--source", str(place / "all.tar.gz")) == exits.FINISHED
    assert _data("check") == exits.FINISHED
    assert _data("get", "plain", "--data", str(tmp_path / "new"), "--source", "nowhere") == exits.REFUSED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fetch"], "data fetch: there are: list, get, check"),
        (["get"], "takes names of sets, or all"),
        (["get", "acacia"], "no data set is called 'acacia'"),
        (["check"], "holds no known data set"),
    ],
)
def test_wrong_data_command_is_refused(sets, arguments, message, capsys):
    assert _data(*arguments) == exits.REFUSED
    assert message in capsys.readouterr().err


def test_archive_cannot_leave_its_folder(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    for name in ("../outside", "a/../../outside"):
        with pytest.raises(exits.Refused, match="cannot be unpacked"):
            downloads.extract(_tar({name: b"x"}), inside)
    downloads.extract(_tar({str(tmp_path / "outside"): b"x"}), inside)  # an absolute name loses its slash
    assert not (tmp_path / "outside").exists()
    assert (inside / str(tmp_path / "outside").lstrip("/")).exists()


def test_archive_with_links_outside_or_a_bomb_or_torn_is_refused(tmp_path):
    for changes in ({"type": tarfile.SYMTYPE, "linkname": "../../secret"}, {"type": tarfile.CHRTYPE}):
        with pytest.raises(exits.Refused, match="cannot be unpacked"):
            downloads.extract(_tar({"link": b""}, **changes), tmp_path)
    information = tarfile.TarInfo("bomb")
    information.size = 2 * downloads._UNPACKED
    with pytest.raises(exits.Refused, match="more than 1024 MiB"):
        downloads.extract(information.tobuf(), tmp_path)
    with pytest.raises(exits.Refused, match="cannot be unpacked"):
        downloads.extract(_tar({"a": b"x" * 5000})[:60], tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_https_is_fetched():
    for url in ("http://example.org/data/fire.csv", "file:///etc/hosts", "ftp://example.org/data/fire.csv"):
        with pytest.raises(exits.Refused, match="only https is fetched"):
            downloads.fetch(url, FILE)


def test_every_public_set_has_a_full_commit_and_digests():
    for name, described in catalogue.SETS.items():
        assert len(described.commit) == 40, name
        int(described.commit, 16)
        everything = [*described.files, *filter(None, (described.archive,))]
        for file in everything:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.size > 0
            assert described.url(file).startswith(f"https://raw.githubusercontent.com/{described.repository}/")
        assert len({file.name for file in everything}) == len(everything)
        for made in described.made:
            assert made.source in {file.name for file in described.files}
            assert callable(getattr(r_rotations, made.function))


def test_the_data_folder_at_hand_is_that_of_the_digests(data_folder):
    for name in catalogue.SETS:
        assert downloads.state(name, data_folder) == (set(), set()), name


def test_runs_find_what_data_get_has_fetched(monkeypatch, tmp_path):
    monkeypatch.delenv("HAAR_DATA", raising=False)
    monkeypatch.setenv("HAAR_CACHE", str(tmp_path))
    assert options.data_folder(None) is None
    (tmp_path / "sets").mkdir()
    assert options.data_folder(None) == tmp_path / "sets"
    monkeypatch.setenv("HAAR_DATA", str(tmp_path / "absent"))
    with pytest.raises(exits.Refused, match=r"does not exist \(HAAR_DATA\)"):
        options.data_folder(None)


def _header(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"shape": shape, "fortran_order": False, "descr": dtype})
    return buffer.getvalue()


@pytest.mark.parametrize("shape", [(10**12,), (3,), (1,), (10**6, 10**6, 10**6)])
def test_array_whose_header_announces_other_bytes_than_it_holds_is_refused(shape, tmp_path):
    content = _header(shape) + np.arange(2.0).tobytes()
    (tmp_path / "a.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", content)
    for read, name in ((dataset.load_array, "a.npy"), (dataset.load, "a.npz")):
        with pytest.raises(exits.Refused, match=r"announces .* bytes of numbers and holds 16"):
            read(tmp_path / name)


def test_arrays_of_objects_bombs_and_torn_files_are_refused(tmp_path):
    good = _header((2,)) + np.arange(2.0).tobytes()
    objects = _header((2,), "|O") + b"\x80\x04N."
    future = b"\x93NUMPY\x09\x00"
    for content, message in (
        (objects, "objects"),
        (good[:-3], "holds 13"),
        (b"", "no plain array"),
        (future, "version"),
    ):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(exits.Refused, match=message):
            dataset.load_array(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", good)
    whole = bytearray((tmp_path / "b.npz").read_bytes())
    at = whole.index(b"PK\x01\x02") + 24  # the size that the central directory claims for the member
    whole[at : at + 4] = struct.pack("<I", 2**31)
    (tmp_path / "b.npz").write_bytes(bytes(whole))
    with pytest.raises(exits.Refused, match="claims 2147483648 bytes, packed in"):
        dataset.load(tmp_path / "b.npz")
    np.savez_compressed(tmp_path / "c.npz", x=np.zeros(10**6), y=np.arange(3, dtype=np.int8))
    loaded = dataset.load(tmp_path / "c.npz")  # a thousand to one is what zeros are worth
    assert (loaded["x"].shape, loaded["y"].dtype) == ((10**6,), np.int8)


def _rda(*items: bytes) -> bytes:
    return lzma.compress(b"RDX2\nX\n" + struct.pack(">3i", 2, 0, 0) + b"".join(items))


def _integer(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}i", *numbers)


def _text(word: str) -> bytes:
    return _integer(9, len(word)) + word.encode()


def _frame() -> bytes:
    """drill = data.frame(a = c(1.5, -2), b = factor(c("x", "y")))."""
    numbers = _integer(14, 2) + struct.pack(">2d", 1.5, -2.0)
    levels = _integer(2 | 0x400, 1) + _text("levels") + _integer(16, 2) + _text("x") + _text("y") + _integer(254)
    factor = _integer(13 | 0x200, 2, 1, 2) + levels
    names = _integer(2 | 0x400, 1) + _text("names") + _integer(16, 2) + _text("a") + _text("b") + _integer(254)
    table = _integer(19 | 0x200, 2) + numbers + factor + names
    return _integer(2 | 0x400, 1) + _text("drill") + table + _integer(254)


def test_data_frames_of_r_are_read():
    frame = rdata.read(_rda(_frame()), "drill.rda")["drill"]
    assert frame["a"].values.tolist() == [1.5, -2.0]
    assert frame["b"].values.tolist() == [1, 2]
    assert frame["b"].attributes["levels"].values == ["x", "y"]


def test_r_files_with_code_or_damage_are_refused():
    closure = _integer(2 | 0x400, 1) + _text("f") + _integer(3, 1)
    with pytest.raises(exits.Refused, match="type 3, which is no data"):
        rdata.read(_rda(closure), "f.rda")
    whole = lzma.decompress(_rda(_frame()))
    refused = 0
    for cut in range(0, len(whole) - 4):
        with pytest.raises(exits.Refused):
            rdata.read(lzma.compress(whole[:cut]), "cut.rda")
    for at in range(7, len(whole)):
        flipped = whole[:at] + bytes([whole[at] ^ 0x81]) + whole[at + 1 :]
        try:
            rdata.read(lzma.compress(flipped), "flipped.rda")
        except exits.Refused:
            refused += 1
    assert refused > 50  # the rest are changed numbers and names, which only the digest can tell
    for content in (b"", b"plain", lzma.compress(b"RDX2\nA\n"), _rda(_frame())[:-10]):
        with pytest.raises(exits.Refused, match="is no file of R data frames"):
            rdata.read(content, "x.rda")


def test_orientations_of_r_become_the_arrays_that_experiments_read(data_folder):
    for made in catalogue.SETS["ebsd_so3"].made:
        assert provenance.digest(dataset.load(data_folder / "ebsd_so3" / made.name)) == made.sha256


FORBIDDEN = {  # what would run text or bytes of a file, by its full name
    *("eval", "exec", "__import__", "os.system", "os.popen", "marshal.loads", "runpy.run_path"),
    *("torch.load", "joblib.load", "pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "shutil.unpack_archive"),
}


def _calls():
    for package in ("lie", "equivariant", "ot", "experiments", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield path.relative_to(ROOT), node, ast.unparse(node.func)


def test_no_package_runs_what_it_reads():
    wrong, seen = [], 0
    for path, node, called in _calls():
        seen += 1
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        arrays = called.endswith((".load", ".save", ".savez", ".savez_compressed")) and called.split(".")[0] == "np"
        bad = (
            called in FORBIDDEN
            or keywords.get("shell", "False") != "False"
            or ("allow_pickle" in keywords and keywords["allow_pickle"] != "False")
            or (called.endswith(".extractall") and keywords.get("filter") != "'data'")
            or (arrays and called == "np.load" and path.parts[0] == "experiments" and path.name != "dataset.py")
        )
        if bad:
            wrong.append(f"{path}:{node.lineno}: {ast.unparse(node).splitlines()[0]}")
    assert not wrong, "\n".join(wrong)
    assert seen > 5000


def test_only_registered_names_are_imported_from_records():
    """import_module is called in one place, with names that come from the package's own file names."""
    found = {
        str(path) for path, _, called in _calls() if called.endswith("import_module") and path.parts[0] == "experiments"
    }
    assert found == {"experiments/engine/experiment.py"}
