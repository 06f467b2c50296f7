"""docs/benchmarks.md from the committed baseline: one table for each benchmark, with the machine it was measured on."""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import gate

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_BEGIN, _END = "<!-- baseline: begin -->\n", "<!-- baseline: end -->\n"
_VERSIONS = ("jax", "jaxlie", "e3nn-jax", "e3x", "ott-jax", "cuequivariance-jax")


def render(modules: Mapping[str, str], page: Path = PAGE, baseline: Path = gate.BASELINE) -> str:
    """The page with everything between its two markers rebuilt; `modules` names the file of each benchmark."""
    head, rest = page.read_text().split(_BEGIN)
    _, tail = rest.split(_END)
    return head + _BEGIN + markdown(json.loads(baseline.read_text()), modules) + _END + tail


def markdown(document: Mapping[str, Any], modules: Mapping[str, str]) -> str:
    """A section for each benchmark of the baseline: what its file says of itself, its machine, its figures."""
    sections = []
    for name, figures in sorted(document["metrics"].items()):
        machine = document["machine"][name]
        versions = ", ".join(f"{key} {machine[key]}" for key in _VERSIONS if machine.get(key, "absent") != "absent")
        where = f"{machine['cores']} cores ({machine['processor']}), Python {machine['python']}, {versions}"
        summary = _summary(modules[name]) if name in modules else ""
        sections.append(f"## `python -m benchmarks {name}`\n\n{summary}\n\n{where}.\n\n{_tables(figures)}\n")
    return "\n".join(sections)


def _tables(figures: Mapping[str, float]) -> str:
    """One table, or where names are `group/case/variant` one for each group."""
    if not any(name.count("/") == 2 for name in figures):
        return _table("", figures)
    groups: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = value
    return "\n\n".join(_table(group, rest) for group, rest in groups.items())


def _table(corner: str, figures: Mapping[str, float]) -> str:
    """Names `operation/variant` as rows and columns."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in figures.items():
        operation, _, variant = name.partition("/")
        rows.setdefault(operation, {})[variant] = value
    columns = list(dict.fromkeys(variant for row in rows.values() for variant in row))
    head = [corner, *(column or "figure" for column in columns)]
    lines = ["|" + "|".join(f" {title} " if title else " " for title in head) + "|"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for operation, row in rows.items():
        cells = (f"{row[column]:.3g}" if column in row else "" for column in columns)
        lines.append(f"| {operation} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _summary(module: str) -> str:
    """The first line of a benchmark's docstring, read without importing it: its peers may be absent."""
    path = Path(__file__).with_name(module.rpartition(".")[2] + ".py")
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
