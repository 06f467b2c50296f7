"""One self-contained HTML page of all records, with a CSV and a BibTeX file: no script, no network, nothing typed."""

import base64
import csv
import html
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import tyro

from experiments.engine import curves, exits, experiment, files, results, table

_CSV = (
    *("experiment", "paper", "preset", "result", "mean", "sd", "seeds", "values", "published", "source", "certainty"),
    *("gate_low", "gate_high", "verdict", "minutes", "device", "commit", "run", "finished", "data_sha256"),
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the page cannot reach the network
_SHOWN = ("experiment", "preset", "config", "seeds", "rows", "minutes", "device", "versions", "commit")


@dataclass(frozen=True)
class _Options:
    """One HTML page from the kept records, with CSV and BibTeX beside it; rebuilds README.md and docs/results.md."""

    results: Path | None = None
    """Folder of records NAME/PRESET.json; default: docs/results of this checkout."""
    out: Path | None = None
    """Where the page goes; its CSV and BibTeX go beside it. Default: report.html in the folder of records."""


def command(arguments: list[str]) -> None:
    """python -m experiments report."""
    options = tyro.cli(_Options, args=arguments, prog="python -m experiments report")
    for path in rebuild((options.results or committed()).resolve(), options.out):
        print(path)


_ROOT = Path(__file__).resolve().parents[2]


def in_checkout() -> bool:
    """Whether this code lies in a checkout of haar, with its README and docs."""
    return (_ROOT / "README.md").exists() and (_ROOT / "docs").is_dir()


def committed() -> Path:
    """docs/results of the checkout that this code lies in; Refused outside one."""
    if not in_checkout():
        raise exits.Refused("this haar is not in a checkout, which holds docs/results; name a folder with --results")
    return _ROOT / "docs" / "results"


def rebuild(folder: Path, out: Path | None = None) -> list[Path]:
    """Writes what follows from the records in `folder`: the report, and README.md and docs/results.md if it is ours."""
    written = write(folder, out)
    if in_checkout() and folder == committed():
        pages = table.pages(_ROOT)
    else:
        kept = results.read(folder)
        pages = {folder / "results.md": table.summary(kept, results.not_run(kept))}
    for path, text in pages.items():
        files.write_bytes(path, text.encode())
    return [*pages, *written]


def write(folder: Path, out: Path | None = None) -> list[Path]:
    """Writes the page, CSV and BibTeX of the records in `folder`; returns their paths."""
    if not folder.is_dir():
        raise exits.Refused(f"{folder}, where records are expected, is no folder")
    out = out or folder / "report.html"
    if out.suffix != ".html":
        raise exits.Refused(f"--out {out}: expected a file that ends in .html")
    kept = results.read(folder)
    missing = results.not_run(kept)
    contents = {".html": page(kept, missing), ".csv": spreadsheet(kept, missing), ".bib": bibliography(kept)}
    with exits.refusing_full_disk(out.parent):
        out.parent.mkdir(parents=True, exist_ok=True)
        for ending, text in contents.items():
            files.write_bytes(out.with_suffix(ending), text.encode())
    return [out.with_suffix(ending) for ending in contents]


def spreadsheet(kept: Sequence[results.Kept], missing: Sequence[str]) -> str:
    """Every number of every record as CSV, at full precision; experiments not run have a line that says so."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for record in kept:
        content = record.content
        run = (content["minutes"], record.device, content["commit"], content.get("id", ""), content.get("finished", ""))
        for line in record.lines:
            published = ("" if line.published is None else line.published, line.source, line.certainty)
            limits = (low if math.isfinite(low) else "" for low in (line.low, line.high))
            values = " ".join(map(repr, line.ours))
            spread = "" if line.spread is None else line.spread
            ours = (line.name, line.mean, spread, len(line.ours), values)
            source = (record.name, experiment.paper(record.name), record.preset)
            digest = content.get("data_sha256", "")
            writer.writerow((*source, *ours, *published, *limits, line.verdict, *run, digest))
    for name in missing:
        row = dict.fromkeys(_CSV, "") | {"experiment": name, "paper": experiment.paper(name), "verdict": "not run"}
        writer.writerow(row.values())
    return text.getvalue()


def bibliography(kept: Sequence[results.Kept]) -> str:
    """The BibTeX entries of the papers whose results were run."""
    known = experiment.names()
    entries = {experiment.load(record.name).bibtex for record in kept if record.name in known}
    return "\n\n".join(sorted(entries - {""})) + "\n"


def page(kept: Sequence[results.Kept], missing: Sequence[str]) -> str:
    """The HTML page."""
    style = resources.files("experiments.engine").joinpath("page.css").read_text()
    sections = [_section(record) for record in kept]
    absent = "".join(
        f'<li id="{_escape(name)}"><strong>{_escape(name)}</strong> {_escape(experiment.load(name).claim)}</li>'
        for name in missing
    )
    if absent:
        sections.append(f'<section id="not-run"><h2>Not run</h2><ul>{absent}</ul></section>')
    csv_link = _data_link("text/csv", spreadsheet(kept, missing))
    bib_link = _data_link("application/x-bibtex", bibliography(kept))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<title>haar: reproduced results</title><link rel="icon" href="data:,">'
        f"<style>\n{style}</style></head>\n<body><header><h1>haar: reproduced results</h1>"
        '<p class="soft">Built from the records of runs alone: no number, no verdict is typed by hand. A result passes '
        "if every seed lies inside its gate.</p>"
        f'<p><a class="button" download="haar-results.csv" href="{csv_link}">All numbers, CSV</a>'
        f'<a class="button" download="haar-papers.bib" href="{bib_link}">Papers, BibTeX</a></p></header>\n'
        f"<main>{_overview(kept, missing)}\n" + "\n".join(sections) + "</main></body></html>\n"
    )


def _overview(kept: Sequence[results.Kept], missing: Sequence[str]) -> str:
    rows = []
    for record in kept:
        gated = [line for line in record.lines if line.verdict]
        passed = sum(line.verdict == "pass" for line in gated)
        kind = "pass" if passed == len(gated) else "fail"
        verdict = f'<span class="{kind}">{passed} of {len(gated)} pass</span>' if gated else "no gates"
        link = f'<a href="#{_anchor(record)}">{_escape(record.name)}</a>'
        run = [f"{record.preset}, {_seeds(record)}", f"{record.content['minutes']:.1f}", _escape(record.device)]
        commit = f"<code>{_escape(record.commit)}</code>"
        rows.append((link, _escape(experiment.paper(record.name)), verdict, *run, commit))
    for name in missing:
        link = f'<a href="#{_escape(name)}">{_escape(name)}</a>'
        rows.append((link, _escape(experiment.paper(name)), '<span class="none">not run</span>', "", "", "", ""))
    if not rows:
        return "<p>No experiment is registered and no record was found.</p>"
    header = ("experiment", "paper", "gates", "preset", "minutes", "device", "commit")
    return "<section><h2>Overview</h2>" + _table(header, rows) + "</section>"


def _section(record: results.Kept) -> str:
    content, known = record.content, record.name in experiment.names()
    chosen = experiment.load(record.name) if known else None
    claim = chosen.claim if chosen else "This experiment is no longer registered."
    parts = [
        f'<section id="{_anchor(record)}"><h2>{_escape(record.name)}, {record.preset}</h2><p>{_escape(claim)}</p>',
        f'<p class="soft">{_seeds(record)}, {content["minutes"]:.1f} minutes on {_escape(record.device)}, commit '
        f"<code>{_escape(content['commit'])}</code>{_finished(record)}.</p>",
    ]
    if record.figure:
        drawn = (chosen.module.figure.__doc__ if chosen else "") or ""
        alternative = f"Figure of {record.name}, preset {record.preset}. {' '.join(drawn.split())}".strip()
        image = base64.b64encode(record.figure.read_bytes()).decode()
        parts.append(f'<figure><img alt="{_escape(alternative)}" src="data:image/png;base64,{image}"></figure>')
    rows = [(*map(_escape, row[:4]), _verdict(row[4])) for row in map(table.cells, record.lines)]
    parts.append(_table(table.COLUMNS, rows))
    parts.append(_curves(record))
    parts.append(_per_seed(record))
    parts.append(_details("Config", _pairs(content["config"])))
    more = {key: value for key, value in content.items() if key not in _SHOWN}
    parts.append(_details("Provenance", _pairs({"versions": content["versions"], "device": content["device"], **more})))
    if chosen and chosen.bibtex:
        parts.append(_details("BibTeX", f"<pre>{_escape(chosen.bibtex)}</pre>"))
    return "".join(parts) + "</section>"


def _curves(record: results.Kept) -> str:
    if not record.curves:
        return '<p class="soft">No learning curves were kept with this record.</p>'
    drawn = [picture for picture in curves.pictures(results.curves(record.curves)) if picture]
    if not drawn:
        return ""
    band = "; the band goes from the smallest to the largest" if len(record.content["seeds"]) > 1 else ""
    note = f'<p class="soft">Median over seeds{band}.</p>' if band else ""
    return f'<h3>Learning curves</h3>{note}<div class="grid-of-curves">{"".join(drawn)}</div>'


def _per_seed(record: results.Kept) -> str:
    seeds = [str(seed) for seed in record.content["seeds"]]
    rows = [(_escape(line.name), *(f"{value:.6g}" for value in line.ours)) for line in record.lines]
    return _details("Every seed", _table(("result", *(f"seed {seed}" for seed in seeds)), rows))


def _details(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>{body}</details>"


def _pairs(values: dict) -> str:
    """A definition list; what is nested becomes compact JSON or dotted fields."""
    items = []
    for key, value in values.items():
        if isinstance(value, dict):
            items += [(f"{key}.{inner}", content) for inner, content in value.items()]
        else:
            items.append((key, value))
    shown = (value if isinstance(value, str) else json.dumps(value) for _, value in items)
    lines = (f"<dt>{_escape(key)}</dt><dd>{_escape(text)}</dd>" for (key, _), text in zip(items, shown, strict=True))
    return f"<dl>{''.join(lines)}</dl>"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already; each carries its column's name, which a phone shows beside it."""
    head = "".join(f'<th scope="col">{_escape(name)}</th>' for name in header)
    body = "".join(
        "<tr>"
        + "".join(f'<td data-label="{_escape(name)}">{cell}</td>' for name, cell in zip(header, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _verdict(text: str) -> str:
    if not text:
        return ""
    return (
        f'<span class="{"pass" if text == "pass" else "fail"}">{"✓" if text == "pass" else "✗"} {_escape(text)}</span>'
    )


def _anchor(record: results.Kept) -> str:
    return f"{_escape(record.name)}-{record.preset}"


def _seeds(record: results.Kept) -> str:
    count = len(record.content["seeds"])
    return f"{count} seed{'s'[: count > 1]}"


def _finished(record: results.Kept) -> str:
    return f", finished {_escape(record.content['finished'])}" if record.content.get("finished") else ""


def _data_link(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def _escape(text: object) -> str:
    return html.escape(str(text), quote=True)
