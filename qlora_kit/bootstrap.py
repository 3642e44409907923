"""From a fresh clone to an environment that fits, with the standard library alone.

`ensure(command)` returns if this Python has what the command needs. Otherwise it builds `.venv`
in the clone from requirements.txt, once, and runs the same command there. A stamp, written last,
says that the build is whole, for which requirements and for which folder.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from qlora_kit.errors import KitError

ROOT = Path(__file__).resolve().parent.parent
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

# What must stay as it is on Colab. What moves: datasets, huggingface_hub, pyarrow and fsspec.
KEPT = (
    *("torch", "torchvision", "torchaudio", "numpy", "pandas", "scipy", "scikit-learn"),
    *("ipywidgets", "ipykernel", "ipython", "tornado", "google-colab", "requests", "matplotlib"),
    *("transformers", "tokenizers", "peft", "accelerate"),
)

replaced = set()  # modules of this process that pip has replaced under it


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


def install_on_colab():
    """Make the kit importable and install what Colab lacks; a second call finds nothing to do.

    One pip command, under constraints that keep what the machine runs on. Call it before anything
    else is imported. Raises KitError if pip fails, or if this process had loaded a package that has
    been replaced since: then only a restart helps.
    """
    make_importable()
    lacking, torchao = missing([]), old_torchao()
    if lacking or torchao:
        modules, before = importlib.metadata.packages_distributions(), installed()
        if torchao:
            pip("uninstall", "--yes", "torchao")
        if lacking:
            print("Installing what is missing, about a minute:", ", ".join(lacking), flush=True)
            with tempfile.TemporaryDirectory() as folder:
                constraints = Path(folder) / "constraints.txt"
                kept = [f"{name}=={before[name]}" for name in KEPT if name in before]
                constraints.write_text("\n".join(kept), encoding="utf-8")
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
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        reason = said[-1].removeprefix("ERROR: ") if said else f"exit status {done.returncode}"
        raise KitError(
            f"pip {arguments[0]} failed ({reason.rstrip('.')}). Look whether the network is there, "
            "then run this cell again."
        )


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
