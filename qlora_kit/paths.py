"""The project's folders. The kit is used from a clone: a wheel holds the package alone."""

from pathlib import Path

from qlora_kit.errors import KitError

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"
RUNS = ROOT / "runs"

if not NOTEBOOKS.is_dir():
    raise KitError(
        f"{Path(__file__).parent} is the package alone, without notebooks and data: clone the "
        "repository and run `python3 -m qlora_kit` there."
    )
