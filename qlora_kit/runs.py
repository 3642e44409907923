"""A training run and its folder: made, held, interrupted, found again, finished.

While a run trains, its folder holds `settings.json` (what must be equal for the run to be resumed)
and `checkpoints/`. A run is finished once its `report.json` is there; then the checkpoints go.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import time
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from qlora_kit import fetch
from qlora_kit.bootstrap import ROOT
from qlora_kit.errors import KitError

RUNS = ROOT / "runs"
DRIVE = Path("/content/drive/MyDrive")  # where Colab mounts Google Drive

held = []  # the locks of this process; the system lets go of them when it ends, however it ends


def home():
    """Where runs lie: in a mounted Google Drive, since Colab's own disk is lost with the session,
    else in runs/."""
    return DRIVE / "qlora-kit-runs" if DRIVE.is_dir() else RUNS


def new_run(profile):
    """A new folder for the run's files, runs/<time>-<profile>, held by this process."""
    stem = f"{datetime.now():%Y-%m-%d-%H%M%S}-{profile.name}"
    for number in range(1, 1000):
        folder = home() / (stem if number == 1 else f"{stem}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:  # two runs began in the same second
            continue
        hold(folder)
        return folder
    raise FileExistsError(stem)


def hold(folder):
    """Hold a run until this process ends. False if another process, or another call, holds it."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    held.append(lock)
    return True


def settings(profile, dtypes, seed, data):
    """What must be equal for a run to be resumed, as a flat dictionary that JSON can hold.

    `dtypes` are those of `models.pick_dtypes`, `data` is the folder with the tickets.
    """
    return {
        "profile": profile.name,
        **asdict(profile.recipe),
        **{name: str(value) for name, value in asdict(dtypes).items()},
        "seed": seed,
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
    """The newest unfinished run with the settings `now` that nobody holds, or None.

    It is held by this process from then on. A line says why a run of this profile is left alone.
    """
    mine = [Path(lock.lock_file).parent for lock in held]
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
        if not hold(folder):
            print(f"{folder.name} is in the hands of another process, and left alone.")
        elif different:
            held.pop().release()
            print(
                f"{folder.name} is unfinished and not resumed, for it began with another "
                f"{different}. Put that back to resume it, or delete the folder."
            )
        else:
            return folder
    return None


def resume_or_new(profile, now, *given):
    """The folder of a run for a notebook: of the newest unfinished one with equal settings that
    nobody holds, else a new one.

    `now` are the settings. `given` are the configurations that the trainer is given: a learner
    may have edited them in their cells, so a run goes on with equal ones only.
    """
    texts = [json.dumps(one.to_dict(), sort_keys=True, default=text_of) for one in given]
    now = now | {"given": hashlib.sha256("\n".join(texts).encode()).hexdigest()}
    folder = unfinished(now) or new_run(profile)
    begin(folder, now)
    return folder


def text_of(value):
    """A set in its order, as text; anything else that JSON does not know, as it prints itself."""
    return str(sorted(value) if isinstance(value, set) else value)


def changed(before, now):
    """The names of the settings `now` that were others before, as text."""
    return ", ".join(name for name in now if before.get(name) != now[name])


def begin(folder, now):
    """The newest whole checkpoint of a run; None if there is none, as in a new run.

    A new run notes its settings `now`. What a killed process has left half-written is removed.
    Raises KitError if the run began with other settings, or if a checkpoint could run code.
    """
    if not (folder / "settings.json").exists():
        write_json(folder / "settings.json", now)
    different = changed(read_json(folder / "settings.json"), now)
    if different:
        raise KitError(
            f"{folder} began with another {different}. Put that back to resume it, or begin a new "
            "run."
        )
    checkpoints = (folder / "checkpoints").glob("checkpoint-*")
    for checkpoint in sorted(checkpoints, key=lambda path: int(path.name[11:]), reverse=True):
        broken = fetch.damaged(checkpoint)
        if not broken:
            refuse_code(checkpoint)
            return checkpoint
        print(f"{checkpoint.name} is not whole ({broken}) and is removed.")
        shutil.rmtree(checkpoint)
    return None


def refuse_code(checkpoint):
    """Raise KitError if one of the trainer's pickles holds more than numbers: it could run code.

    The trainer loads them in the same way, but its message is an essay.
    """
    import torch
    from transformers.trainer import safe_globals

    for file in [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]:
        try:
            with safe_globals():  # the state of NumPy's random numbers is an array
                torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # an unknown pickle can break the reader in any way
            raise KitError(
                f"{file} holds more than numbers and could run code, so it is not opened: delete "
                "that run's folder, and begin a new run."
            ) from error


def seal_checkpoints(trainer):
    """Have every checkpoint end with a manifest, so that a half-written one is never taken.

    transformers 5.23 writes a checkpoint's files one by one into its final folder, deletes the
    oldest checkpoint, and calls on_save last; its get_last_checkpoint goes by the folder's name
    alone. Before a checkpoint the disk is looked at, and the seconds of training are noted, so that
    a resumed run knows its whole time.
    """
    import transformers

    class Seal(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            self.start = time.perf_counter() - training_seconds(state)

        def on_step_end(self, args, state, control, model=None, **_):
            if control.should_save:
                check_disk(args.output_dir, model)
                seconds = time.perf_counter() - self.start
                state.log_history.append({"step": state.global_step, "seconds": seconds})

        def on_save(self, args, state, control, **_):
            checkpoint = f"checkpoint-{state.global_step}"
            fetch.write_manifest(Path(args.output_dir) / checkpoint)

    trainer.add_callback(Seal)


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
    """Write report.json, whole or not at all, and remove the checkpoints with their pickles."""
    write_json(folder / "report.json", report)
    shutil.rmtree(folder / "checkpoints")


def offer(adapter):
    """Zip an adapter's folder and offer the zip: Colab's page downloads it, Jupyter shows a link.

    The zip lies beside the folder. The link is relative to the notebook, if that is where it runs.
    """
    from IPython.display import HTML, display

    archive = Path(shutil.make_archive(str(adapter), "zip", adapter))
    print(f"{archive.name}, {archive.stat().st_size / 1e6:.1f} MB, is in {adapter.parent.name}.")
    if "google.colab" in sys.modules:
        from google.colab import files

        files.download(str(archive))
    else:
        link = Path(os.path.relpath(archive)).as_posix()
        display(HTML(f'<a href="{link}" download>Download {archive.name}</a>'))


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path, content):
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
