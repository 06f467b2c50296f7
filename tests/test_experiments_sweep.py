"""Sweeps: every point is the run that its flags would give, a stopped sweep goes on, wrong ones are refused at once."""

import csv
import dataclasses
import json
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from matplotlib.figure import Figure

from experiments.engine import cli, exits, experiment, results, run, sweep
from experiments.engine.experiment import Experiment, Result, Row


@dataclasses.dataclass(frozen=True)
class DecayConfig:
    blocks: int = 2
    rate: float = 0.5
    start: float = 1.0
    signs: tuple[int, ...] = (1,)
    loud: bool = False
    label: str = "a"

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise exits.Refused(f"rate: expected at least 0, got {self.rate}")


class DecayState(NamedTuple):
    key: jax.Array
    block: jax.Array
    weight: jax.Array


def _advance(config, state):
    state = DecayState(state.key, state.block + 1, config.rate * state.weight)
    return state, {"loss": state.weight**2}


def _decay(**changes) -> Experiment:
    parts = {
        "Config": DecayConfig,
        "PRESETS": {preset: DecayConfig() for preset in results.PRESETS},
        "init": lambda config, key: DecayState(key, jnp.int32(0), jnp.float32(config.start * sum(config.signs))),
        "advance": _advance,
        "done": lambda config, state: int(state.block) >= config.blocks,
        "result": lambda config, metrics, state: Result((Row("loss", float(metrics["loss"][-1]), 0.1, high=0.5),)),
        "figure": lambda metrics: Figure(figsize=(1, 1)),
        "__doc__": "Nobody et al. 2020, Table 0: weights decay.",
    }
    return Experiment("decay", types.SimpleNamespace(**(parts | changes)))  # type: ignore[arg-type]


