"""The house's rules, held by reading the source: where imports point, what nothing may contain, what all must have."""

import ast
import functools
import importlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {  # experiments -> {equivariant, ot} -> lie
    "lie": {"lie"},
    "equivariant": {"equivariant", "lie"},
    "ot": {"ot", "lie"},
    "experiments": {"experiments", "equivariant", "ot", "lie"},
}
LIBRARY = ["lie", "equivariant", "ot"]  # called by other people's code; experiments are programs
NUMERICAL = {"jax", "numpy", "jaxtyping"}
OUTSIDE = {"lie": NUMERICAL, "ot": NUMERICAL | {"scipy"}}  # what these two may import besides the standard library
ALSO = {"lie.optimizers": {"optax", "scipy"}, "lie.wigner": {"e3nn_jax"}}
LOOSE_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "core", "types", "misc"}
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
LINES = 450


def sources(*folders):
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def folder_of(path):
    return name_of(path.parent / "__init__.py")


@functools.cache
def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def place(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node).splitlines()[0]}"


def imports(path):
    """Every import in the file, those inside functions too: (node, full name of the module, imported names)."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node, "." * node.level + (node.module or ""), [alias.name for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node, str(node.args[0].value), []


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def test_imports_point_down_and_are_absolute():
    wrong = []
    for path in sources(*MAY_IMPORT):
        here = name_of(path).split(".")[0]
        for node, module, _ in imports(path):
            top = module.split(".")[0]
            if module.startswith(".") or (top in MAY_IMPORT and top not in MAY_IMPORT[here]):
                wrong.append(place(path, node))
    assert not wrong, "\n".join(wrong)


def test_our_modules_are_imported_as_modules():
    """`from lie import so3`, then `so3.exp`: a call site that reads as mathematics needs the namespace.

    Records and types (Capitalised) may come alone, and __init__ and __main__ may show what files below them define.
    """
    wrong = [
        place(path, node)
        for path in sources(*MAY_IMPORT, "benchmarks")
        for node, module, names in imports(path)
        if module.split(".")[0] in MAY_IMPORT
        and not (path.stem in ("__init__", "__main__") and module.startswith(f"{folder_of(path)}."))
        and not all(name.lstrip("_")[:1].isupper() or is_module(f"{module}.{name}") for name in names)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", sorted(OUTSIDE))
def test_lie_and_ot_need_little_from_outside(package):
    wrong = []
    for path in sources(package):
        name = name_of(path)
        also = {library for prefix, more in ALSO.items() if f"{name}.".startswith(f"{prefix}.") for library in more}
        allowed = OUTSIDE[package] | MAY_IMPORT[package] | also | sys.stdlib_module_names
        wrong += [place(path, node) for node, module, _ in imports(path) if module.split(".")[0] not in allowed]
    wrong = [line for line in wrong if "install_import_hook" not in line]
    assert not wrong, "\n".join(wrong)


def test_names_say_what_a_file_is_about():
    paths = sources(*MAY_IMPORT, "benchmarks", "tests")
    wrong = [str(path) for path in paths if LOOSE_NAMES & set(path.relative_to(ROOT).with_suffix("").parts)]
    assert not wrong, "\n".join(wrong)


def test_no_file_holds_two_ideas():
    lengths = {path: len(path.read_text().splitlines()) for path in sources(*MAY_IMPORT, "benchmarks", "tests", "docs")}
    wrong = [f"{path.relative_to(ROOT)}: {length} lines" for path, length in lengths.items() if length > LINES]
    assert not wrong, "\n".join(wrong)


def test_nothing_pickles():
    wrong = []
    for path in sources(*MAY_IMPORT, "benchmarks", "tests"):
        wrong += [place(path, node) for node, module, _ in imports(path) if module.split(".")[0] in PICKLES]
        wrong += [
            place(path, node)
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call)
            and any(k.arg == "allow_pickle" and not is_constant(k.value, False) for k in node.keywords)
        ]
    assert not wrong, "\n".join(wrong)


def is_constant(node, value):
    return isinstance(node, ast.Constant) and node.value is value


def is_tiny(node):
    """A literal like 1e-8, or a dtype's eps or tiny: what one adds where a singularity is not understood."""
    if isinstance(node, ast.Constant) and isinstance(node.value, float):
        return 0 < node.value <= 1e-6 or node.value in (1e-3, 1e-4, 1e-5)
    return isinstance(node, ast.Attribute) and node.attr in ("eps", "tiny", "smallest_normal")


def test_no_constant_hides_a_singularity():
    """No `x + 1e-8`, `maximum(x, 1e-12)`, `where(ok, x, eps)`: lie/smooth.py says what a function is there, exactly."""
    wrong = []
    for path in sources(*LIBRARY):
        for node in ast.walk(tree_of(path)):
            added = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and (node.left, node.right)
            clipped = (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", "") in ("maximum", "clip", "clamp", "fmax", "where")
                and (*node.args, *(k.value for k in node.keywords))
            )
            if any(is_tiny(operand) for operand in (added or clipped or ())):
                wrong.append(place(path, node))
    assert not wrong, "\n".join(wrong)


