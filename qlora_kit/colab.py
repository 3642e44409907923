"""Google Colab: make the kit importable there and install what is missing, without breaking it."""

import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from qlora_kit.bootstrap import missing
from qlora_kit.errors import KitError
from qlora_kit.paths import ROOT

# What must stay as it is on Colab: the rest of the machine and this page stand on it.
FIXED = (
    *("torch", "torchvision", "torchaudio", "numpy", "pandas", "scipy"),
    *("ipywidgets", "ipykernel", "ipython", "tornado", "google-colab", "requests"),
)
# What stays if it fits. What moves: datasets, huggingface_hub, pyarrow and fsspec.
KEPT = ("scikit-learn", "matplotlib", "transformers", "tokenizers", "peft", "accelerate")
NEWER = "Choose Runtime > Change runtime type, there the latest runtime version, and run all cells"
replaced = set()  # modules of this process that pip has replaced under it


def install():
    """Make the kit importable and install what Colab lacks; a second call finds nothing to do.

    One pip command, under constraints that keep what the machine runs on. Call it before anything
    else is imported. Raises KitError if Colab has what must stay in a version that the kit cannot
    use, if pip fails, or if this process had loaded a package that has been replaced since: then
    only a restart helps.
    """
    make_importable()
    lacking, torchao = missing([]), old_torchao()
    if lacking or torchao:
        modules, before = importlib.metadata.packages_distributions(), installed()
        refuse_old(lacking, before)
        if torchao:
            pip("uninstall", "--yes", "torchao")
        if lacking:
            print("Installing what is missing, about a minute:", ", ".join(lacking), flush=True)
            with tempfile.TemporaryDirectory() as folder:
                constraints = Path(folder) / "constraints.txt"
                constraints.write_text("\n".join(pins(lacking, before)), encoding="utf-8")
                pip("install", "-c", str(constraints), *lacking)
        now = installed()
        moved = {name for name in before if now.get(name) != before[name]}
        replaced.update(
            module
            for module, packages in modules.items()
            if module in sys.modules and not moved.isdisjoint(map(normal, packages))
        )
    if replaced:
        raise KitError(
            f"This session had already loaded {', '.join(sorted(replaced))} in another version: "
            "choose Runtime > Restart session, then run all cells again."
        )


def named(requirements):
    """Requirements such as "torch>=2.9" by the normal names of their packages."""
    from packaging.requirements import Requirement

    return {normal(Requirement(text).name): text for text in requirements}


def refuse_old(lacking, before):
    """Raise KitError if a package that must stay is of a version that the kit cannot use."""
    wanted = named(lacking)
    stuck = [name for name in FIXED if name in wanted and name in before]
    if stuck:
        raise KitError(
            f"This Colab has {', '.join(f'{name} {before[name]}' for name in stuck)}, and the kit "
            f"needs {', '.join(wanted[name] for name in stuck)}. It cannot be replaced here, since "
            f"the rest of Colab stands on it. {NEWER}."
        )


def pins(lacking, before):
    """The constraints for pip: what is there and fits stays in the version that it has."""
    moving = named(lacking).keys()
    if "transformers" in moving:
        moving |= {"tokenizers"}  # of which each transformers wants its own
    stays = [name for name in (*FIXED, *KEPT) if name in before and name not in moving]
    return [f"{name}=={before[name]}" for name in stays]


def make_importable():
    """Let this process, and those that it starts, import the kit from wherever they stand."""
    others = [entry for entry in sys.path if not entry or Path(entry).resolve() != ROOT]
    sys.path[:] = [str(ROOT), *others]
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [entry for entry in paths if entry not in ("", str(ROOT))]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *others])


def old_torchao():
    """Whether a torchao is installed beside which PEFT fails.

    PEFT 0.19 and later raise ImportError when an adapter is put on a model beside a torchao older
    than 0.16. Colab has 0.10; a newer one wants a newer torch, and nothing in the kit uses torchao,
    so it is removed.
    """
    from packaging.version import Version

    try:
        return Version(importlib.metadata.version("torchao")) < Version("0.16")
    except importlib.metadata.PackageNotFoundError:
        return False


def installed():
    """The version of every installed package, by its normal name."""
    packages = importlib.metadata.distributions()
    return {normal(package.metadata["Name"]): package.version for package in packages}


def normal(name):
    """huggingface_hub and huggingface-hub are one package: the one spelling of both (PEP 503)."""
    return re.sub("[-_.]+", "-", name).lower()


def pip(*arguments):
    """Run pip for this Python; raise KitError if it fails.

    What it says is kept back otherwise: it complains of packages of Colab's own that were never in
    harmony with each other.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    importlib.invalidate_caches()  # else what has just arrived may not be found
    if done.returncode and "ResolutionImpossible" in done.stderr:
        raise KitError(f"These packages exclude each other: {conflict(done.stdout)}. {NEWER}.")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = said[-1].removeprefix("ERROR: ") if said else f"exit status {done.returncode}"
        raise KitError(
            f"pip {arguments[0]} failed ({reason.rstrip('.')}). Look whether the network is there, "
            "then run this cell again."
        )


def conflict(said):
    """The lines in which pip names what excludes what, as one: "a depends on b>=2; ..."."""
    _, _, after = said.partition("The conflict is caused by:\n")
    return "; ".join(line.strip() for line in after.partition("\n\n")[0].splitlines())
