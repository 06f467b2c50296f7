"""docs/from_jaxlie.md names all that is public in jaxlie, and each of our names on it exists."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "from_jaxlie.md").read_text(encoding="utf-8")
OURS = ("so2", "se2", "so3", "se3", "su2", "euclidean", "sphere", "charts", "group", "optimizers")
GROUPS = ("SO2", "SE2", "SO3", "SE3")


def test_every_public_name_of_jaxlie_is_on_the_page():
    jaxlie = pytest.importorskip("jaxlie")
    missing = []
    for name in GROUPS:
        kind = getattr(jaxlie, name)
        members = {member for member in dir(kind) if not member.startswith("_")}
        members |= {entry.name for entry in dataclasses.fields(kind)} | {"__matmul__"}
        shared = set.intersection(*(set(dir(getattr(jaxlie, other))) for other in GROUPS))
        for member in members:
            written = f"`{name}.{member}`" in PAGE or (member in shared and f"`G.{member}`" in PAGE)
            missing += [] if written else [f"{name}.{member}"]
    missing += [
        f"manifold.{name}"
        for name in dir(jaxlie.manifold)
        if not name.startswith("_") and f"`manifold.{name}`" not in PAGE
    ]
    missing += [
        name
        for name in dir(jaxlie)
        if not name.startswith("_") and f"`{name}`" not in PAGE and f"`jaxlie.{name}`" not in PAGE
    ]
    assert not missing, missing


def our_names():
    code = " ".join(re.findall(r"`([^`]+)`", PAGE))
    return sorted(set(re.findall(rf"(?<![\w.])((?:{'|'.join(OURS)})\.\w+)", code)))


def test_the_page_maps_to_many_names():
    assert len(our_names()) > 40


@pytest.mark.parametrize("name", our_names())
def test_each_of_our_names_exists(name):
    module, attribute = name.split(".")
    assert hasattr(importlib.import_module(f"lie.{module}"), attribute)
