"""Which run a command means: the preset and eight hex digits of its config's hash name the folder."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from experiments.engine.exits import Refused


def plain(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON-ready plain data."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def rebuild(config_class: Any, plain: dict[str, Any]) -> Any:
    """A config from the plain data that `identity.plain` made of it; Refused if a field is not the class's."""
    try:
        return config_class(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
        )
    except TypeError as error:
        raise Refused(f"the config does not fit today's code: {error}") from error


def run_id(preset: str, description: Mapping[str, Any]) -> str:
    """`preset`-`hash`; the same description gives the same id in every process and on every machine."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return f"{preset}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines `field: old -> new` for every field that differs, nested fields joined by dots."""
    lines = []
    for field in sorted({*old, *new}):
        before, after = old.get(field, "(absent)"), new.get(field, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += [f"{field}.{line}" for line in difference(before, after)]
        elif before != after:
            lines.append(f"{field}: {before} -> {after}")
    return lines
