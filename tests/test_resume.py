"""Real processes, really killed: the kernel, its parent, and the command `train` itself."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from safetensors.torch import load_file

from qlora_kit.paths import DATA, ROOT

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(os.name == "nt", reason="sends signals that Windows does not have"),
]

CELLS = [
    'seed = 0\nrun_dir = ""\ndata_dir = ""\ncategories = None',
    """import os
from pathlib import Path

import tiny_run
from qlora_kit import models
from qlora_kit.paths import DATA
from qlora_kit.training import runs

profile, dtypes, source = models.pick_profile(), models.pick_dtypes(), DATA
run = Path(run_dir)
trainer = tiny_run.make_trainer(run, float(os.environ["PAUSE"]))""",
    """settings = runs.settings(profile, dtypes, seed, source)
checkpoint = runs.begin(run, settings)
trainer.train(resume_from_checkpoint=checkpoint)""",
    """trainer.model.save_pretrained(run / "adapter", save_embedding_layers=False)
report = {"resumed_from": checkpoint and checkpoint.name, "losses": tiny_run.losses(trainer)}
runs.finish(run, report)""",
]
# The command `train`, with a notebook and a runs/ of the test's own.
TRAIN = """
import pathlib, signal, sys
from qlora_kit import __main__ as main
from qlora_kit.cli import commands, tables
from qlora_kit.training import runs
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
place = pathlib.Path(sys.argv.pop(1))
commands.NOTEBOOKS, runs.RUNS = place, place / "runs"
tables.before_and_after = str
sys.exit(main.main())
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_notebook):
    """A folder with a small notebook 06, in which `start` runs `train`."""
    folder = tmp_path_factory.mktemp("place")
    write_notebook(folder / "06_small.ipynb", *CELLS)
    return folder


def start(place, pause=0.0):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "QLORA_KIT_PROFILE": "smollm2-135m-short",
        "PAUSE": str(pause),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(place), "train"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def result(folder):
    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    return json.loads((folder / "report.json").read_text()), weights


@pytest.fixture(scope="module")
def unbroken(place):
    train = start(place)
    _, errors = train.communicate()
    assert train.returncode == 0, errors
    [folder] = (place / "runs").iterdir()
    return result(folder)


def kernel_of(train):
    [kernel] = [p for p in psutil.Process(train.pid).children(recursive=True) if is_kernel(p)]
    return kernel


def is_kernel(process):
    return any("ipykernel_launcher" in word for word in process.cmdline())


