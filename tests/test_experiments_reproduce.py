"""reproduce: every experiment is run and kept, one that fails costs no other, and tables follow from what is kept."""

import dataclasses
import math
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from matplotlib.figure import Figure

from experiments.engine import cli, exits, experiment, report, results, table
from experiments.engine.experiment import Experiment, Result, Row


@dataclasses.dataclass(frozen=True)
class DecayConfig:
    blocks: int = 3
    rate: float = 0.5


class DecayState(NamedTuple):
    key: jax.Array
    block: jax.Array
    weight: jax.Array


def _decay(name="decay", **changes) -> Experiment:
    """w <- rate w, which passes its gate."""

    def advance(config, state):
        state = DecayState(state.key, state.block + 1, config.rate * state.weight)
        return state, {"epoch": state.block, "decay_loss": state.weight**2}

    parts = {
        "Config": DecayConfig,
        "PRESETS": {preset: DecayConfig() for preset in results.PRESETS},
        "init": lambda config, key: DecayState(key, jnp.int32(0), jnp.float32(1)),
        "advance": advance,
        "done": lambda config, state: int(state.block) >= config.blocks,
        "result": lambda config, metrics, state: Result((Row("loss", float(metrics["decay_loss"][-1]), high=0.1),)),
        "figure": lambda metrics: Figure(figsize=(1, 1)),
        "__doc__": f"Nobody et al. 2020, Table 0: {name} decays.",
        "BIBTEX": f"@misc{{{name}2020, title = {{On decay}}, author = {{Nobody}}, year = {{2020}}}}",
    }
    return Experiment(name, types.SimpleNamespace(**(parts | changes)))  # type: ignore[arg-type]


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """Only these experiments exist, and the current folder is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAAR_DATA", raising=False)

    def register(*chosen: Experiment) -> None:
        known = {one.name: one for one in chosen}
        monkeypatch.setattr(experiment, "names", lambda: dict.fromkeys(known, "module"))
        monkeypatch.setattr(experiment, "load", known.__getitem__)

    return register


def _status(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


def test_smoke_runs_all_keeps_them_apart_and_builds_tables_and_report(registry, tmp_path, capsys):
    def broken(config, folder):
        raise ZeroDivisionError("a bug")

    def refused(config, folder):
        raise exits.Refused("no data folder is given")

    registry(_decay("bug", data=broken), _decay("decay"), _decay("dry", data=refused))
    before = [path.read_bytes() for path in sorted(report.committed().rglob("*")) if path.is_file()]
    assert _status(["reproduce", "--preset", "smoke", "--seeds", "0:2"]) == exits.FAILED
    assert before == [path.read_bytes() for path in sorted(report.committed().rglob("*")) if path.is_file()]
    captured = capsys.readouterr()
    assert "1 of 3 experiments ran" in captured.out
    assert "bug: ZeroDivisionError: a bug\ndry: no data folder is given" in captured.err
    kept = tmp_path / "runs" / "kept-smoke"
    assert {path.name for path in (kept / "decay").iterdir()} == {"smoke.json", "smoke.png", "smoke.csv"}
    (record,) = results.read(kept)
    assert record.lines[0].ours == (2.0**-6, 2.0**-6)
    assert results.curves(kept / "decay" / "smoke.csv")["decay_loss"].tolist() == [[0.25, 0.0625, 0.015625]] * 2
    summary = (kept / "results.md").read_text()
    assert "| decay | Nobody et al. 2020, Table 0 | loss | 0.01562 ± 0 |  | <= 0.1 | pass | smoke, 2 |" in summary
    assert "| bug | Nobody et al. 2020, Table 0 | not run |" in summary
    assert "✓ pass" in (kept / "report.html").read_text()
    assert "@misc{decay2020" in (kept / "report.bib").read_text()
    assert "bug2020" not in (kept / "report.bib").read_text()

    registry(_decay("decay", advance=None))  # would fail if it ran: the finished run is kept again
    assert _status(["reproduce", "--preset", "smoke", "--seeds", "0:2", "--results", "elsewhere"]) == exits.FINISHED
    assert (tmp_path / "elsewhere" / "decay" / "smoke.json").read_bytes() == (kept / "decay/smoke.json").read_bytes()


def test_wrong_flags_are_refused_before_anything_runs(registry, tmp_path, capsys):
    @dataclasses.dataclass(frozen=True)
    class OtherConfig:
        width: int = 1

    registry(_decay(), _decay("other", Config=OtherConfig, PRESETS={p: OtherConfig() for p in results.PRESETS}))
    for arguments, message in (
        (["--blocks", "2"], "--blocks"),  # only one of the two has it
        (["decay", "--run", "here"], "--runs, not --run"),
        (["decay", "decay"], "named twice"),
    ):
        assert _status(["reproduce", *arguments]) == exits.REFUSED
        captured = capsys.readouterr()
        assert message in captured.out + captured.err
    assert not (tmp_path / "runs").exists()
    assert _status(["reproduce", "--help"]) == exits.FINISHED
    shown = capsys.readouterr().out
    assert "--results" in shown
    assert "--blocks" not in shown


def test_metric_with_a_name_of_the_engine_is_refused(registry, capsys):
    def advance(config, state):
        return state._replace(block=state.block + 1), {"loss": state.weight, "step": state.block}

    registry(_decay(advance=advance))
    assert _status(["run", "decay"]) == exits.REFUSED
    assert "decay: a metric is called step, as a field of the engine's own" in capsys.readouterr().err


def test_the_checkouts_own_records_rebuild_its_pages(registry, tmp_path, monkeypatch):
    registry(_decay())
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "README.md").write_text("# head\n<!-- results: begin -->\nold\n<!-- results: end -->\ntail\n")
    monkeypatch.setattr(report, "_ROOT", tmp_path)
    assert _status(["reproduce", "decay"]) == exits.FINISHED
    assert "| decay |" in (tmp_path / "README.md").read_text()
    for path, text in table.pages(tmp_path).items():
        assert path.read_text() == text
    (tmp_path / "README.md").write_text("# no place for a table\n")
    with pytest.raises(exits.Refused, match="expected one <!-- results: begin -->"):
        report.rebuild(tmp_path / "docs" / "results")


def test_the_short_table_shows_every_failure_and_says_how_many_gates_hold():
    line = lambda name, ours, published=None, high=math.inf: results.Line(
        name, (ours,), published, "", "", -math.inf, high
    )
    lines = (
        line("bare", 1.0),
        line("gated", 1.0, high=2.0),
        line("published", 1.0, 1.1),
        line("both", 1.0, 1.1, 2.0),
        line("worse", 3.0, high=2.0),
    )
    assert [one.name for one in table.headlines(lines)] == ["published", "both", "worse"]
    broken = tuple(line(f"broken {i}", 3.0, high=2.0) for i in range(5))
    assert [one.name for one in table.headlines((*lines[:4], *broken))] == [one.name for one in broken]
    content = {"experiment": "decay", "preset": "cpu", "seeds": [0], "minutes": 1.0, "device": {}, "commit": "0" * 8}
    short = table.markdown([results.Kept(content, lines, None, None)], [], brief=True)
    assert "[all 5 rows](docs/results.md): 2 of 3 gates hold" in short
    assert "| bare |" in table.markdown([results.Kept(content, lines, None, None)], [])
    assert "| bare |" not in short
