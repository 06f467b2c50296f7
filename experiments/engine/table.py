"""Records as tables: on the terminal, in docs/results.md and in the README; a verdict is computed, never typed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.engine import experiment as registry
from experiments.engine import files

_COLUMNS = ("result", "ours", "published", "gate", "verdict")
_CERTAINTY = {
    "verified": "verified",
    "memory": "quoted from memory",
    "analytic": "analytic",
    "calibrated": "calibrated by us",
    "": "",
}
_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"


def show(record: dict[str, Any]) -> None:
    """Prints the table of one run."""
    table = Table(title=f"{record['experiment']}, preset {record['preset']}, seeds {record['seeds']}")
    for column in _COLUMNS:
        table.add_column(column)
    for row in record["rows"]:
        table.add_row(*_cells(row))
    Console().print(table)


def verdict(row: dict[str, Any]) -> str:
    """'pass' if every seed lies inside the gate, else how many do; '' where there is no gate."""
    if row["gate"] is None:
        return ""
    inside, seeds = row["passed"], len(row["ours"])
    return "pass" if inside == seeds else f"FAIL ({inside} of {seeds} seeds inside)"


def markdown(records: Sequence[dict[str, Any]], missing: Sequence[str]) -> str:
    """All records as one Markdown table, and the results that were not run."""
    lines = [
        "| experiment | result | ours | published | gate | verdict | preset, seeds | minutes | device | commit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        device = f"{record['device']['count']} x {record['device']['kind']}"
        run = (
            f"{record['preset']}, {len(record['seeds'])} | {record['minutes']:.1f} | {device} | {record['commit'][:8]}"
        )
        for row in record["rows"]:
            name, ours, published, gate, passed = (cell.replace("|", "\\|") for cell in _cells(row))
            lines.append(f"| {record['experiment']} | {name} | {ours} | {published} | {gate} | {passed} | {run} |")
    lines += [f"| {name} | not run | | | | | | | | |" for name in missing]
    return "\n".join(lines) + "\n"


def records(folder: Path) -> list[dict[str, Any]]:
    """The committed records docs/results/<name>/<preset>.json, by name, longest preset last."""
    order = ("smoke", "cpu", "paper")
    paths = sorted(folder.glob("*/*.json"), key=lambda path: (path.parent.name, order.index(path.stem)))
    return [files.read_json(path) for path in paths]


def pages(root: Path) -> dict[Path, str]:
    """The generated pages, README.md and docs/results.md, as they follow from the committed records."""
    found = records(root / "docs" / "results")
    missing = sorted(set(registry.names()) - {record["experiment"] for record in found})
    body = markdown(found, missing)
    readme = (root / "README.md").read_text()
    head, rest = readme.split(_BEGIN)
    _, tail = rest.split(_END)
    return {
        root / "README.md": f"{head}{_BEGIN}\n{body}{_END}{tail}",
        root / "docs" / "results.md": "# Results\n\nRebuilt from the records in `results/` by "
        "`python -m experiments reproduce`; nothing here is typed by hand.\n\n" + body,
    }


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str, str]:
    ours = f"{row['mean']:.4g}" + (f" ± {row['sd']:.2g}" if row["sd"] is not None else "")
    published = (
        "" if row["published"] is None else f"{row['published']:.4g} ({_CERTAINTY[row['certainty']]}: {row['source']})"
    )
    gate = ""
    if row["gate"] is not None:
        low, high = row["gate"]
        gate = f"<= {high:.4g}" if low is None else f">= {low:.4g}" if high is None else f"{low:.4g} to {high:.4g}"
    return row["name"], ours, published, gate, verdict(row)
