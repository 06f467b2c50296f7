"""The benchmarks' own logic on made-up figures: gate, baseline, discovery, interleaving. No timing is tested."""

import json
from typing import Literal

import jax
import jax.numpy as jnp
import pytest

from benchmarks import __main__ as command
from benchmarks import gate, harness, page
from benchmarks.harness import Metric, Options


def metric(
    name="exp/1e5", value=2.0, direction: Literal["higher", "lower"] = "higher", tolerance=0.25, **fields
) -> Metric:
    return Metric(name, value, "x", direction, tolerance, **fields)


@pytest.mark.parametrize(
    ("direction", "value", "worse"),
    [
        ("higher", 1.6, False),
        ("higher", 1.4, True),
        ("higher", 9.0, False),
        ("lower", 2.4, False),
        ("lower", 2.6, True),
        ("lower", 0.1, False),
        ("higher", float("nan"), True),
        ("lower", float("nan"), True),
    ],
)
def test_a_metric_worsens_only_beyond_its_tolerance(direction, value, worse):
    assert metric(value=value, direction=direction).worsened(2.0) is worse


def test_an_absolute_tolerance_is_in_the_metrics_unit():
    error = metric(value=0.4, direction="lower", tolerance=0.5, absolute=True)
    assert not error.worsened(0.0)
    assert metric(value=0.6, direction="lower", tolerance=0.5, absolute=True).worsened(0.0)


def test_goal_follows_direction():
    assert metric(value=2.0, goal=2.0).reaches_goal()
    assert not metric(value=1.9, goal=2.0).reaches_goal()
    assert not metric(value=2.1, goal=2.0, direction="lower").reaches_goal()


def verdict(metrics, baseline, complete=True, blocked=()):
    return gate.failures({"lie": metrics}, {"lie": baseline}, complete=complete, blocked=dict(blocked))


def test_gate_opens_when_nothing_worsened():
    assert verdict([metric(value=1.9)], {"exp/1e5": 2.0}) == []


def test_gate_names_the_regression():
    (line,) = verdict([metric(value=1.0), metric("log/1e5", 3.0)], {"exp/1e5": 2.0, "log/1e5": 3.0})
    assert "exp/1e5" in line
    assert "baseline 2" in line


def test_gate_fails_on_a_metric_without_baseline():
    assert "no baseline" in verdict([metric()], {})[0]


def test_gate_fails_on_what_was_not_measured_in_a_complete_run_only():
    assert "not measured" in verdict([], {"exp/1e5": 2.0})[0]
    assert verdict([], {"exp/1e5": 2.0}, complete=False) == []


def test_gate_fails_when_a_peer_is_absent():
    assert verdict([], {"exp/1e5": 2.0}, blocked={"lie": "jaxlie is not installed"}) == [
        "lie: not run, jaxlie is not installed"
    ]


def test_baseline_keeps_what_was_not_measured_again(tmp_path):
    path = tmp_path / "baseline.json"
    assert gate.load(path) == {}
    gate.save({"lie": [metric("a", 1.0), metric("b", 2.0)], "ot": [metric("c", 3.0)]}, {"cores": "2"}, path)
    gate.save({"lie": [metric("a", 1.23456789)]}, {"cores": "4"}, path)
    assert gate.load(path) == {"lie": {"a": 1.235, "b": 2.0}, "ot": {"c": 3.0}}
    assert json.loads(path.read_text())["machine"] == {"lie": {"cores": "4"}, "ot": {"cores": "2"}}


def test_committed_baseline_belongs_to_benchmarks_that_exist():
    assert set(gate.load()) <= set(command.discover())


def test_benchmarks_are_found_by_file_name(tmp_path):
    for name in ("bench_ot.py", "accuracy_lie.py", "harness.py"):
        (tmp_path / name).touch()
    assert command.discover(tmp_path) == {"ot": "benchmarks.bench_ot", "accuracy_lie": "benchmarks.accuracy_lie"}
    assert {"lie", "accuracy_lie"} <= set(command.discover())


def test_unknown_name_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["no_such"])
    assert stop.value.code == 2
    assert "accuracy_lie" in capsys.readouterr().err