@pytest.fixture
def registry(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAAR_DATA", raising=False)

    def register(chosen: Experiment) -> None:
        monkeypatch.setattr(experiment, "names", lambda: {"decay": "module"})
        monkeypatch.setattr(experiment, "load", {"decay": chosen}.__getitem__)

    return register


def _status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "decay", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def _table(tmp_path):
    (path,) = (tmp_path / "runs" / "decay").glob("sweep-*/sweep.csv")
    return path.parent, list(csv.DictReader(path.read_text().splitlines()))


def test_every_combination_is_the_run_that_its_flags_give(registry, tmp_path, capsys):
    registry(_decay())
    assert _status("--sweep", "rate=0.5,2", "--sweep=start=1,-3", "--seeds", "0:2") == exits.FINISHED
    folder, rows = _table(tmp_path)
    values = {(row["rate"], row["start"]): float(row["mean"]) for row in rows}
    assert values == {("0.5", "1"): 2.0**-4, ("0.5", "-3"): 9 * 2.0**-4, ("2", "1"): 16.0, ("2", "-3"): 144.0}
    verdicts = [row["verdict"] for row in rows]
    assert verdicts == ["pass", "FAIL (0 of 2 seeds inside)"] + 2 * ["FAIL (0 of 2 seeds inside)"]
    assert {path.name for path in folder.iterdir()} == {f"sweep.{end}" for end in ("csv", "json", "txt", "png", "pdf")}
    shown = capsys.readouterr().out
    assert "point 4 of 4: rate=2, start=-3" in shown
    assert "144 ± 0" in shown
    # `rate` is a constant of the program, `start` is not: the second point finds the first one's program
    assert shown.count("from the cache, which saved") >= 2

    registry(_decay(advance=None))  # would fail if it ran
    assert _status("--rate", "2", "--start", "-3", "--seeds", "0:2") == exits.FINISHED
    assert _status("--sweep", "rate=0.5,2", "--sweep=start=1,-3", "--seeds", "0:2") == exits.FINISHED


def test_stopped_sweep_goes_on_where_it_was(registry, tmp_path, monkeypatch, capsys):
    registry(_decay())
    whole, begun = run.run, []

    def interrupted(chosen, config, request):
        begun.append(config.rate)
        if len(begun) == 2:
            raise run.Interrupted("stopped by SIGTERM")
        return whole(chosen, config, request)

    monkeypatch.setattr(run, "run", interrupted)
    assert _status("--sweep", "rate=0.25,0.5,1") == exits.INTERRUPTED
    folder, rows = _table(tmp_path)
    assert [row["failure"] for row in rows] == ["", "not run yet", "not run yet"]
    assert _status("--sweep", "rate=0.25,0.5,1") == exits.FINISHED
    assert begun == [0.25, 0.5, 0.25, 0.5, 1.0]
    assert [row["failure"] for row in _table(tmp_path)[1]] == ["", "", ""]
    told = json.loads((folder / "sweep.json").read_text())
    assert [point["values"] for point in told["points"]] == [{"rate": value} for value in ("0.25", "0.5", "1")]
    assert (told["base"]["rate"], told["base"]["start"]) == ("swept", 1.0)


def test_point_that_diverges_costs_no_other(registry, tmp_path, capsys):
    registry(_decay())
    assert _status("--sweep", "rate=1e30,0.5") == exits.FAILED
    _, rows = _table(tmp_path)
    assert rows[0]["failure"]
    assert rows[1]["verdict"] == "pass"
    assert "error: rate=1e30: " in capsys.readouterr().err


def test_values_of_other_types_are_read_as_flags_are():
    fields = sweep.parse(_decay(), ["signs=1,1 1,-1 3", "loud=true,false", "label=x,y z"])
    configs = [point.config for point in sweep._points(_decay(), fields, ["--rate", "0.25"], "run decay")]
    assert len(configs) == 12
    assert configs[0] == DecayConfig(rate=0.25, signs=(1,), loud=True, label="x")
    assert configs[-1] == DecayConfig(rate=0.25, signs=(-1, 3), loud=False, label="y z")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sweep", "rat=1,2"], "decay has no field rat; did you mean rate?"),
        (["--sweep", "zzz=1,2"], "decay has no field zzz; there are: blocks, rate"),
        (["--sweep", "seeds=0,1"], "decay has no field seeds"),
        (["--sweep", "rate"], "expected FIELD=VALUE,VALUE"),
        (["--sweep", "rate=1,,2"], "expected FIELD=VALUE,VALUE"),
        (["--sweep", "rate="], "expected FIELD=VALUE,VALUE"),
        (["--sweep", "rate=1,1"], "given twice"),
        (["--sweep", "rate=1", "--sweep", "rate=2"], "given twice"),
        (["--sweep", "rate=1,many"], "many"),
        (["--sweep", "blocks=1,2.5"], "2.5"),
        (["--sweep", "loud=true,maybe"], "loud=maybe: expected true or false"),
        (["--sweep", "rate=1,-1"], "point rate=-1: rate: expected at least 0"),
        (["--sweep", "rate=1,2", "--rate", "3"], "--rate is given beside --sweep rate=...: which is meant?"),
        (["--sweep", "rate=1,2", "--run", "here"], "--runs, not --run"),
        (["--sweep"], "--sweep"),
    ],
)
def test_wrong_sweep_is_refused_before_anything_runs(registry, tmp_path, arguments, message, capsys):
    registry(_decay())
    assert _status(*arguments) == exits.REFUSED
    captured = capsys.readouterr()
    assert message in " ".join((captured.err + captured.out).split())
    assert not (tmp_path / "runs").exists()


def test_axis_is_a_number_line_only_for_numbers():
    assert sweep._places(["1e-3", "2e-3"]) == ({"1e-3": 1e-3, "2e-3": 2e-3}, True)
    assert sweep._places(["b", "a", "b"]) == ({"b": 0.0, "a": 1.0}, False)
    assert not sweep._places(["nan", "1"])[1]