def test_the_library_neither_prints_nor_sets_anything_global_nor_calls_back_to_the_host():
    wrong = []
    for path in sources(*LIBRARY):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                last = called.split(".")[-1]
                if called in ("print", "jax.debug.print") or called.endswith("config.update") or "callback" in last:
                    wrong.append(place(path, node))
    assert not wrong, "\n".join(wrong)


def test_every_file_says_its_idea_in_its_first_line():
    wrong = []
    for path in sources(*MAY_IMPORT, "benchmarks", "tests"):
        text = ast.get_docstring(tree_of(path), clean=False)
        if not text or not text.splitlines()[0].strip():
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong, "\n".join(wrong)


def test_everything_public_is_documented():
    wrong = []
    for path in sources(*LIBRARY):
        for node in public_definitions(tree_of(path)):
            if not ast.get_docstring(node):
                wrong.append(place(path, node))
    assert not wrong, "\n".join(wrong)


def public_definitions(tree):
    """Functions and classes of a module, methods of its public classes; a private name hides what is within.

    A method whose body is `...` only declares: its Protocol's docstring speaks for it.
    """
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not (isinstance(node.body[0], ast.Expr) and is_constant(node.body[0].value, ...)):
                yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_listed_name_exists(package):
    wrong = []
    for path in sources(package):
        if path.stem == "__main__":
            continue
        module = importlib.import_module(name_of(path))
        for name in getattr(module, "__all__", ()):
            if not hasattr(module, name) and not is_module(f"{module.__name__}.{name}"):
                wrong.append(f"{path.relative_to(ROOT)} lists {name}, which does not exist")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", LIBRARY)
def test_every_public_module_is_listed(package):
    listed = set(importlib.import_module(package).__all__)
    files = {path.stem if path.stem != "__init__" else path.parent.name for path in (ROOT / package).glob("*.py")}
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    public = {name for name in files | folders if not name.startswith("_")} - {package}
    assert public <= listed, f"not in {package}.__all__: {sorted(public - listed)}"


IMPORT_ALL = """
import importlib, json, os, sys
import jax
before, settings = dict(os.environ), dict(jax.config.values)
loaded = {}
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    loaded.update({module: name for module in sys.modules if module not in loaded})
assert dict(os.environ) == before, "an import changed the environment"
changed = {key for key, value in jax.config.values.items() if settings.get(key, value) != value}
assert not changed, f"an import changed jax.config: {changed}"
print(json.dumps(loaded))
"""


@functools.cache
def imported(*folders):
    """Imports every module of the folders in a fresh process without a usable backend: what each loads first."""
    names = [name_of(path) for path in sources(*folders)]
    environment = {**os.environ, "JAX_PLATFORMS": "nowhere", "HAAR_CHECK": "0"}  # the first array or key made raises
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, json.dumps(names)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("\n") == 1, f"an import printed: {run.stdout}"
    return json.loads(run.stdout)


def test_no_import_does_any_work():
    imported(*MAY_IMPORT)


def test_lie_and_ot_leave_heavy_libraries_until_their_first_use():
    loaded = imported("lie", "ot")
    for library in ("e3nn_jax", "flax", "matplotlib", "torch"):
        assert library not in loaded, f"importing {loaded[library]} imports {library}"


def test_a_module_that_makes_an_array_at_import_would_be_caught():
    code = "import jax.numpy as jnp; jnp.zeros(3)"
    environment = {**os.environ, "JAX_PLATFORMS": "nowhere"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode != 0
    assert "nowhere" in run.stderr


def test_either_argument_may_be_the_one_that_broadcasts():
    """`*batch` beside `*#batch` binds the first argument's axes: act(R, points) would be refused under HAAR_CHECK=1.

    In lie/smooth.py the other arguments broadcast to the first, by contract.
    """
    wrong = []
    for path in sources("lie", "ot"):
        if name_of(path) == "lie.smooth":
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
                texts = [ast.unparse(argument.annotation) for argument in arguments if argument.annotation]
                axes = {word.strip("'") for text in texts for word in text.replace("[", " ").replace("]", " ").split()}
                if any(f"*#{axis[1:]}" in axes for axis in axes if axis.startswith("*") and axis[1:2] != "#"):
                    wrong.append(place(path, node))
    assert not wrong, "\n".join(wrong)


def test_keys_are_keyword_only_and_last():
    wrong = []
    for path in sources(*LIBRARY):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                positional = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
                keywords = [argument.arg for argument in node.args.kwonlyargs]
                if "key" in positional or ("key" in keywords and keywords[-1] != "key"):
                    wrong.append(place(path, node))
    assert not wrong, "\n".join(wrong)


def test_this_page_reads_every_package():
    """The scans above must not pass because they looked at nothing."""
    for package in MAY_IMPORT:
        assert sources(package), f"no source in {package}"
    assert inspect.getdoc(importlib.import_module("lie.so3"))


def test_every_slow_test_listed_exists():
    lines = [line for line in (ROOT / "tests" / "slow.txt").read_text().splitlines() if not line.startswith("#")]
    for line in lines:
        file, *_, name = line.split("[")[0].split("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), line
    assert lines == sorted(set(lines))