class Fake:
    """A benchmark whose measurements are given."""

    def __init__(self, *found, missing=None):
        self.found, self.missing = found, missing

    def measure(self, options):
        yield from (found for found in self.found if options.wants(found.name))
        if self.missing:
            harness.peer(self.missing)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command on one fake benchmark against one fake baseline; returns the exit status."""
    path = tmp_path / "baseline.json"

    def run(fake, baseline, *arguments):
        gate.save({"fake": [metric(name, value) for name, value in baseline.items()]}, {}, path)
        monkeypatch.setattr(command, "discover", lambda: {"fake": "fake"})
        monkeypatch.setattr(command, "load", lambda module: fake)
        monkeypatch.setattr(harness, "copy_rate", lambda: 1e9)
        monkeypatch.setattr(gate, "load", lambda: json.loads(path.read_text())["metrics"])
        return command.main(["fake", *arguments])

    return run


def test_command_exits_with_the_verdict(run, capsys):
    assert run(Fake(metric("a", 2.0)), {"a": 2.0}, "--gate") == 0
    assert "gate: passed" in capsys.readouterr().out
    assert run(Fake(metric("a", 1.0)), {"a": 2.0}, "--gate") == 1
    assert "gate: failed" in capsys.readouterr().out
    assert run(Fake(metric("a", 1.0)), {"a": 2.0}) == 0  # without --gate it only reports
    assert run(Fake(metric("a", 2.0)), {"a": 2.0, "b": 1.0}, "--gate") == 1
    assert run(Fake(metric("a", 2.0)), {"a": 2.0, "b": 1.0}, "--gate", "--quick") == 0
    assert run(Fake(metric("a", 2.0), metric("b", 0.1)), {"a": 2.0, "b": 1.0}, "--gate", "--only", "a") == 0


def test_command_says_which_package_is_missing(run, capsys):
    assert run(Fake(metric("a", 2.0), missing="no_such_peer"), {"a": 2.0}, "--gate") == 1
    assert "no_such_peer is not installed: pip install" in capsys.readouterr().out


def test_command_writes_records(run, tmp_path):
    run(Fake(metric("a", 2.0)), {"a": 2.0}, "--json", str(tmp_path / "out.json"))
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["metrics"]["fake"][0]["name"] == "a"
    assert document["machine"]["jax"] == jax.__version__


def test_interleaving_rotates_and_pairs_rounds():
    turns = []
    calls = {name: lambda name=name: turns.append(name) for name in "abc"}
    timings = harness.interleave(calls, rounds=6, shortest=0.0)
    measured = turns[-18:]
    assert [measured[3 * i] for i in range(6)] == list("abcabc")
    assert all(sorted(measured[3 * i : 3 * i + 3]) == list("abc") for i in range(6))
    assert all(len(seconds) == 6 for seconds in timings.seconds.values())


def test_ratio_is_the_median_of_paired_rounds():
    timings = harness.Timings({"ours": [1.0, 2.0, 10.0], "theirs": [2.0, 4.0, 30.0], "other": [9.0, 9.0, 9.0]})
    assert timings.ratio("theirs", "ours") == 2.0
    assert timings.fastest(["theirs", "other"]) == "theirs"


def test_quick_takes_fewer_rounds_and_only_selects():
    assert (Options().rounds(30), Options(quick=True).rounds(30), Options(quick=True).rounds(10)) == (30, 6, 5)
    assert Options(only=("so3",)).wants("so3.exp/1e5")
    assert not Options(only=("so3",)).wants("se3.exp/1e5")


def test_peer_reports_its_own_absence_only(monkeypatch):
    assert harness.peer("json") is json
    with pytest.raises(harness.Missing, match="no_such_peer is not installed"):
        harness.peer("no_such_peer")

    def broken(name):
        raise ModuleNotFoundError("No module named 'dependency'", name="dependency")

    monkeypatch.setattr(harness.importlib, "import_module", broken)
    with pytest.raises(ModuleNotFoundError, match="dependency"):
        harness.peer("peer_with_a_broken_dependency")


def test_versus_meets_the_faster_rival():
    found = harness.versus("square", jnp.square, {"power": lambda x: x**2}, (jnp.ones(3),), (jnp.ones(3),), rounds=5)
    assert found.name == "square"
    assert "power" in found.note
    assert found.value > 0


def test_compilation_is_measured_cold(monkeypatch):
    traced = []

    def function(x):
        traced.append(x)
        return jnp.sin(x)

    enabled = jax.config.values["jax_enable_compilation_cache"]
    timings = harness.compile_seconds({"sin": (function, (jnp.ones(3),))}, rounds=3)
    assert jax.config.values["jax_enable_compilation_cache"] is enabled
    assert len(traced) == 3  # traced anew in every round: nothing was taken from a cache
    assert len(timings.seconds["sin"]) == 3


def test_scratch_memory_is_reported():
    def sort_a_copy(x):
        return jnp.sort(x + 1)[::2]  # the sorted array is larger than the result: scratch

    assert harness.temporary_bytes(sort_a_copy, jnp.ones(1000, jnp.float32)) >= 4000


def test_the_page_follows_from_the_baseline():
    """`python -m benchmarks NAME --save` rebuilds it; nothing between its markers is typed by hand."""
    assert page.PAGE.read_text() == page.render(command.discover())


def test_the_page_shows_every_figure():
    machine = {"cores": "2", "processor": "P", "python": "3.11", "jax": "0.10", "jaxlie": "absent"}
    document = {"machine": {"lie": machine}, "metrics": {"lie": {"exp/1e5": 2.0, "exp/1e6": 3.456, "log/1e6": 1.0}}}
    lines = page.markdown(document, command.discover()).splitlines()
    assert lines[0] == "## `python -m benchmarks lie`"
    assert lines[4] == "2 cores (P), Python 3.11, jax 0.10."
    assert lines[-4:] == ["| | 1e5 | 1e6 |", "|---|---|---|", "| exp | 2 | 3.46 |", "| log |  | 1 |"]


def test_the_page_gives_each_group_a_table():
    machine = {"cores": "2", "processor": "P", "python": "3.11", "jax": "0.10"}
    metrics = {"exact/n8/gap": 0.0, "exact/n8/ms": 1.5, "line/n8": 2.0}
    page_of_groups = page.markdown({"machine": {"ot": machine}, "metrics": {"ot": metrics}}, {})
    exact, line = page_of_groups.split("\n\n")[-2:]
    assert exact.splitlines() == ["| exact | gap | ms |", "|---|---|---|", "| n8 | 0 | 1.5 |"]
    assert line.splitlines() == ["| line | figure |", "|---|---|", "| n8 | 2 |"]
