"""Public data sets: listed, fetched at a fixed commit, checked; nothing enters the data folder but with its digest."""

import gzip
import hashlib
import http.client
import io
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro

from experiments.engine import dataset, exits, files, provenance
from experiments.readers import catalogue, r_rotations, rdata

_TIMEOUT = 60.0  # seconds without a byte
_UNPACKED = 2**30  # bytes of all members of an archive, at most
_USAGE = """usage: python -m experiments data COMMAND

  list                      the public data sets: licence, size, repository and commit, and which are in place
  get NAME ... [options]    fetch sets (all: every one) into the data folder, each file with its SHA-256 checked
  check [NAME ...]          compare what is in the data folder with the digests
"""


class _Options(NamedTuple):
    """Data sets of the experiments."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of sets, see `data list`."""
    data: Path | None = None
    """The data folder; default: HAAR_DATA, else a folder in the cache, where experiments look by themselves."""
    source: Path | None = None
    """Take files from this folder or .tar, .tar.gz archive of the repository instead of the network."""


def command(arguments: list[str]) -> None:
    """python -m experiments data list | get | check."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return
    what, rest = arguments[0], arguments[1:]
    commands: dict[str, Callable[[_Options, Path], None]] = {"list": _list, "get": _get, "check": _check}
    if what not in commands:
        raise exits.Refused(f"data {what}: there are: {', '.join(commands)}")
    options = tyro.cli(_Options, args=rest, prog=f"python -m experiments data {what}")
    unknown = [name for name in options.names if name not in catalogue.SETS and name != "all"]
    if unknown:
        raise exits.Refused(f"no data set is called {unknown[0]!r}; there are: {', '.join(catalogue.SETS)}")
    commands[what](options, options.data or folder())


def folder() -> Path:
    """HAAR_DATA, else the folder in the cache that `data get` fills."""
    given = os.environ.get("HAAR_DATA")
    return Path(given) if given else dataset.cache_folder() / "sets"


def _list(options: _Options, place: Path) -> None:
    for name in _chosen(options):
        described = catalogue.SETS[name]
        missing, damaged = state(name, place)
        count = len(described.files)
        stands = "in place" if not missing | damaged else "damaged" if damaged else "not here"
        size = sum(file.size for file in described.files) / 2**20
        print(f"{name:14} {stands:9} {count} files, {size:.1f} MiB: {described.what}")
        print(f"{'':14} {described.repository} at {described.commit[:12]}; licence: {described.licence}")
    print(f"data folder: {place}")


def _get(options: _Options, place: Path) -> None:
    if not options.names:
        raise exits.Refused(f"data get takes names of sets, or all; there are: {', '.join(catalogue.SETS)}")
    for name in _chosen(options):
        missing, damaged = state(name, place)
        if not missing | damaged:
            print(f"{name}: in place, {place / name}")
            continue
        with exits.refusing_full_disk(place):
            get(name, place, options.source)
        print(f"{name}: {place / name}, every digest is right", flush=True)


def _check(options: _Options, place: Path) -> None:
    bad, seen = [], 0
    for name in _chosen(options):
        if not (place / name).is_dir() and not options.names:
            continue
        seen += 1
        missing, damaged = state(name, place)
        bad += [
            f"{place / name / file} is {what}"
            for what, some in (("missing", missing), ("damaged", damaged))
            for file in sorted(some)
        ]
        print(f"{name}: {'right' if not missing | damaged else f'{len(missing)} missing, {len(damaged)} damaged'}")
    if bad:
        raise exits.Incomplete("\n".join(bad))
    if not seen:
        raise exits.Refused(f"{place} holds no known data set; `python -m experiments data get all` fetches them")


def _chosen(options: _Options) -> list[str]:
    return list(catalogue.SETS) if not options.names or "all" in options.names else list(dict.fromkeys(options.names))


def state(name: str, place: Path) -> tuple[set[str], set[str]]:
    """Names of the files of a set that are missing in `place`, and of those that are damaged."""
    described = catalogue.SETS[name]
    missing, damaged = set(), set()
    made = {one.source: one for one in described.made}
    for file in described.files:
        if file.name in made:
            path = place / name / made[file.name].name
            right = path.exists() and _same_arrays(path, made[file.name].sha256)
        else:
            path = place / name / file.name
            path = path if path.exists() else path.with_name(f"{file.name}.gz")
            right = path.exists() and _digest(_content(path, file.size)) == file.sha256
        if not right:
            (damaged if path.exists() else missing).add(path.name.removesuffix(".gz"))
    return missing, damaged


def get(name: str, place: Path, source: Path | None = None) -> None:
    """Puts a set into `place`/`name`: every file checked first, then each moved into place in one step."""
    described = catalogue.SETS[name]
    wanted = {file.name: file for file in described.files}
    if source:
        contents = _find(wanted, source)
    elif described.archive:
        packed = fetch(described.url(described.archive), described.archive)
        with tempfile.TemporaryDirectory() as scratch:
            extract(packed, Path(scratch))
            contents = _find(wanted, Path(scratch))
    else:
        contents = {file.name: fetch(described.url(file), file) for file in described.files}
    made = {one.source: one for one in described.made}
    target = place / name
    target.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        if file in made:
            one = made[file]
            arrays = getattr(r_rotations, one.function)(rdata.read(content, file)[one.function])
            if provenance.digest(arrays) != one.sha256:
                raise exits.Refused(f"{file}: its arrays have not the digest expected of {one.name}")
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **arrays)
            files.write_bytes(target / one.name, buffer.getvalue())
        else:
            files.write_bytes(target / file, content)
    told = f"{described.what}\n{described.repository} at commit {described.commit}\nlicence: {described.licence}\n"
    files.write_bytes(target / "SOURCE.txt", told.encode())


def fetch(url: str, file: catalogue.File) -> bytes:
    """The bytes at an https address; Refused if they are not those of `file`, or if they do not come."""
    if not url.startswith("https://"):
        raise exits.Refused(f"{url}: only https is fetched")
    print(f"fetching {url} ({file.size / 2**20:.1f} MiB)", flush=True)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:
            content = answer.read(file.size + 1)  # one more, to see what is too long
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise exits.Refused(f"{url} cannot be fetched ({reason}); give what you have of it by --source") from error
    if _digest(content) != file.sha256:
        raise exits.Refused(f"{url}: what came is not the file with SHA-256 {file.sha256}; nothing was kept")
    return content


def extract(packed: bytes, target: Path) -> None:
    """Unpacks a tar archive below `target` with Python's data filter; Refused for what it refuses, and for bombs."""
    try:
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            total = 0
            for member in archive:
                total += member.size
                if total > _UNPACKED:
                    raise exits.Refused(f"an archive would unpack to more than {_UNPACKED >> 20} MiB")
            archive.extractall(target, filter="data")
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise exits.Refused(f"an archive cannot be unpacked: {error}") from error


