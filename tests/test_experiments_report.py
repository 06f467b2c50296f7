"""The report and the tables: they follow from records alone and refuse what contradicts itself."""

import copy
import csv
import html.parser
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from experiments.engine import curves, exits, experiment, files, report, results, table

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = ROOT / "docs" / "results"
ROW = {
    "name": 'error <of> "two" | kinds',
    "ours": [0.5, 2.0],
    "mean": 1.25,
    "sd": 1.06,
    "published": 1.0,
    "source": "Table 9",
    "certainty": "memory",
    "gate": [None, 1.0],
    "passed": 1,
}
RECORD = {
    "experiment": "nbody",
    "preset": "smoke",
    "id": "smoke-01234567",
    "config": {"epochs": 3},
    "seeds": [0, 1],
    "rows": [ROW],
    "minutes": 0.5,
    "device": {"kind": "cpu", "count": 1},
    "versions": {"jax": "0.10"},
    "commit": "0123456789abcdef",
}
CURVES = """seed,block,epoch,a_loss,b_loss,accuracy
0,1,5,1,0.1,nan
0,2,10,0.01,0.1,0.5
1,1,5,2,0.2,0.1
1,2,10,0.02,0.1,0.4
"""


@pytest.fixture
def folder(tmp_path):
    """One record that fails, with the committed picture and two seeds' curves."""
    place = tmp_path / "results" / "nbody"
    place.mkdir(parents=True)
    (place / "smoke.json").write_text(json.dumps(RECORD))
    (place / "smoke.csv").write_text(CURVES)
    shutil.copy(COMMITTED / "nbody" / "cpu.png", place / "smoke.png")
    return tmp_path / "results"


