"""A training run and its folder: made, locked, interrupted, found again, finished.

While a run trains, its folder holds `settings.json` (what must be equal for the run to be resumed)
and `checkpoints/`. A run is finished once its `report.json` is there; then the checkpoints go.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from transformers.trainer import safe_globals

from qlora_kit import fetch
from qlora_kit.errors import KitError
from qlora_kit.paths import RUNS

DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts Google Drive
locks = []  # of this process; the system releases them when it ends, however it ends


def home():
    """Where runs lie: in a mounted Google Drive, since Colab's own disk is lost with the session,
    else in runs/."""
    return DRIVE / "qlora-kit-runs" if DRIVE.is_dir() else RUNS


def new_run(name):
    """A new folder for the run's files, runs/<time>-<name>, locked by this process.

    `name` is that of the profile that is trained, or of the notebook that is run.
    """
    stem = f"{datetime.now():%Y-%m-%d-%H%M%S}-{name}"
    for number in range(1, 1000):
        folder = home() / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # two runs began in the same second
            continue
        acquire(folder)
        return folder
    raise FileExistsError(stem)


def acquire(folder):
    """Lock a run until this process ends. False if it is locked already, by whomever."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    locks.append(lock)
    return True


def settings(profile, dtypes, seed, data, categories=None):
    """What must be equal for a run to be resumed, as a flat dictionary that JSON can hold.

    `dtypes` are those of `models.pick_dtypes`, `data` is the folder with the tickets, `categories`
    are those of one's own tickets; None: the kit's.
    """
    return {
        "profile": profile.name,
        **asdict(profile.recipe) | {"targets": list(profile.recipe.targets)},  # JSON has no tuples
        **{name: str(value) for name, value in asdict(dtypes).items()},
        "seed": seed,
        "categories": categories and list(categories),
        **{file.name: fetch.sha256(file) for file in sorted(data.glob("tickets_*.jsonl"))},
        **versions(),
    }


def code_digest(notebook):
    """SHA-256 over the code of a notebook; its texts and outputs do not count."""
    cells = read_json(notebook)["cells"]
    code = [cell["source"] for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256(json.dumps(code).encode()).hexdigest()


def versions():
    """The versions of the libraries that shape a result."""
    names = ("torch", "transformers", "peft", "bitsandbytes", "trl", "datasets", "accelerate")
    return {name: importlib.metadata.version(name) for name in names}


def unfinished(now):
    """The newest unfinished run with the settings `now` that is not in use, or None.

    It is locked by this process from then on. A line says why a run of this profile is skipped.
    """
    mine = [Path(lock.lock_file).parent for lock in locks]
    folders = [file.parent for file in home().glob("*/settings.json")]
    for folder in sorted(folders, reverse=True):  # the names begin with the time
        if folder in mine:
            continue
        if (folder / "report.json").exists():
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # killed before it did so
            continue
        before = read_json(folder / "settings.json")
        if before.keys() != now.keys() or before["profile"] != now["profile"]:
            continue  # another model, or a run that somebody made in Jupyter
        different = changed(before, now)
        if not acquire(folder):
            print(f"{folder.name} is in use by another process; skipped.")
        elif different:
            locks.pop().release()
            print(
                f"{folder.name} is not resumed: {what_changed(different)}. Restore the old values "
                "to resume it, or delete the folder."
            )
        else:
            return folder
    return None


def begun_dtype(profile):
    """The dtype that the newest unfinished run of a profile on a CPU began with: "bfloat16" or
    "float32"; None without such a run.

    `models.pick_dtypes` times a CPU, and on a busy machine it may choose the other one; it takes
    this one instead if it is told.
    """
    for file in sorted(home().glob("*/settings.json"), reverse=True):
        begun = read_json(file)
        mine = begun.get("profile") == profile.name and begun.get("device") == "cpu"
        if mine and "model" in begun and not (file.parent / "report.json").exists():
            return begun["model"].removeprefix("torch.")
    return None


def resume_or_new(profile, now, *configs):
    """The folder of a run for a notebook: of the newest unfinished one with equal settings that
    is not in use, else a new one.

    `now` are the settings. `configs` are the trainer's configurations: a learner may
    have edited them in their cells, so a run goes on with equal ones only.
    """
    texts = [json.dumps(one.to_dict(), sort_keys=True, default=text_of) for one in configs]
    now = now | {"configuration": hashlib.sha256("\n".join(texts).encode()).hexdigest()}
    folder = unfinished(now) or new_run(profile.name)
    begin(folder, now)
    return folder


def text_of(value):
    """A set in its order, as text; anything else that JSON does not know, as it prints itself."""
    return str(sorted(value) if isinstance(value, set) else value)


def changed(before, now):
    """The names of the settings `now` that had another value before."""
    return [name for name in now if before.get(name) != now[name]]


def what_changed(names):
    """'seed, rows changed after it began', for a message."""
    return f"{', '.join(names)} changed after it began"


def begin(folder, now):
    """The newest whole checkpoint of a run; None if there is none, as in a new run.

    A new run notes its settings `now`. What a killed process left half-written is removed.
    Raises KitError if the run began with other settings, or if a checkpoint could run code.
    """
    if not (folder / "settings.json").exists():
        write_json(folder / "settings.json", now)
    different = changed(read_json(folder / "settings.json"), now)
    if different:
        raise KitError(
            f"{folder} cannot be resumed: {what_changed(different)}. Restore the old values, or "
            "start a new run."
        )
    checkpoints = (folder / "checkpoints").glob("checkpoint-*")
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name[11:]), reverse=True):
        broken = fetch.damaged(checkpoint)
        if not broken:
            refuse_code(checkpoint)
            return checkpoint
        print(f"{checkpoint.name} is incomplete ({broken}) and is removed.")
        shutil.rmtree(checkpoint)
    return None


def refuse_code(checkpoint):
    """Raise KitError if one of the trainer's pickles holds more than numbers: it could run code.

    The trainer loads them in the same way, but its message is an essay.
    """
    for file in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]:
        try:
            with safe_globals():  # the state of NumPy's random numbers is an array
                torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # an unknown pickle can break the reader in any way
            raise KitError(
                f"{file} holds more than numbers and could run code, so it is not opened: delete "
                "that run's folder, and start a new run."
            ) from error


def check_disk(folder, model):
    """Raise KitError if a checkpoint would not fit on the disk.

    It holds the adapter, Adam's two moments of it, and up to 100 MB besides (the tokenizer).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    needed = 3 * sum(p.numel() * p.element_size() for p in trained) + 100e6
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise KitError(
            f"The disk of {folder} has {free / 1e9:.2f} GB free and a checkpoint needs "
            f"{needed / 1e9:.2f} GB. Make room, then resume from the checkpoint before."
        )


def training_seconds(state):
    """The seconds that a trainer's steps have taken, those before a resumption included."""
    return max((entry["seconds"] for entry in state.log_history if "seconds" in entry), default=0.0)


def finish(folder, report):
    """Write report.json, whole or not at all, and remove the checkpoints with their pickles.

    The settings that the run began with stand in it as "settings", and the libraries' as
    "versions". A finished run may be finished again, as a notebook's cell can be run twice.
    """
    settings = read_json(folder / "settings.json")
    whole = report | {"versions": versions(), "settings": settings}
    write_json(folder / "report.json", whole)
    if (folder / "checkpoints").exists():
        shutil.rmtree(folder / "checkpoints")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, content):
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
