"""A run's folder: held, interrupted, resumed if nothing has changed, finished."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
import zipfile

import nbformat
import pytest
import tiny_run
import torch
import transformers

from qlora_kit import fetch, models
from qlora_kit.__main__ import parser
from qlora_kit.cli import commands, notebooks, tables
from qlora_kit.errors import KitError
from qlora_kit.notebook import download_link
from qlora_kit.paths import DATA
from qlora_kit.training import runs

SHORT = models.PROFILES["smollm2-135m-short"]
CPU = models.Dtypes("cpu", torch.float32, torch.float32)


@pytest.fixture(autouse=True)
def folder_of_runs(tmp_path, monkeypatch):
    """An empty runs/ of one's own; what this test holds is let go at its end."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(runs, "locks", [])
    yield
    let_go()


def let_go():
    """What the end of a process does to the runs that it holds."""
    while runs.locks:
        runs.locks.pop().release()


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"tickets_{name}.jsonl").write_text(f'{{"category": "bug", "in": "{name}"}}\n')
    return folder


@pytest.fixture
def now(data):
    return runs.settings(SHORT, CPU, 0, data)


def interrupted(settings):
    """A run that was begun, and whose process is gone."""
    folder = runs.new_run(SHORT.name)
    runs.begin(folder, settings)
    let_go()
    return folder


def make_checkpoint(run, step):
    """A whole checkpoint with the trainer's pickles in it."""
    folder = run / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    torch.save({"state": torch.ones(1000)}, folder / "optimizer.pt")
    torch.save({"last_epoch": step}, folder / "scheduler.pt")
    torch.save({"cpu": torch.random.get_rng_state()}, folder / "rng_state.pth")
    (folder / "trainer_state.json").write_text('{"global_step": 1}')
    fetch.write_manifest(folder)
    return folder


def test_runs_of_the_same_second_get_folders_of_their_own():
    folders = {runs.new_run(SHORT.name) for _ in range(3)}
    assert len(folders) == 3
    assert all(folder.name.split("-", 4)[4].startswith(SHORT.name) for folder in folders)


def test_a_run_of_a_notebook_has_its_name(monkeypatch):
    """One of notebook 02 is no training of a model, and does not look like one."""
    monkeypatch.setattr(notebooks, "execute", lambda notebook, folder, values: None)
    for number in ("02", "06"):
        commands.run(parser().parse_args(["run", number]))
    names = sorted(folder.name.split("-", 4)[4] for folder in runs.RUNS.iterdir())
    assert names == ["02_nf4_by_hand", "06_train_gemma"]


def test_only_trainings_are_looked_at_for_one_to_resume(now, monkeypatch, capfd):
    """A folder of another notebook may hold files of any name."""

    def execute(notebook, folder, values):
        runs.write_json(folder / "settings.json", {"levels": 16})
        raise KeyboardInterrupt

    monkeypatch.setattr(notebooks, "execute", execute)
    with pytest.raises(KeyboardInterrupt):
        commands.run(parser().parse_args(["run", "02"]))
    let_go()
    assert runs.unfinished(now) is None
    assert capfd.readouterr().out == ""


def test_the_newest_unfinished_run_is_found(now):
    interrupted(now)
    newest = interrupted(now)
    assert runs.unfinished(now) == newest
    assert runs.unfinished(now) != newest, "it is held now"


def test_a_finished_run_is_not_resumed_and_keeps_no_pickle(now):
    folder = interrupted(now)
    make_checkpoint(folder, 10)
    runs.write_json(folder / "report.json", {})  # killed before it removed the checkpoints
    assert runs.unfinished(now) is None
    assert not (folder / "checkpoints").exists()


