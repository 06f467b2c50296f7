"""Kept programs: a second start traces nothing and computes the same; what might have changed is traced anew."""

import pytest
import small_experiment as small

from experiments.engine import run, traced


@pytest.fixture
def start(tmp_path, monkeypatch):
    """start(config) runs an experiment of the package in a new folder: (how often it was traced, its metrics)."""
    monkeypatch.setenv("HAAR_CACHE", str(tmp_path / "cache"))
    traces = []

    def advance(*arguments):
        traces.append(1)
        return small.advance(*arguments)

    def one(config, **changes):
        traces.clear()
        chosen = small.experiment(advance=advance, __name__="experiments.small", **changes)
        folder = run.run(chosen, config, small.request(tmp_path / f"run{len(list(tmp_path.iterdir()))}"))
        return len(traces), small.metrics(folder)

    return one


def test_second_start_traces_nothing_and_ends_the_same(start, tmp_path):
    first, second = start(small.Config(5)), start(small.Config(5))
    assert (first[0], second[0]) == (1, 0)
    assert first[1] == second[1]
    (kept,) = (tmp_path / "cache" / "programs").iterdir()
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), content[:40], b""):
        kept.write_bytes(damaged)
        assert start(small.Config(5)) == first


def test_another_config_or_other_code_is_traced_anew(start, monkeypatch):
    slow = start(small.Config(5))
    fast = start(small.Config(5, rate=0.2))
    assert slow[0] == fast[0] == 1
    assert slow[1] != fast[1]
    monkeypatch.setattr(traced, "_sources", lambda: "an edited file")
    assert start(small.Config(5))[0] == 1


def test_experiments_of_others_are_always_traced(tmp_path, monkeypatch):
    monkeypatch.setenv("HAAR_CACHE", str(tmp_path / "cache"))
    run.run(small.experiment(__name__="mine.small"), small.Config(2), small.request(tmp_path / "run"))
    assert not (tmp_path / "cache").exists()
