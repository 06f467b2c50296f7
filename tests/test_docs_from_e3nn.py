"""The code on docs/from_e3nn.md runs from top to bottom, and is as short as it says."""

import importlib.util
import re
import warnings
from pathlib import Path

import jax

PAGE = Path(__file__).resolve().parents[1] / "docs" / "from_e3nn.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_code_on_the_page_runs():
    namespace, ran = {"__name__": "page"}, 0
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():  # as a reader runs it
        warnings.simplefilter("ignore")
        for block in BLOCKS:
            libraries = re.findall(r"^import (\w+)", block, re.MULTILINE)
            if all(importlib.util.find_spec(library) for library in libraries):
                exec(compile(block, str(PAGE), "exec"), namespace)
                ran += 1
    assert ran >= len(BLOCKS) - 1  # Equinox may be missing


def test_the_layer_is_replaced_in_ten_lines_and_each_model_is_twenty_long():
    lines = lambda text: [line for line in text.splitlines() if line.strip() and not line.startswith("assert")]
    (wrapper,) = [block for block in BLOCKS if "on_irreps(layer" in block]
    assert len(lines(wrapper)) < 10
    classes = re.findall(r"^class (\w*Network)\b.*?(?=^\S)", "".join(BLOCKS), re.DOTALL | re.MULTILINE)
    bodies = re.findall(r"^class \w*Network\b.*?(?=^\S)", "".join(BLOCKS), re.DOTALL | re.MULTILINE)
    assert classes == ["Network", "LinenNetwork", "EquinoxNetwork"]
    assert all(len(lines(body)) <= 20 for body in bodies)