def test_a_run_is_held_until_its_process_ends_however_it_ends(now, capfd):
    folder = interrupted(now)
    code = f"""
import pathlib, time
from qlora_kit.training import monitor, runs
print(runs.acquire(pathlib.Path({str(folder)!r})), flush=True)
time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "True\n"
    assert runs.unfinished(now) is None
    assert "is in use by another process; skipped" in capfd.readouterr().out
    holder.kill()
    holder.wait()
    assert runs.unfinished(now) == folder


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 1}, "seed"),
        ({"learning_rate": 1.0}, "learning_rate"),
        ({"compute": "torch.bfloat16"}, "compute"),
        ({"torch": "1.0"}, "torch"),
        ({"tickets_train.jsonl": "another hash"}, "tickets_train.jsonl"),
    ],
)
def test_a_run_with_other_settings_is_left_alone_and_says_why(now, capfd, change, named):
    folder = interrupted(now)
    assert set(change) <= set(now)
    assert runs.unfinished(now | change) is None
    line = capfd.readouterr().out
    assert f"{folder.name} is not resumed: {named} changed after it began. Restore" in line
    assert runs.unfinished(now) == folder, "nothing of it is lost"


def test_a_run_of_another_profile_or_from_jupyter_is_left_alone_without_a_word(now, capfd):
    interrupted(now)
    assert runs.unfinished(now | {"profile": "gemma-3-1b"}) is None
    assert runs.unfinished(now | {"06_train_gemma.ipynb": "its code"}) is None
    assert capfd.readouterr().out == ""


@pytest.fixture
def given():
    """What the trainer of a notebook is given."""
    return tiny_run.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]), transformers.LlamaConfig()


def from_notebook(now, *given):
    """A run of a notebook whose kernel is gone."""
    folder = runs.resume_or_new(SHORT, now, *given)
    make_checkpoint(folder, 10)
    let_go()
    return folder


def test_a_notebook_that_was_cut_off_goes_on_when_it_is_run_again(now, given):
    folder = from_notebook(now, *given)
    assert runs.resume_or_new(SHORT, now, *given) == folder
    assert runs.begin(folder, now).name == "checkpoint-10"
    assert runs.resume_or_new(SHORT, now, *given) != folder, "one kernel has it"


def test_another_run_of_the_same_kernel_says_nothing_of_another_process(now, given, capfd):
    runs.resume_or_new(SHORT, now, *given)
    runs.resume_or_new(SHORT, now, *given)
    assert capfd.readouterr().out == ""


def test_a_notebook_whose_cells_were_edited_begins_anew_and_says_why(now, given, capfd):
    folder = from_notebook(now, *given)
    given[0].lora_alpha *= 2
    assert runs.resume_or_new(SHORT, now, *given) != folder
    said = capfd.readouterr().out
    assert f"{folder.name} is not resumed: configuration changed after it began." in said
    let_go()
    assert runs.resume_or_new(SHORT, now | {"seed": 1}, *given) != folder
    assert runs.resume_or_new(SHORT, now, *given[::-1]) != folder


def test_train_and_a_notebook_leave_each_others_runs_alone(now, given, capfd):
    of_train = now | {"06_train_gemma.ipynb": "its code"}
    theirs, ours = interrupted(of_train), from_notebook(now, *given)
    assert runs.unfinished(of_train) == theirs
    assert runs.resume_or_new(SHORT, now, *given) == ours
    assert capfd.readouterr().out == ""


def test_what_the_trainer_is_given_reads_the_same_in_every_process(python):
    """A set of strings is in another order in every process."""
    code = """
