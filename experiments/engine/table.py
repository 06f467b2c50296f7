"""Records as tables: on the terminal, in docs/results.md and in the README; a verdict is computed, never typed."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from experiments.engine import experiment as registry
from experiments.engine import results
from experiments.engine.exits import Refused

COLUMNS = ("result", "ours", "published", "gate", "verdict")
CERTAINTY = {
    "verified": "verified",
    "memory": "quoted from memory",
    "analytic": "analytic",
    "calibrated": "calibrated by us",
    "": "",
}
_RUN_COLUMNS = ("preset, seeds", "minutes", "device", "commit")
_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"


def show(record: dict[str, Any]) -> None:
    """Prints the table of one run."""
    table = Table(title=f"{record['experiment']}, preset {record['preset']}, seeds {record['seeds']}")
    for column in COLUMNS:
        table.add_column(column)
    for row in record["rows"]:
        table.add_row(*cells(results.line(row)))
    Console().print(table)


def markdown(kept: Sequence[results.Kept], missing: Sequence[str], brief: bool = False) -> str:
    """Records as one Markdown table, and what was not run; a run's own cells stand in its first row.

    `brief` shows of each record its `headlines` and how many gates hold, as the README does.
    """
    header = ("experiment", "paper", *COLUMNS, *_RUN_COLUMNS)
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for record in kept:
        run = [f"{record.preset}, {len(record.content['seeds'])}", f"{record.content['minutes']:.1f}"]
        run += [record.device, record.commit]
        paper = registry.paper(record.name)
        shown = headlines(record.lines) if brief else record.lines
        for line in shown:
            row = [record.name, paper, *cells(line), *run]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
            paper, run = "", [""] * len(run)
        if len(shown) < len(record.lines):
            gated = [line for line in record.lines if line.gated]
            held = sum(line.verdict == "pass" for line in gated)
            everything = f"[all {len(record.lines)} rows](docs/results.md): {held} of {len(gated)} gates hold"
            lines.append(f"| {record.name} | | {everything} |" + " |" * (len(header) - 3))
    for name in missing:
        lines.append(f"| {name} | {registry.paper(name)} | not run |" + " |" * (len(header) - 3))
    return "\n".join(lines) + "\n"


def headlines(lines: Sequence[results.Line], most: int = 3) -> list[results.Line]:
    """The lines that say most, in their order: every failure, then what has a published value, what has a gate."""
    weight = lambda line: (line.verdict.startswith("FAIL"), line.published is not None, line.gated)
    failures = sum(weight(line)[0] for line in lines)
    chosen = sorted(range(len(lines)), key=lambda i: weight(lines[i]), reverse=True)[: max(most, failures)]
    return [lines[i] for i in sorted(chosen)]


def summary(kept: Sequence[results.Kept], missing: Sequence[str]) -> str:
    """Markdown of a folder of records, headed."""
    return (
        "# Results\n\nRebuilt from the records in `results/` by "
        "`python -m experiments reproduce`; nothing here is typed by hand.\n\n" + markdown(kept, missing)
    )


def pages(root: Path) -> dict[Path, str]:
    """The generated pages, README.md and docs/results.md, as they follow from the committed records."""
    kept = results.read(root / "docs" / "results")
    missing = results.not_run(kept)
    readme = (root / "README.md").read_text()
    if readme.count(_BEGIN) != 1 or readme.count(_END) != 1:
        raise Refused(f"{root / 'README.md'}: expected one {_BEGIN} and one {_END}, between which the table goes")
    head, rest = readme.split(_BEGIN)
    _, tail = rest.split(_END)
    return {
        root / "README.md": f"{head}{_BEGIN}\n{markdown(kept, missing, brief=True)}{_END}{tail}",
        root / "docs" / "results.md": summary(kept, missing),
    }


def cells(line: results.Line) -> tuple[str, str, str, str, str]:
    """What the columns `COLUMNS` say of one number."""
    ours = f"{line.mean:.4g}" + (f" ± {line.spread:.2g}" if line.spread is not None else "")
    published = ""
    if line.published is not None:
        origin = ": ".join(filter(None, (CERTAINTY.get(line.certainty, line.certainty), line.source)))
        published = f"{line.published:.4g}" + (f" ({origin})" if origin else "")
    return line.name, ours, published, gate(line), line.verdict


def gate(line: results.Line) -> str:
    """The interval in which every seed must lie."""
    if not line.gated:
        return ""
    if math.isinf(line.low):
        return f"<= {line.high:.4g}"
    return f">= {line.low:.4g}" if math.isinf(line.high) else f"{line.low:.4g} to {line.high:.4g}"
