"""How a command ends: one exit status and one clear line for each way."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

FINISHED = 0
FAILED = 1  # a bug, or a training that diverged: the traceback or the message says which
REFUSED = 2  # the request cannot be carried out as given; nothing was changed
NOT_SAVED = 74  # the work was done, but its last checkpoint or record could not be written
INTERRUPTED = 75  # stopped by a signal after saving; the same command goes on from there


class Refused(Exception):
    """The caller asked for something that cannot be done; the message is one line that says what, where and why."""


class Incomplete(Exception):
    """A part of what was asked could not be done, the rest was; the message has one line for each part."""


class NotSaved(Exception):
    """The last state could not be written; the message says where and why."""


@contextlib.contextmanager
def refusing_full_disk(place: Path) -> Iterator[None]:
    """Turns 'no space', 'quota exceeded', 'read-only' and 'permission denied' at `place` into Refused."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR):
            raise
        raise Refused(
            f"cannot write {place}: {error.strerror}; free some space or choose another place with --runs"
        ) from error