import json, peft
from qlora_kit.training import monitor, runs
lora = peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "up_proj"])
print(json.dumps(lora.to_dict(), sort_keys=True, default=runs.text_of))
"""
    said = {python(code, PYTHONHASHSEED=str(seed), OMP_NUM_THREADS="1").stdout for seed in (1, 2)}
    assert len(said) == 1 and "q_proj" in said.pop()


def test_runs_lie_on_a_mounted_drive(tmp_path, now, monkeypatch):
    local = interrupted(now)
    monkeypatch.setattr(runs, "DRIVE", tmp_path / "MyDrive")
    assert runs.unfinished(now) == local
    runs.DRIVE.mkdir()
    folder = interrupted(now)
    assert folder.parent == tmp_path / "MyDrive" / "qlora-kit-runs"
    assert runs.unfinished(now) == folder


@pytest.fixture
def adapter(tmp_path):
    folder = tmp_path / "runs" / "now" / "adapter"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_jupyter_gets_a_link_to_the_zipped_adapter(adapter, tmp_path, monkeypatch, capfd):
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    monkeypatch.chdir(notebooks)
    shown = []
    monkeypatch.setattr("qlora_kit.notebook.display", shown.append)
    download_link(adapter)
    [page] = shown
    link = re.search('href="(.+?)"', page.data)[1]
    assert not os.path.isabs(link)
    with zipfile.ZipFile(notebooks / link) as archive:
        assert archive.namelist() == ["adapter_config.json"]
    said = capfd.readouterr().out
    assert said.startswith("adapter.zip, 0.0 MB, is in now")
    assert str(tmp_path) not in said + page.data + repr(page)


def test_colab_is_asked_to_download_the_zipped_adapter(adapter, monkeypatch):
    asked = []
    page = types.SimpleNamespace(files=types.SimpleNamespace(download=asked.append))
    monkeypatch.setitem(sys.modules, "google.colab", page)
    download_link(adapter)
    assert asked == [str(adapter.parent / "adapter.zip")]
    assert (adapter.parent / "adapter.zip").exists()


def test_settings_know_the_data_the_recipe_the_seed_and_the_number_formats(data, now):
    assert runs.settings(SHORT, CPU, 0, data) == now == json.loads(json.dumps(now))
    longer = dataclasses.replace(SHORT, recipe=dataclasses.replace(SHORT.recipe, epochs=9))
    half = models.Dtypes("cpu", torch.bfloat16, torch.bfloat16)
    others = [
        runs.settings(longer, CPU, 0, data),
        runs.settings(SHORT, half, 0, data),
        runs.settings(SHORT, CPU, 1, data),
    ]
    (data / "tickets_train.jsonl").write_text("trai2\n")
    others.append(runs.settings(SHORT, CPU, 0, data))
    assert all(other != now for other in others)


def test_the_code_of_a_notebook_counts_and_its_texts_and_outputs_do_not(tmp_path):
    def digest(code, text="text", output="1"):
        cell = nbformat.v4.new_code_cell(code)
        cell.outputs = [nbformat.v4.new_output("stream", text=output)]
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), cell])
        nbformat.write(book, tmp_path / "book.ipynb")
        return runs.code_digest(tmp_path / "book.ipynb")

    assert digest("1") == digest("1", "another text", "2")
    assert digest("1") != digest("2")


def test_a_new_run_has_no_checkpoint_and_notes_its_settings(now):
    folder = runs.new_run(SHORT.name)
    assert runs.begin(folder, now) is None
    assert json.loads((folder / "settings.json").read_text()) == now


def test_data_that_changed_between_kill_and_resume_is_one_sentence(now):
    folder = interrupted(now)
    checkpoint = make_checkpoint(folder, 10)
    with pytest.raises(KitError, match=r"tickets_test.jsonl changed after it began\. Restore"):
        runs.begin(folder, now | {"tickets_test.jsonl": "another hash"})
    assert runs.begin(folder, now) == checkpoint


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text('{"optimizer.pt": "12'),
        lambda folder: os.truncate(folder / "optimizer.pt", 100),
        lambda folder: (folder / "scheduler.pt").unlink(),
        lambda folder: (folder / "trainer_state.json").write_text('{"global_step": 2}'),
    ],
)
def test_a_half_written_checkpoint_is_never_taken(now, capfd, damage):
    folder = interrupted(now)
    whole, half = make_checkpoint(folder, 9), make_checkpoint(folder, 10)
    assert runs.begin(folder, now) == half, "the newest, by number"
    damage(half)
    assert runs.begin(folder, now) == whole
    assert "checkpoint-10 is incomplete" in capfd.readouterr().out
    assert not half.exists(), "or the trainer would count it as one of the two newest"


class Bomb:
    """What an attacker would write into a pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_that_could_run_code_is_refused_and_not_run(now, tmp_path, name):
    folder = interrupted(now)
    checkpoint = make_checkpoint(folder, 10)
    torch.save({"state": Bomb(tmp_path / "bang")}, checkpoint / name)
    (checkpoint / "manifest.json").unlink()
    fetch.write_manifest(checkpoint)
    with pytest.raises(KitError, match=f"{name} holds more than numbers"):
        runs.begin(folder, now)
    assert not (tmp_path / "bang").exists()
    torch.load(checkpoint / name, weights_only=False)
    assert (tmp_path / "bang").exists(), "the bomb was a dud"


