"""Metrics for TensorBoard, beside the run's own record: scalars of every seed, by block. Needs tensorboardX."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from experiments.engine import exits


def library() -> ModuleType:
    """tensorboardX; Refused, with what to do, where it is not installed."""
    try:
        import tensorboardX  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise exits.Refused("--tensorboard needs tensorboardX: pip install 'haar[tensorboard]'") from error
    return tensorboardX


Sink = Callable[[int, Mapping[str, Any]], None]  # (block, metrics of all seeds)


@contextlib.contextmanager
def sink(folder: Path | None, seeds: tuple[int, ...], done: int) -> Iterator[Sink]:
    """Writes event files to `folder`/tensorboard, if there is a folder; what an earlier start wrote after `done` goes.

    Each seed is a run of its own there, so that TensorBoard draws the seeds of a metric in one picture.
    """
    if folder is None:
        yield lambda block, values: None
        return
    make = library().SummaryWriter
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                make(str(folder / "tensorboard" / f"seed{seed}"), purge_step=done + 1 if done else None)
            )
            for seed in seeds
        ]

        def write(block: int, values: Mapping[str, Any]) -> None:
            for name, value in values.items():
                array = np.asarray(value)
                if array.ndim == 1 and array.dtype.kind in "biuf":
                    for writer, number in zip(writers, array.tolist(), strict=True):
                        writer.add_scalar(name, number, block)

        yield write
