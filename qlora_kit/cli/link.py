"""The repository's address: `link OWNER/REPO` stamps it everywhere that it occurs."""

import re
import tomllib

from qlora_kit.errors import KitError
from qlora_kit.paths import NOTEBOOKS, ROOT


def stamp(repository):
    """Replace the repository's address, OWNER/REPO, in every file that carries it."""
    if not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", repository):
        raise KitError(f"{repository!r} is not of the form OWNER/REPO.")
    old = linked_repository()
    # github.com/O/R, colab.research.google.com/github/O/R and mybinder.org/v2/gh/O/R
    address = re.compile(r"(github\.com/|/github/|/gh/)" + re.escape(old) + r"(?![A-Za-z0-9_-])")
    # pyproject.toml comes last: it knows the old address, should this be interrupted.
    for path in [*sorted(NOTEBOOKS.glob("*.ipynb")), ROOT / "README.md", ROOT / "pyproject.toml"]:
        text = path.read_text(encoding="utf-8")
        path.write_text(
            address.sub(lambda match: match[1] + repository, text),
            encoding="utf-8",
            newline="\n",
        )


def linked_repository():
    """OWNER/REPO as pyproject.toml has it: the one place that decides."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")
