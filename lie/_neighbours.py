"""Who owns the import name `ot`: POT (Python Optimal Transport) uses it too, and pip lets one overwrite the other.

`lie` and `equivariant` need no `ot`, so they warn; `ot` and `experiments` cannot work, so they refuse. One or two stat
calls at import; only `experiments` also asks the import system which `ot` it would find.
"""

import importlib.util
import warnings
from pathlib import Path

_OURS = Path(__file__).parents[1] / "ot"
_WHY = "POT and haar cannot share one environment, because both are imported as `ot`."


def _holds_pot(folder: Path) -> bool:
    return (folder / "utils.py").exists()  # in every release of POT; a module name that haar forbids itself


def damage() -> str | None:
    """What is wrong with the files of our `ot`, as a sentence with its remedy; None if nothing is."""
    if _holds_pot(_OURS):
        return (
            f"the files of POT (Python Optimal Transport) are mixed into haar's package `ot` in {_OURS}. {_WHY} "
            "Uninstall both (`pip uninstall POT haar`), then install each in an environment of its own."
        )
    if not (_OURS / "__init__.py").exists() and _OURS.exists():
        return (
            f"haar's package `ot` in {_OURS} has lost its __init__.py, as happens where POT was installed over it and "
            "uninstalled again. Uninstall haar, delete that folder, and install haar again."
        )
    return None


def warn() -> None:
    """Warns if the files of our `ot` are damaged: what needs no `ot` goes on working."""
    if found := damage():
        warnings.warn(f"lie and equivariant work, but ot and experiments will not: {found}", stacklevel=3)


def refuse_damage(package: str) -> None:
    """Raises ImportError if the files of our `ot` are damaged."""
    if found := damage():
        raise ImportError(f"{package} cannot be imported: {found}", name=package)


def refuse_strangers(package: str) -> None:
    """Raises ImportError if the files of our `ot` are damaged, or if `import ot` finds another `ot` than ours."""
    refuse_damage(package)
    try:
        found = importlib.util.find_spec("ot")
    except ValueError:  # a module without a spec was put into sys.modules by hand
        found = None
    origin = found.origin if found else None
    if origin is None or Path(origin).resolve().parent != _OURS.resolve():
        place = Path(origin) if origin else None
        if place is not None and _holds_pot(place.parent):
            what = f"POT (Python Optimal Transport) in {place.parent}"
            remedy = f"{_WHY} Uninstall POT (`pip uninstall POT`), or give one of the two an environment of its own."
        else:
            what = f"another `ot`, {place}" if place else "no such file"
            remedy = "Rename or move what stands in the way, or take its folder off sys.path."
        raise ImportError(
            f"{package} cannot be imported: it needs haar's package `ot` in {_OURS}, but `import ot` finds {what}. "
            f"{remedy}",
            name=package,
        )
