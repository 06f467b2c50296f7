"""The folder of a run: who it belongs to, and that one process at a time writes to it."""

import contextlib
import datetime
from pathlib import Path
from typing import Any

from experiments.engine import exits, files, identity


def take(folder: Path, description: dict[str, Any], fresh: bool, held: contextlib.ExitStack) -> bool:
    """Makes or finds `folder` for the run of `description` and locks it until `held` ends; whether it is finished.

    Refused if another run or anything else lives there, if it is in use, or if nothing can be written.
    """
    with exits.refusing_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        held.enter_context(files.locked(folder))
        if fresh:
            _set_aside(folder)
        _claim(folder, description)
        if (folder / "result.json").exists():
            return True
        _check_room(folder)
        return False


def _set_aside(folder: Path) -> None:
    """Moves the content of an earlier run into old/<time>: --fresh restarts, it does not destroy."""
    content = [path for path in folder.iterdir() if path.name not in ("lock", "old")]
    if content:
        attic = folder / "old" / datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        attic.mkdir(parents=True)
        for path in content:
            path.rename(attic / path.name)


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Writes the run's description, or refuses if the folder belongs to another."""
    path = folder / "config.json"
    if not path.exists():
        unfinished = (".config.json.", ".room.")  # of a process killed while it came this far
        strangers = sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.name not in ("lock", "old") and not entry.name.startswith(unfinished)
        )
        if strangers:
            raise exits.Refused(
                f"{folder} is not empty and no run folder ({', '.join(strangers[:3])}); choose another --run"
            )
        files.write_json(path, description)
        return
    changed = identity.difference(files.read_json(path), description)
    if changed:
        raise exits.Refused(
            f"{folder} belongs to another config; differing fields, there -> here: {'; '.join(changed)}. "
            "Choose another --run, or restart it with --fresh"
        )


def _check_room(folder: Path) -> None:
    """Refuses at once if not even a small file fits: better now than at the first checkpoint."""
    files.write_bytes(folder / "room", b"\0" * 2**20)
    (folder / "room").unlink()
