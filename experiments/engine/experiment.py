"""What an experiment is: a module with Config, presets and pure functions; the file's name registers it.

`experiments/<author><year>_<name>.py` defines
    Config                          frozen dataclass; PRESETS maps "smoke", "cpu", "paper" to instances
    data(config, folder) -> Data    optional: arrays made or read once, handed to the functions below as last argument
    init(config, key[, data]) -> State          State is a pytree of arrays
    advance(config, state[, data]) -> (State, Metrics)   one block of steps, jittable; Metrics is a flat dict of arrays
    done(config, state) -> bool
    result(config, metrics, state[, data]) -> Result     one seed; metrics[name] has one entry per block
    figure(metrics) -> Figure       metrics[name] is (seeds, blocks, ...): redrawn without training
    BIBTEX                          the paper's BibTeX entry, a string, for the report
    model(config, state[, data]) -> Model       optional: what `export` gives away of one seed
    lower_rate(config, factor) -> Config        optional: what a rollback after NaN goes on with
    MAY_NOT_BE_FINITE               optional: names of metrics where NaN or infinity is no fault ("not measured")
"""

import dataclasses
import importlib
import math
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import experiments
from experiments.engine.exits import Refused

Preset = Literal["smoke", "cpu", "paper"]
Certainty = Literal["verified", "memory", "analytic", "calibrated", ""]

_FILE = re.compile(r"(?P<author>[a-z]+)(?P<year>\d{4})_(?P<name>\w+)")


@dataclasses.dataclass(frozen=True)
class Row:
    """One number of a result: ours, the published one with its source, and the gate [low, high] if there is one."""

    name: str
    value: float
    published: float | None = None
    source: str = ""
    certainty: Certainty = ""
    low: float = -math.inf
    high: float = math.inf

    @property
    def gated(self) -> bool:
        return math.isfinite(self.low) or math.isfinite(self.high)


@dataclasses.dataclass(frozen=True)
class Result:
    """What one seed of an experiment found: the rows of its table, in order."""

    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained function: `apply(parameters, *inputs)`, with shape, as in "batch, 5, 3", and dtype of each input."""

    parameters: Any
    apply: Callable[..., Any]
    inputs: dict[str, tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A registered experiment module under its short name."""

    name: str
    module: ModuleType

    @property
    def claim(self) -> str:
        """The first line of the module: paper, claim, number."""
        return (self.module.__doc__ or "").strip().splitlines()[0]

    @property
    def bibtex(self) -> str:
        """The BibTeX entry of the paper; '' if the module gives none."""
        return getattr(self.module, "BIBTEX", "").strip()

    def preset(self, name: str) -> Any:
        return self.module.PRESETS[name]

    def data(self, config: Any, folder: Path | None) -> tuple[Any, ...]:
        """() or (data,): what the other functions take after their own arguments."""
        make = getattr(self.module, "data", None)
        return () if make is None else (make(config, folder),)


def names() -> dict[str, str]:
    """Short name -> module name of every experiment file, found by their file names, nothing imported."""
    found: dict[str, str] = {}
    for entry in pkgutil.iter_modules(experiments.__path__):
        if match := _FILE.fullmatch(entry.name):
            found[match["name"]] = entry.name
    return dict(sorted(found.items()))


def load(name: str) -> Experiment:
    """The experiment `name`; Refused with the nearest names if there is none."""
    known = names()
    if name not in known:
        import difflib

        near = difflib.get_close_matches(name, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
        raise Refused(f"no experiment is called {name!r}; {hint}")
    return Experiment(name, importlib.import_module(f"experiments.{known[name]}"))


def paper(name: str) -> str:
    """What the claim of `name` says before its colon, 'Author et al. 2021, Table 2'; '' if it is not registered."""
    return load(name).claim.partition(":")[0] if name in names() else ""