def test_a_report_is_whole_or_absent_and_the_checkpoints_go_last(tmp_path, now):
    run = tmp_path / "run"
    run.mkdir()
    runs.begin(run, now)
    make_checkpoint(run, 10)
    with pytest.raises(TypeError):
        runs.finish(run, {"steps": object()})
    assert not (run / "report.json").exists()
    assert (run / "checkpoints").exists()
    for steps in (2, 3):  # the cell that does it can be run twice
        runs.finish(run, {"steps": steps})
    kept = {"versions": runs.versions(), "settings": now}
    assert runs.read_json(run / "report.json") == {"steps": 3} | kept
    assert [path.name for path in run.iterdir() if path.is_dir()] == []


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of 20 steps without interruption; checkpoints 16 and 20 are left of it."""
    run = tmp_path_factory.mktemp("unbroken")
    trainer = tiny_run.make_trainer(run)
    trainer.train()
    return run, trainer


@pytest.mark.parametrize("step", [16, 20])
def test_a_resumed_run_ends_where_an_unbroken_one_does(unbroken, tmp_path, now, step):
    """From the middle, and from the last step, as after a kill while the result was scored."""
    whole_run, whole = unbroken
    run = tmp_path / "run"
    source = whole_run / "checkpoints" / f"checkpoint-{step}"
    shutil.copytree(source, run / "checkpoints" / source.name)
    trainer = tiny_run.make_trainer(run)
    checkpoint = runs.begin(run, now)
    assert checkpoint.name == source.name
    trainer.train(resume_from_checkpoint=checkpoint)
    assert trainer.state.global_step == 20
    torch.testing.assert_close(tiny_run.adapter(trainer), tiny_run.adapter(whole))
    assert tiny_run.losses(trainer) == pytest.approx(tiny_run.losses(whole), rel=1e-5)
    assert len(set(tiny_run.losses(whole))) == 20


def test_the_seconds_of_a_resumed_run_are_those_of_all_its_steps(unbroken, tmp_path):
    whole_run, whole = unbroken
    state = json.loads(
        (whole_run / "checkpoints" / "checkpoint-16" / "trainer_state.json").read_text()
    )
    before = runs.training_seconds(types.SimpleNamespace(**state))
    pause = 0.2
    trainer = tiny_run.make_trainer(tmp_path, pause)
    trainer.train(resume_from_checkpoint=whole_run / "checkpoints" / "checkpoint-16")
    assert 0 < before < runs.training_seconds(whole.state)
    assert runs.training_seconds(trainer.state) > before + 3 * pause


def test_the_trainers_arguments_are_never_unpickled(unbroken, tmp_path):
    whole_run, _ = unbroken
    checkpoint = tmp_path / "checkpoint-20"
    shutil.copytree(whole_run / "checkpoints" / "checkpoint-20", checkpoint)
    torch.save(Bomb(tmp_path / "bang"), checkpoint / "training_args.bin")
    tiny_run.make_trainer(tmp_path).train(resume_from_checkpoint=checkpoint)
    assert not (tmp_path / "bang").exists()


def test_weights_are_safetensors_and_nothing_else(unbroken):
    whole_run, _ = unbroken
    names = {file.name for file in (whole_run / "checkpoints" / "checkpoint-20").iterdir()}
    assert "adapter_model.safetensors" in names
    pickles = {name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))}
    assert pickles == {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"}


def test_a_disk_too_full_for_a_checkpoint_is_one_sentence(tmp_path, monkeypatch):
    trainer = tiny_run.make_trainer(tmp_path)
    space = iter([10**12, 10**7])  # enough for the first checkpoint only
    monkeypatch.setattr(
        runs.shutil, "disk_usage", lambda folder: types.SimpleNamespace(free=next(space))
    )
    with pytest.raises(KitError, match=r"has 0.01 GB free and a checkpoint needs 0.10 GB\. Make"):
        trainer.train()
    assert runs.begin(tmp_path, {}).name == "checkpoint-4"
    assert [path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")] == [
        "checkpoint-4"
    ]


def test_a_disk_that_fills_up_while_a_checkpoint_is_written_loses_none(tmp_path):
    """No file may grow beyond 20 kB: the adapter fits, the optimizer's state does not."""
    resource = pytest.importorskip("resource", reason="Windows has no limit of that kind")
    trainer = tiny_run.make_trainer(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(tiny_run.Pause):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 8:
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    trainer.add_callback(Fill(0))
    try:
        with pytest.raises((OSError, RuntimeError)):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "checkpoints" / "checkpoint-8" / "adapter_model.safetensors").exists()
    assert runs.begin(tmp_path, {}).name == "checkpoint-4"


