"""Findings about this machine."""

import importlib.metadata
import platform
import sys

from packaging.requirements import Requirement
from packaging.version import Version

from qlora_kit import bootstrap, colab
from qlora_kit.doctor.findings import error, ok, warning

# Besides the kit's own requirements, what an installation on Colab replaces.
MOVED = ("numpy", "pyarrow", "fsspec", "huggingface_hub", "tokenizers", "safetensors")


def machine():
    """Every finding about this machine: an OK line a subject where all is well.

    Where packages are missing or stale the rest is left out, since it could not be imported.
    """
    found = [_python(), *_packages(), *_torchao(), *_stale()]
    if any(finding.level == "error" for finding in found):
        return found
    from qlora_kit import models  # not before: these want all packages
    from qlora_kit.doctor import hardware, weights

    profile, dtypes = models.pick_profile(), models.pick_dtypes()
    found += [*hardware.device(), *hardware.formats(dtypes)]
    found += [*hardware.free_memory(profile, dtypes), *weights.disk(profile)]
    return [*found, *weights.cached(profile), *weights.hub(profile)]


def _python():
    # The package itself refuses an older Python.
    return ok(f"Python {platform.python_version()} on {platform.system()}")


def _packages():
    lacking = bootstrap.missing([])
    if lacking:
        quoted = " ".join(f'"{text}"' for text in lacking)
        yield error(
            f"packages are missing, or of another version: {', '.join(lacking)}",
            "The notebooks were tested with these; others stop them with an error, or change "
            "results without one.",
            f"python3 -m pip install {quoted}, then restart the kernel (on Colab: run the set-up "
            "cell, then Runtime, Restart session)",
        )
    else:
        count = len(bootstrap.requirements([]))
        yield ok(f"packages: all {count} are there, in versions that fit")


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torchao():
    if colab.old_torchao():
        yield warning(
            f"torchao {_version('torchao')} is too old for peft",
            "peft raises ImportError when an adapter is put on an unquantised base, as for a "
            "merge. The kit does not use torchao.",
            "python3 -m pip uninstall torchao, then restart the kernel",
        )


def _stale():
    """Packages that this process imported before another version was installed over them."""
    names = {Requirement(text).name for text in bootstrap.requirements([])} | set(MOVED)
    stale = []
    for name in sorted(names):
        module = "sklearn" if name == "scikit-learn" else name
        loaded = getattr(sys.modules.get(module), "__version__", None)
        installed = _version(name)
        if loaded and installed and Version(str(loaded)).public != Version(installed).public:
            stale.append(f"{name} {loaded} (installed: {installed})")
    if stale:
        yield error(
            f"this process still runs an old {', '.join(stale)}",
            "It was imported before the installation. Old and new code do not go together.",
            "restart the kernel and run all cells (on Colab: Runtime, Restart session)",
        )
