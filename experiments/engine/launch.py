"""`python -m experiments launch ... run NAME ...`: starts the processes of a run and, when one dies, all of them again.

JAX gives no exception when a peer dies: the others wait, and are ended by JAX once the silence has lasted long enough.
So nothing inside a process can go on; what can is a new set of processes, from the last checkpoint.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tyro

from experiments.engine import exits

_MEANT = (exits.FINISHED, exits.REFUSED, exits.NOT_SAVED, exits.INTERRUPTED)  # not mended by starting again
_GRACE = 20.0  # seconds that the others have to end by themselves after one has died
_SHORT, _SHORT_AT_MOST = 60.0, 3  # so many lives in a row of less than so many seconds: it is no accident


class Asked(NamedTuple):
    """Options of launch; the command to launch follows, beginning with `run`."""

    processes: int = 1
    """Processes on this machine, joined among themselves; 1: this machine's part of a run that joins by itself."""
    restarts: int = 20
    """How often at most the processes are started again."""


def command(arguments: list[str]) -> None:
    """`launch [options] run NAME ...` of the command line; ends with the status of the run."""
    first = arguments.index("run") if "run" in arguments else len(arguments)
    asked = tyro.cli(Asked, args=arguments[:first], prog="python -m experiments launch [options] run NAME ...")
    rest = arguments[first:]
    if not rest:
        raise exits.Refused("launch takes its options and then a command, as in: launch --processes 2 run nbody")

    def one(address: str | None, rank: int) -> list[str]:
        join = ["--join", f"{address},{asked.processes},{rank}"] if address else []
        return [sys.executable, "-m", "experiments", *rest, *join]

    sys.exit(supervise(one, asked.processes, asked.restarts))


def supervise(one: Callable[[str | None, int], Sequence[str]], processes: int, restarts: int) -> int:
    """Runs `one(address, rank)` for all ranks until they end as they mean to; the status of the run.

    SIGTERM and SIGINT are handed on, and nothing is started again after them.
    """
    short, stopped = 0, False
    running: list[subprocess.Popen[bytes]] = []

    def hand_on(number: int, _: object) -> None:
        nonlocal stopped
        stopped = True
        for process in running:
            process.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for start in range(restarts + 1):
            begun = time.monotonic()
            address = f"127.0.0.1:{_free_port()}" if processes > 1 else None
            running[:] = [subprocess.Popen(one(address, rank)) for rank in range(processes)]
            status = _wait(running)
            if status in _MEANT or stopped:
                return status
            short = short + 1 if time.monotonic() - begun < _SHORT else 0
            if short >= _SHORT_AT_MOST:
                print(f"gave up: status {status}, {short} times in a row within {_SHORT:.0f} s", file=sys.stderr)
                return status
            if start < restarts:
                print(f"a process died (status {status}); all start again from the last checkpoint", flush=True)
        return status
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(running: list[subprocess.Popen[bytes]]) -> int:
    """The status of the whole: a meant one if any process has it, else that of the first to die."""
    first = None
    while first is None and any(process.poll() is None for process in running):
        first = next((process.returncode for process in running if process.poll()), None)
        time.sleep(0.05)
    ends = time.monotonic() + _GRACE
    while any(process.poll() is None for process in running):
        if time.monotonic() > ends:
            for process in running:
                process.kill()
        time.sleep(0.05)
    codes = [process.returncode for process in running]
    meant = [code for code in codes if code in _MEANT and code != exits.FINISHED]
    return meant[0] if meant else first or max(codes, key=abs)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