def _find(wanted: dict[str, catalogue.File], source: Path) -> dict[str, bytes]:
    """Contents by name, from anywhere in a folder or archive, by name and digest; Refused if one is not there."""
    if source.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            extract(source.read_bytes(), Path(scratch))
            return _find(wanted, Path(scratch))
    if not source.is_dir():
        raise exits.Refused(f"--source {source}: there is no such folder or archive")
    found: dict[str, bytes] = {}
    for path in sorted(source.rglob("*")):
        name = path.name.removesuffix(".gz")
        if name in wanted and name not in found and path.is_file():
            content = _content(path, wanted[name].size)
            if _digest(content) == wanted[name].sha256:
                found[name] = content
    lacking = [name for name in wanted if name not in found]
    if lacking:
        raise exits.Refused(f"{source} has no {lacking[0]} with SHA-256 {wanted[lacking[0]].sha256}")
    return found


def _content(path: Path, size: int) -> bytes:
    """The first `size` + 1 bytes of a file, of what is in it if it ends in .gz; b'' if that cannot be read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return file.read(size + 1)
    except (OSError, EOFError, zlib.error):
        return b""


def _same_arrays(path: Path, sha256: str) -> bool:
    try:
        return provenance.digest(dataset.load(path)) == sha256
    except exits.Refused:
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