class Page(html.parser.HTMLParser):
    """Elements and their attributes; complains about what is not closed in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text, self.balanced = [], [], "", True
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.balanced &= bool(self.open) and self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_stands_alone(page: Page) -> None:
    assert page.balanced
    assert not page.open
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "base", "form"}
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            if name in attributes:
                target = attributes[name]
                assert target.startswith("data:") or (target[0] == "#" and target[1:] in identifiers), (
                    tag,
                    target[:80],
                )
        if tag == "img":
            assert len(attributes["alt"]) > 20
        if tag == "svg":
            assert attributes["aria-label"]


def test_report_of_the_committed_records_stands_alone_and_shows_every_experiment():
    kept = results.read(COMMITTED)
    text = report.page(kept, results.not_run(kept))
    page = Page(text)
    check_stands_alone(page)
    assert "url(" not in text
    assert "http" not in text.replace("http-equiv", "")
    for name in experiment.names():
        assert name in page.text
        assert html.unescape(experiment.load(name).claim) in page.text
    pictures = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == sum(record.figure is not None for record in kept)
    for record in kept:
        for line in record.lines:
            for cell in table.cells(line):
                assert cell in page.text, f"{record.name}: {cell}"


def test_report_says_what_failed_and_what_was_not_run(folder):
    kept = results.read(folder)
    text = report.page(kept, results.not_run(kept))
    page = Page(text)
    check_stands_alone(page)
    assert "✗ FAIL (1 of 2 seeds inside)" in page.text
    assert "0 of 1 pass" in page.text
    assert 'error <of> "two" | kinds' in page.text  # escaped, so that it is text again
    assert "not run" in page.text
    assert "0.5 to" not in page.text
    assert text == report.page(results.read(folder), results.not_run(kept))


def test_report_csv_and_bibtex_are_written_beside_the_page(folder, tmp_path):
    paths = report.write(folder, tmp_path / "new" / "page.html")
    assert [path.name for path in paths] == ["page.html", "page.csv", "page.bib"]
    first, *others = list(csv.DictReader(io.StringIO(paths[1].read_text())))
    assert [float(value) for value in first["values"].split()] == ROW["ours"]
    assert first["result"] == ROW["name"]
    assert (first["gate_low"], first["gate_high"], first["verdict"]) == ("", "1.0", "FAIL (1 of 2 seeds inside)")
    assert {row["experiment"] for row in others} == set(experiment.names()) - {"nbody"}
    assert {row["verdict"] for row in others} <= {"not run"}
    assert "E(n) Equivariant Graph Neural Networks" in paths[2].read_text()
    assert (image.imread(folder / "nbody" / "smoke.png").ndim) == 3


def test_empty_folder_of_records_gives_a_report_of_what_was_not_run(tmp_path):
    page = Page(report.write(tmp_path)[0].read_text())
    check_stands_alone(page)
    assert page.text.count("not run") >= len(experiment.names())
    with pytest.raises(exits.Refused, match="is no folder"):
        report.write(tmp_path / "absent")
    with pytest.raises(exits.Refused, match=r"ends in \.html"):
        report.write(tmp_path, tmp_path / "report.pdf")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["rows"][0].update(passed=2), "2 seeds are said to pass, its values and gate say 1"),
        (lambda r: r["rows"][0].update(ours=[0.5]), "1 values for 2 seeds"),
        (lambda r: r["rows"][0].update(ours=[0.5, "good"]), "no number"),
        (lambda r: r["rows"][0].update(gate=[1.0]), r"a gate is \[low, high\]"),
        (lambda r: r["rows"][0].pop("source"), "field 'source' is missing"),
        (lambda r: r.update(minutes="two"), "field 'minutes' is missing or of a wrong type"),
        (lambda r: r.pop("commit"), "field 'commit' is missing"),
        (lambda r: r.update(experiment="acac"), "is a record of acac, preset smoke"),
        (lambda r: r.update(rows=[3]), "expected a record, found int"),
    ],
)
def test_record_that_contradicts_itself_is_refused(folder, change, message):
    changed = copy.deepcopy(RECORD)
    change(changed)
    (folder / "nbody" / "smoke.json").write_text(json.dumps(changed))
    with pytest.raises(exits.Refused, match=message):
        results.read(folder)


def test_torn_record_and_strange_files_are_refused(folder):
    whole = (folder / "nbody" / "smoke.json").read_text()
    (folder / "nbody" / "smoke.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(exits.Refused, match=r"smoke\.json is damaged"):
        results.read(folder)
    (folder / "nbody" / "smoke.json").write_text(whole)
    (folder / "nbody" / "best.json").write_text(whole)
    with pytest.raises(exits.Refused, match=r"records are called smoke\.json, cpu\.json, paper\.json"):
        results.read(folder)


def test_not_a_number_is_a_failure_and_draws_a_gap(folder):
    row = ROW | {"ours": [math.nan, 0.5], "mean": math.nan, "passed": 1}
    free = ROW | {"name": "free", "ours": [math.nan, 1.0], "gate": None, "passed": None}
    (folder / "nbody" / "smoke.json").write_text(json.dumps(RECORD | {"rows": [row, free]}))
    (record,) = results.read(folder)
    assert [line.verdict for line in record.lines] == ["FAIL (1 of 2 seeds inside)", "FAIL (not finite)"]
    page = report.page([record], [])
    assert "nan ± nan" in page
    assert not re.search(r'points="[^"]*nan', page)


def test_curves_table_keeps_scalars_of_every_seed(tmp_path):
    blocks = 3 * results.BLOCKS
    metrics = {
        "epoch": np.tile(np.arange(1, blocks + 1), (2, 1)),
        "loss": np.random.default_rng(0).random((2, blocks)),
        'gain, "first" (bits)': np.ones((2, blocks)),
        "picture": np.zeros((2, blocks, 4, 4)),
    }
    path = tmp_path / "curves.csv"
    path.write_text(results._curves_table(metrics))
    columns = results.curves(path)
    assert set(columns) == {"seed", "block", "epoch", "loss", 'gain, "first" (bits)'}
    assert columns["loss"].shape == (2, results.BLOCKS)
    taken = columns["block"][0].astype(int) - 1
    assert (taken[0], taken[-1]) == (0, blocks - 1)
    np.testing.assert_allclose(columns["loss"], metrics["loss"][:, taken], rtol=1e-5)
    for bad in ("seed,block,loss\n0,1\n", "seed,block,loss\n0,1,many\n", "a,b\n0,1\n", ""):
        path.write_text(bad)
        with pytest.raises(exits.Refused, match="is no table of learning curves"):
            results.curves(path)


def test_metrics_with_one_end_share_a_picture():
    names = ["egnn_test_mse", "gnn_test_mse", "egnn_train_mse", "gnn_train_mse", "loss", "gap"]
    expected = {"test_mse": names[:2], "train_mse": names[2:4], "loss": ["loss"], "gap": ["gap"]}
    assert curves.groups(names) == expected


def test_curves_of_one_block_or_of_no_numbers_are_left_out():
    columns = {name: np.full((1, 3), np.nan) for name in ("loss",)}
    columns |= {"seed": np.zeros((1, 3)), "block": np.arange(3.0)[None]}
    assert curves.pictures(columns) == [""]
    assert curves.pictures({name: values[:, :1] for name, values in columns.items()}) == [""]
    constant = columns | {"loss": np.full((1, 3), -2.5)}
    assert "nan" not in curves.pictures(constant)[0]


@pytest.mark.parametrize("name", sorted(experiment.names()))
def test_every_experiment_cites_its_paper(name):
    entry = experiment.load(name).bibtex
    assert re.match(r"@\w+\{\w+,", entry), "BIBTEX is one entry: @type{key, ...}"
    assert entry.count("{") == entry.count("}")
    for field in ("title", "author", "year"):
        assert re.search(rf"\b{field}\s*=", entry), f"BIBTEX lacks {field}"


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1280,2000", "500,3000"])
def test_report_opens_in_a_browser_without_an_error(size, folder, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("no Chromium here")
    path = report.write(COMMITTED, tmp_path / "report.html")[0]
    picture = tmp_path / "picture.png"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--enable-logging=stderr", f"--window-size={size}", f"--screenshot={picture}"]
    run = subprocess.run([browser, *options, path.as_uri()], capture_output=True, text=True, timeout=120)
    assert ":CONSOLE" not in run.stderr, run.stderr
    seen = image.imread(picture)
    assert len(np.unique(seen.reshape(-1, seen.shape[-1]), axis=0)) > 100  # figures and curves are there
    assert files.read_json(COMMITTED / "nbody" / "cpu.json")["rows"]