@pytest.fixture
def train(monkeypatch, tmp_path):
    """The command `train`, with an `execute` that a test chooses in the place of a real run."""
    monkeypatch.setenv("QLORA_KIT_PROFILE", SHORT.name)
    monkeypatch.setattr(models, "pick_dtypes", lambda: CPU)
    monkeypatch.setattr(tables, "before_and_after", lambda report: f"steps: {report['steps']}")

    def call(execute, *options):
        monkeypatch.setattr(notebooks, "execute", execute)
        try:
            return commands.train(parser().parse_args(["train", *options]))
        finally:
            let_go()

    return call


def succeed(notebook, folder, values):
    assert values["run_dir"] == str(folder)
    (folder / "checkpoints").mkdir(exist_ok=True)
    runs.finish(folder, {"steps": 20})


def stopped(error):
    def execute(notebook, folder, values):
        make_checkpoint(folder, 10)
        raise error

    return execute


def test_ctrl_c_says_that_the_same_command_continues_and_it_does(train, capfd):
    assert train(stopped(KeyboardInterrupt())) == 130
    [folder] = runs.RUNS.iterdir()
    said = capfd.readouterr().err
    assert f"Stopped. To continue {folder.name}, run the same command again." in said
    assert train(succeed) == 0
    assert f"Resuming {folder.name} from checkpoint-10" in capfd.readouterr().out
    assert list(runs.RUNS.iterdir()) == [folder]
    assert train(succeed) == 0
    assert len(list(runs.RUNS.iterdir())) == 2, "a finished run is not resumed"


@pytest.mark.parametrize(
    "error", [KitError("The notebook's process was ended."), OSError(28, "No space left on device")]
)
def test_a_run_that_fails_says_that_the_same_command_continues(train, error):
    with pytest.raises(KitError, match=r"(ended|device)\. To continue 20.*, run the same command"):
        train(stopped(error))


def test_new_begins_another_run(train):
    train(stopped(KeyboardInterrupt()))
    assert train(succeed, "--new") == 0
    assert len(list(runs.RUNS.iterdir())) == 2
    assert len(list(runs.RUNS.glob("*/checkpoints"))) == 1


def test_a_changed_cell_of_the_notebook_begins_another_run(train, tmp_path, monkeypatch, capfd):
    train(stopped(KeyboardInterrupt()))
    copy = tmp_path / "notebooks"
    shutil.copytree(commands.NOTEBOOKS, copy)
    monkeypatch.setattr(commands, "NOTEBOOKS", copy)
    book = nbformat.read(copy / "06_train_gemma.ipynb", as_version=4)
    next(cell for cell in book.cells if cell.id == "config").source += "\nconfig.weight_decay = 1"
    nbformat.write(book, copy / "06_train_gemma.ipynb")
    train(succeed)
    assert "06_train_gemma.ipynb changed after it began" in capfd.readouterr().out
    assert len(list(runs.RUNS.iterdir())) == 2


OWN = ["--seed=3", "--rank=4", "--alpha=9", "--learning-rate=1e-3", "--rows=32", "--epochs=2"]