def alive(process):
    """A process that has ended and that nobody has asked about yet is a zombie."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for(condition, train, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert train.poll() is None, train.communicate()[1]
        assert time.monotonic() < end, "took too long"
        time.sleep(0.05)


def sealed(folder):
    return sorted((folder / "checkpoints").glob("checkpoint-*/manifest.json"))


def new_folder(place, before, train):
    """The folder that this `train` makes, once it has a whole checkpoint."""

    def fresh():
        return [f for f in (place / "runs").glob("*") if f not in before and sealed(f)]

    wait_for(fresh, train)
    [folder] = fresh()
    return folder


def interrupted(place):
    """A slow run in its own folder, past its first checkpoint: the process, the folder."""
    before = list((place / "runs").glob("*"))
    train = start(place, pause=1.0)
    return train, new_folder(place, before, train)


def check_resumed(place, folder, unbroken):
    """The same command goes on in that folder, and ends where an unbroken run does."""
    before = set((place / "runs").iterdir())
    done = sealed(folder)[-1].parent.name
    train = start(place)
    out, errors = train.communicate()
    assert train.returncode == 0, errors
    assert f"Resuming {folder.name} from {done}" in out
    assert set((place / "runs").iterdir()) == before
    report, weights = result(folder)
    assert report["resumed_from"] == done
    assert report["losses"] == pytest.approx(unbroken[0]["losses"], rel=1e-5)
    for name, tensor in unbroken[1].items():
        assert (weights[name] - tensor).abs().max() < 1e-6, name
    assert not pickles(folder)


def pickles(folder):
    return [f for f in folder.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_a_killed_kernel_is_one_sentence_and_the_same_command_resumes(place, unbroken):
    train, folder = interrupted(place)
    assert pickles(folder), "the trainer's state is not where this test looks for it"
    kernel_of(train).kill()
    _, errors = train.communicate(timeout=60)
    assert train.returncode == 1
    [line] = [line for line in errors.splitlines() if line.startswith("qlora_kit: ")]
    assert f"To continue {folder.name}, run the same command again." in line
    assert not (folder / "report.json").exists()
    check_resumed(place, folder, unbroken)


def test_a_killed_parent_leaves_no_orphan_and_the_same_command_resumes(place, unbroken):
    train, folder = interrupted(place)
    kernel = kernel_of(train)
    train.kill()
    train.wait()
    start_of_wait = time.monotonic()
    while alive(kernel):
        assert time.monotonic() - start_of_wait < 10, "the kernel trains on without its parent"
        time.sleep(0.05)
    print(f"the kernel ended {time.monotonic() - start_of_wait:.1f} s after its parent")
    check_resumed(place, folder, unbroken)


def test_ctrl_c_ends_the_kernel_and_says_how_to_go_on(place):
    train, folder = interrupted(place)
    kernel = kernel_of(train)
    os.killpg(train.pid, signal.SIGINT)
    _, errors = train.communicate(timeout=60)
    assert train.returncode == 130
    assert f"Stopped. To continue {folder.name}, run" in errors
    assert "Traceback" not in errors
    assert not alive(kernel)
    shutil.rmtree(folder)


def test_two_runs_at_once_have_a_folder_each(place):
    """The second one leaves the first alone, although its settings are equal."""
    before = set((place / "runs").glob("*"))
    first = start(place, pause=1.0)
    new_folder(place, before, first)
    second = start(place)
    out, errors = second.communicate()
    assert second.returncode == 0, errors
    assert "is in use by another process" in out
    _, errors = first.communicate()
    assert first.returncode == 0, errors
    made = set((place / "runs").iterdir()) - before
    assert len(made) == 2
    one, other = (result(folder) for folder in made)
    assert one[0] == other[0]


def first_step(notebook):
    """Where the progress bar of the training cell began."""
    cells = {cell.id: cell for cell in nbformat.read(notebook, as_version=4).cells}
    shown = [out.text for out in cells["train"].outputs if out.get("name") == "stderr"]
    return int(re.search(r"\| (\d+)/", shown[0])[1])


@pytest.fixture
def few_tickets(tmp_path):
    """A folder with tickets of one's own: the first ones of the kit's, without its policy."""
    folder = tmp_path / "tickets"
    folder.mkdir()
    for name, count in (("tickets_train", 80), ("tickets_dev", 12), ("tickets_test", 24)):
        lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / f"{name}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    return folder


def test_a_fresh_clone_trains_with_one_command_and_the_same_one_resumes(tmp_path, few_tickets):
    """The newcomer's way, in the short form: a clone, one command, killed in mid-training; the same
    command again; a report. The tickets are few: most of the time would go into scores."""
    clone, log = tmp_path / "clone", tmp_path / "log.txt"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    foreign = ("PYTHON", "VIRTUAL_ENV", "JUPYTER")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    environment["QLORA_KIT_PROFILE"] = "smollm2-135m-short"

    base = [os.path.realpath(sys.executable), "-m", "qlora_kit"]

    def train():
        with open(log, "w") as file:
            return subprocess.Popen(
                [*base, "train", "--data", str(few_tickets)],
                cwd=clone,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    killed = train()
    try:
        wait_for(lambda: list((clone / "runs").glob("*/checkpoints/*/manifest.json")), killed, 1800)
        kernel = kernel_of(killed)
    finally:
        print(log.read_text())
        killed.kill()
        killed.wait()
    resumed = train()  # at once: the orphan may live for another second, disturbs nothing
    assert resumed.wait() == 0, log.read_text()
    assert not alive(kernel)
    [folder] = (clone / "runs").iterdir()
    said = log.read_text()
    assert f"Resuming {folder.name} from checkpoint-" in said
    assert "category right" in said
    report = json.loads((folder / "report.json").read_text())
    step = first_step(folder / "06_train_gemma.ipynb")
    assert step and report["resumed_from"] == f"checkpoint-{step}"
    assert report["base_unchanged"]
    assert report["after"]["perplexity"] < report["before"]["perplexity"]
    assert 0 < report["tokens_per_second"] < 1e5
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert (folder / "loss.png").exists()
    assert not pickles(folder)
    assert not (folder / "checkpoints").exists()
    # The next call finds the environment and the model again.
    again = subprocess.run([*base, "fetch"], cwd=clone, env=environment, capture_output=True)
    assert again.stdout.startswith(b"smollm2-135m-short is in ")
