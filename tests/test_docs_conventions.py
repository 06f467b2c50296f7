"""The code on docs/conventions.md runs, and its assertions hold."""

import importlib.util
import re
import warnings
from pathlib import Path

import jax
import pytest

PAGE = Path(__file__).resolve().parents[1] / "docs" / "conventions.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=["scipy", "jaxlie", "e3nn"])
def test_code_on_the_page_of_conventions(block):
    for library in re.findall(r"^import (\w+)", block, re.MULTILINE):
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed")
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():  # as a reader runs it
        warnings.simplefilter("ignore")
        exec(compile(block, str(PAGE), "exec"), {})