@pytest.mark.parametrize(
    "options", [[], OWN, ["--long"], ["--targets=q_proj, v_proj"], "own data"], ids=str
)
def test_the_notebooks_own_settings_are_a_part_of_those_of_train(data, monkeypatch, options):
    """Else the notebook would refuse the run that `train` has begun."""
    if options == "own data":
        options = ["--data", str(data), "--categories", "bug,praise"]
    values = commands.given_settings(parser().parse_args(["train", *options]))
    notebook = commands.find_notebook("06")
    of_train = commands.training_settings(notebook, SHORT, values)
    of_notebook = settings_of_the_notebook(notebook, values, monkeypatch)
    assert of_notebook.items() <= of_train.items()
    assert of_train.keys() - of_notebook.keys() == {notebook.name}
    for name in values.keys() - {"data_dir", "long"}:
        assert of_notebook[name] == values[name], name
    if options == ["--long"]:
        assert of_notebook["rows"] == SHORT.long.rows > SHORT.recipe.rows


def settings_of_the_notebook(path, values, monkeypatch):
    """What notebook 06 computes by its own cells, with `values` in its parameters cell."""
    monkeypatch.setattr(models, "pick_profile", lambda: SHORT)
    monkeypatch.setattr(models, "get_weights", lambda profile: (profile, None))
    cells = {cell.id: cell.source for cell in nbformat.read(path, as_version=4).cells}
    names = {"models": models, "runs": runs, "replace": dataclasses.replace, "DATA": DATA}
    exec(cells["settings"], names)
    exec(cells["profile"], names | {}, given := names | values)
    for cell, name in (("data", "source"), ("run", "settings")):
        [line] = [one for one in cells[cell].splitlines() if one.startswith(f"{name} = ")]
        exec(line, given | {"Path": pathlib.Path}, given)
    return given["settings"]


def test_train_with_own_data_and_numbers_passes_them_on_and_resumes(train, data, capfd):
    options = ["--data", str(data), "--categories", "bug, praise", *OWN]
    passed = []

    def execute(notebook, folder, values):
        passed.append(values)
        if len(passed) == 1:
            make_checkpoint(folder, 10)
        raise KeyboardInterrupt

    assert train(execute, *options) == 130
    [folder] = runs.RUNS.iterdir()
    values = {"data_dir": str(data), "categories": ["bug", "praise"], "seed": 3, "rank": 4}
    values |= {"alpha": 9, "learning_rate": 1e-3, "rows": 32, "epochs": 2}
    assert passed == [values | {"run_dir": str(folder)}]
    assert train(execute, *options) == 130
    assert f"Resuming {folder.name} from checkpoint-10" in capfd.readouterr().out
    train(execute, *options[:-1])
    said = capfd.readouterr().out
    assert f"{folder.name} is not resumed: epochs changed after it began." in said
    assert len(list(runs.RUNS.iterdir())) == 2


def test_other_categories_are_another_run(train, data, capfd):
    options = ["--data", str(data), "--categories"]
    train(stopped(KeyboardInterrupt()), *options, "bug,praise")
    train(stopped(KeyboardInterrupt()), *options, "bug,praise,question")
    assert "categories changed after it began" in capfd.readouterr().out


def test_the_settings_stand_in_the_report(train, data):
    assert train(succeed, "--data", str(data), "--categories=bug,praise", "--rank=4") == 0
    [folder] = runs.RUNS.iterdir()
    report = runs.read_json(folder / "report.json")
    assert report["steps"] == 20
    assert report["settings"] == runs.read_json(folder / "settings.json")
    assert report["settings"]["rank"] == 4 and "tickets_train.jsonl" in report["settings"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no exec that keeps the process")
def test_no_process_stands_between_the_user_and_the_kits_environment(tmp_path):
    """A signal to the command that the user has started must reach what runs, even SIGKILL."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho $$ $@\n")
    python.chmod(0o755)
    code = f"""
import sys
from qlora_kit import bootstrap
bootstrap.in_kit_environment = lambda: False  # CI's tests run in it
bootstrap.missing = lambda extras: ["torch"]
bootstrap.stamp_is_good = lambda: True
bootstrap.venv_python = lambda: {str(python)!r}
sys.argv[1:] = ["train", "--new"]
bootstrap.ensure("train")
"""
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    out, _ = run.communicate()
    assert out == f"{run.pid} -m qlora_kit train --new\n"
