"""From a fresh clone to an environment that fits, with the standard library alone.

`ensure(command)` returns if this Python has what the command needs. Otherwise it builds `.venv`
in the clone from requirements.txt, once, and runs the same command there. A stamp, written last,
says that the build is whole, for which requirements and for which folder.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

from qlora_kit.errors import KitError
from qlora_kit.paths import ROOT

VENV = ROOT / ".venv"
STAMP = VENV / "qlora_kit.json"
PROMPT = "qlora_kit"  # marks an environment as made by the kit; another one is never touched
# The extras of pyproject.toml that a command needs besides the core.
EXTRAS = {
    "train": ["run"],
    "run": ["run"],
    "test": ["run", "test"],
    "lab": ["lab"],
    "fetch": [],
    "bench": [],
    "budget": [],
    "doctor": [],
}
# PyTorch's own index of wheels without CUDA: they save a Linux user gigabytes.
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def ensure(command):
    """Return if this Python can run `command`; else run it in the kit's environment and exit."""
    if in_kit_environment() or not missing(EXTRAS[command]):
        return
    if not stamp_is_good():
        with lock(ROOT / ".venv.lock"):
            if not stamp_is_good():  # another process may have built it while this one waited
                build()
    command = [str(venv_python()), "-m", "qlora_kit", *sys.argv[1:]]
    if os.name == "nt":
        sys.exit(hand_over(command))
    os.execv(command[0], command)  # the same process: whoever kills it, kills what runs


def hand_over(command, **arguments):
    """Run a command to its end and return its exit status. Ctrl-C is the command's to handle.

    Not exec: on Windows it would give the prompt back while the command still runs.
    """
    before = signal.signal(signal.SIGINT, lambda *_: None)  # SIG_IGN would be inherited
    try:
        return subprocess.call(command, **arguments)
    finally:
        signal.signal(signal.SIGINT, before)


def in_kit_environment():
    return Path(sys.prefix).resolve() == VENV.resolve() and stamp_is_good()


def missing(extras):
    """Requirements of pyproject.toml that this Python does not meet, such as 'trl>=1.16'.

    Decided from package metadata, so that conda, Colab and an ordinary venv are all judged alike.
    """
    try:
        from packaging.requirements import Requirement
    except ImportError:  # every fitting environment has it: transformers depends on it
        return ["packaging"]
    lacking = []
    for text in requirements(extras):
        requirement = Requirement(text)
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(text)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            lacking.append(text)
    return lacking


def requirements(extras):
    """The core requirements of pyproject.toml and those of the named extras."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    return project["dependencies"] + [line for extra in extras for line in optional[extra]]


def wanted_stamp():
    """What a whole environment's stamp says. A changed requirement or a moved folder changes it."""
    files = [ROOT / "requirements.txt", ROOT / "pyproject.toml"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return {"requirements": digest, "folder": str(ROOT)}


def stamp_is_good():
    try:
        stamp = json.loads(STAMP.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return stamp == wanted_stamp() and venv_python().exists()


def venv_python():
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def build():
    """Make `.venv` anew and install requirements.txt into it; the stamp comes last."""
    config = VENV / "pyvenv.cfg"
    mark = f"prompt = {PROMPT!r}\n"
    ours = config.exists() and mark in config.read_text(encoding="utf-8")
    if VENV.exists() and any(VENV.iterdir()) and not ours:
        raise KitError(
            f"{VENV} is an environment that the kit did not make and leaves alone. Activate it "
            "and run `pip install -r requirements.txt`, or move it away and start again."
        )
    if Path(sys.prefix).resolve() == VENV.resolve():
        raise KitError("The environment is out of date: run `deactivate`, then start again.")
    if platform.system() == "Darwin" and platform.machine() == "x86_64":
        raise KitError(
            "There is no PyTorch for Macs with an Intel processor any more, so the kit cannot run "
            "here. It runs on Colab, on Apple silicon, on Linux and on Windows."
        )
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError:
        raise KitError(
            "This Python cannot make virtual environments. On Debian or Ubuntu run "
            "`sudo apt install python3-venv`, then start again."
        ) from None
    print(f"Making {VENV} and installing the packages, once (about 2 GB) ...", flush=True)
    old = VENV.with_name(".venv.old")
    shutil.rmtree(old, ignore_errors=True)
    if VENV.exists():  # moved first: a removal that is cut off must not leave half of it behind
        VENV.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    VENV.mkdir()
    config.write_text(mark, encoding="utf-8")
    try:
        symlinks = os.name != "nt"  # a copy of some Pythons on macOS does not start
        venv.EnvBuilder(with_pip=True, prompt=PROMPT, symlinks=symlinks).create(VENV)
    except subprocess.CalledProcessError as error:
        raise KitError(
            f"{VENV} could not be made, since pip did not start in it (exit {error.returncode}). "
            "Look at the free disk space, or use a Python from python.org."
        ) from None
    pip = [str(venv_python()), "-m", "pip", "--disable-pip-version-check", "install"]
    if subprocess.call([*pip, "-r", "requirements.txt", *cpu_index()], cwd=ROOT):
        raise KitError(
            "The packages could not be installed; the lines above say why. With a network and "
            "3 GB of free disk, the same command tries again."
        )
    STAMP.write_text(json.dumps(wanted_stamp()), encoding="utf-8")


def cpu_index():
    """Arguments that let pip find PyTorch without CUDA, on Linux without an NVIDIA GPU."""
    nvidia = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()
    if platform.system() != "Linux" or nvidia:
        return []
    try:
        urllib.request.urlopen(CPU_WHEELS + "/torch/", timeout=3).close()
    except OSError:
        return []  # slow or out of reach: the ordinary index has a larger build that works as well
    return ["--extra-index-url", CPU_WHEELS]


@contextlib.contextmanager
def lock(path):
    """Hold an exclusive lock on a file. The system lets go of it when the process ends, however."""
    with open(path, "w") as file:
        if os.name == "nt":
            import msvcrt
            import time

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield
