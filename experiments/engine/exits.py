"""How a command ends: one exit status and one clear line for each way."""

import contextlib
import errno
import sys
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


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved."""


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


@contextlib.contextmanager
def as_status() -> Iterator[None]:
    """Ends the process with the status of what happened within and one line on stderr; bugs keep their traceback."""
    try:
        yield
        sys.exit(FINISHED)
    except Refused as error:
        _end(f"error: {error}", REFUSED)
    except NotSaved as error:
        _end(f"error: {error}", NOT_SAVED)
    except Interrupted as error:
        _end(str(error), INTERRUPTED)
    except (FloatingPointError, Incomplete) as error:
        _end(f"error: {error}", FAILED)
    except KeyboardInterrupt:  # before the first block or after the last: there is nothing to save
        _end("stopped; nothing was lost, the same command goes on", INTERRUPTED)


def _end(message: str, status: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(status)
