"""The command line."""

import base64
import io
import json
import os
import re
import shutil
import sys
import types

import nbformat
import pytest
import torch

from qlora_kit import bootstrap, course, doctor, memory, models
from qlora_kit.__main__ import MODELS, main, parser
from qlora_kit.cli import commands, link, notebooks, tables
from qlora_kit.doctor import hardware
from qlora_kit.errors import KitError
from qlora_kit.paths import ROOT
from qlora_kit.training import runs


@pytest.mark.parametrize(
    "text, expected",
    [
        ("seed=1", ("seed", 1)),
        ("rate=2e-4", ("rate", 2e-4)),
        ("data_dir=my/folder", ("data_dir", "my/folder")),
        ("categories=('bug', 'praise')", ("categories", ("bug", "praise"))),
        ("empty=", ("empty", "")),
    ],
)
def test_settings_are_literals_or_text(text, expected):
    assert notebooks.setting(text) == expected


@pytest.mark.parametrize("text", ["seed", "=1", "a b=1"])
def test_a_setting_of_another_form_is_refused(text):
    with pytest.raises(KitError, match="NAME=VALUE"):
        notebooks.setting(text)


def test_an_unknown_notebook_names_the_known_ones():
    with pytest.raises(KitError, match=r"no notebook 99; there are .*06"):
        commands.find_notebook("99")
    assert commands.find_notebook("6").name == "06_train_gemma.ipynb"
    assert commands.find_notebook("a1").name == "a1_number_formats.ipynb"


@pytest.fixture
def notebook(tmp_path, monkeypatch, write_notebook):
    """Writes a small notebook 01 of the given cells, the only one that there is."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    return lambda *sources: write_notebook(tmp_path / "01_small.ipynb", *sources)


def test_run_sets_parameters_and_keeps_the_executed_copy(notebook, tmp_path):
    book = notebook("seed = 0", "print(seed + 1)")
    folder = tmp_path / "run"
    folder.mkdir()
    notebooks.execute(book, folder, {"seed": 41})
    executed = nbformat.read(folder / book.name, as_version=4)
    assert executed.cells[-1].outputs[0].text == "42\n"


def test_an_unknown_parameter_names_the_known_ones(notebook):
    with pytest.raises(KitError, match="has no parameter sead; it has seed"):
        notebooks.checked(notebook("seed = 0"), ["sead=1"])


def test_a_folder_is_taken_from_where_the_user_stands(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tickets(tmp_path / "mine")
    book = notebook("data_dir = ''\nrun_dir = ''\nseed = 0")
    values = notebooks.checked(book, ["data_dir=mine", "run_dir=there", "seed=1"])
    mine, there = str(tmp_path / "mine"), str(tmp_path / "there")
    assert values == {"data_dir": mine, "run_dir": there, "seed": 1}


def write_tickets(folder):
    folder.mkdir()
    for name in ("train", "dev", "test"):
        (folder / f"tickets_{name}.jsonl").touch()


def test_a_list_reaches_the_notebook_as_one(notebook, tmp_path):
    """papermill passes a tuple on as a text."""
    book = notebook("names = None\ncategories = None", "print(names, categories)")
    values = notebooks.checked(book, ["names=(1, 2)", "categories=('bug', 'praise')"])
    notebooks.execute(book, tmp_path, values)
    executed = nbformat.read(tmp_path / book.name, as_version=4)
    assert executed.cells[-1].outputs[0].text == "[1, 2] ['bug', 'praise']\n"


@pytest.mark.parametrize(
    "text", ["bug,praise", " bug, praise", "('bug', 'praise')", '["bug", "praise"]', "'bug,praise'"]
)
def test_categories_are_read_in_every_form_that_people_write(notebook, text):
    values = notebooks.checked(notebook("categories = None"), [f"categories={text}"])
    assert values == {"categories": ["bug", "praise"]}


@pytest.mark.parametrize(
    "text", ["bug", "5", "bug,", "bug,bug", "bug,,praise", "['bug', 'praise'", "{'bug': 1, 'p': 2}"]
)
def test_categories_of_another_form_are_refused_with_the_right_one(notebook, text):
    """A text would be taken letter by letter, and one category leaves nothing to learn."""
    with pytest.raises(KitError, match="such as bug,praise") as caught:
        notebooks.checked(notebook("categories = None"), [f"categories={text}"])
    assert len(str(caught.value).splitlines()) == 1


def test_the_notebook_itself_refuses_categories_that_are_a_text():
    cell = source_of("data")
    [guard] = [line for line in cell.splitlines() if line.startswith("assert")]
    exec(guard, {"known": ["bug", "praise"]})
    with pytest.raises(AssertionError, match="must be a list"):
        exec(guard, {"known": "bug,praise"})


def source_of(cell):
    """The source of a cell of notebook 06."""
    book = nbformat.read(commands.find_notebook("06"), as_version=4)
    return next(found.source for found in book.cells if found.id == cell)


def test_train_has_an_option_for_each_setting_of_the_notebook():
    """All but the folder of the run, which `train` chooses."""
    settings = set(notebooks.parameters(commands.find_notebook("06")))
    options = vars(parser().parse_args(["train"])).keys() - {"command", "new", "profile"}
    assert settings - {"run_dir"} == {{"data": "data_dir"}.get(name, name) for name in options}


def test_an_empty_value_leaves_the_notebooks_own(notebook):
    book = notebook("data_dir = ''\nseed = 0\ncategories = None")
    assert notebooks.checked(book, ["data_dir=", "seed=", "categories=", "data_dir=''"]) == {}


@pytest.mark.parametrize(
    "setting, words",
    [
        ("rank=0", "rank must be a whole number, 1 or more, not 0"),
        ("rows=-1", "rows must be a whole number, 1 or more, not -1"),
        ("epochs=1.5", "epochs must be a whole number, 1 or more, not 1.5"),
        ("rank=True", "rank must be a whole number, 1 or more, not True"),
        ("alpha=0", "alpha must be above 0, not 0"),
        ("alpha=much", "alpha must be above 0, not 'much'"),
        ("learning_rate=0", "learning_rate must be above 0, not 0"),
        ("learning_rate=-2e-4", "learning_rate must be above 0, not -0.0002"),
        ("learning_rate=1e999", "learning_rate must be above 0, not inf"),
        ("targets=nose", "targets must be some of q_proj, k_proj"),
        ("seed=-1", "seed must be a whole number from 0 to 4294967295, not -1"),
        ("seed=one", "seed must be a whole number from 0 to 4294967295, not 'one'"),
        ("categories=bug", "such as bug,praise"),
        ("data_dir=nowhere", "nowhere has no tickets_train.jsonl"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_sentence_before_anything_is_loaded(
    monkeypatch, tmp_path, setting, words
):
    """In `run 06 --set` and, under the option's name, in `train`."""
    monkeypatch.setattr(models, "get_weights", None)  # would raise
    monkeypatch.setattr(notebooks, "execute", None)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    name, _, value = setting.partition("=")
    option = {"data_dir": "--data"}.get(name, "--" + name.replace("_", "-"))
    for line in (["run", "06", "--set", setting], ["train", f"{option}={value}"]):
        try:
            arguments = parser().parse_args(line)
        except SystemExit:  # argparse has refused it: 'much' is no number
            continue
        with pytest.raises(KitError, match=re.escape(words)) as caught:
            getattr(commands, arguments.command)(arguments)
        assert len(str(caught.value).splitlines()) == 1
    assert not runs.RUNS.exists()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data", "mine"], "they have bug, praise"),
        (["--categories", "a,b"], "they have account, app, billing"),
        (["--data", "mine", "--categories", "Bug,Praise"], "such as --categories bug,praise"),
    ],
)
def test_categories_that_no_ticket_has_are_one_sentence(monkeypatch, tmp_path, options, words):
    """Not a line for each row that is left out, in the middle of the notebook."""
    monkeypatch.setattr(models, "get_weights", None)  # would raise
    monkeypatch.chdir(tmp_path)
    write_tickets(tmp_path / "mine")
    rows = [{"category": "bug"}, {"category": "praise"}, {"category": ["bug"]}, {}, 5]
    lines = [*map(json.dumps, rows), '{"category": "half a li', ""]
    (tmp_path / "mine" / "tickets_train.jsonl").write_text("\n".join(lines))
    with pytest.raises(KitError, match=words) as caught:
        commands.train(parser().parse_args(["train", *options]))
    assert len(str(caught.value).splitlines()) == 1
    commands.check_settings({"data_dir": tmp_path / "mine", "categories": ["bug", "riddle"]})


@pytest.mark.parametrize("command", ["train", "run 06", "fetch", "doctor", "bench train"])
def test_a_profile_can_be_named_wherever_a_model_is_meant(monkeypatch, command):
    monkeypatch.setenv("QLORA_KIT_PROFILE", "smollm2-135m")
    arguments = parser().parse_args([*command.split(), "--profile", "gemma-3-270m"])
    commands.choose_profile(arguments)
    assert models.pick_profile().name == "gemma-3-270m"


def test_the_help_names_every_profile_but_the_short_form_for_tests():
    assert list(MODELS) == [name for name in models.PROFILES if not name.endswith("-short")]


def test_an_unknown_profile_is_refused_with_the_known_ones(monkeypatch, capsys):
    monkeypatch.setenv("QLORA_KIT_PROFILE", "smollm2-135m")
    monkeypatch.setattr(sys, "argv", ["qlora_kit", "doctor", "--profile", "gemma-9"])
    monkeypatch.setattr(bootstrap, "ensure", lambda command: None)
    assert main() == 1
    said = capsys.readouterr().err
    assert "no profile 'gemma-9'" in said and "gemma-3-270m" in said
    assert os.environ["QLORA_KIT_PROFILE"] == "smollm2-135m"


@pytest.mark.parametrize("command", ["bench nf4", "run 02"])
def test_a_profile_is_refused_where_no_model_is_chosen(monkeypatch, command):
    monkeypatch.setenv("QLORA_KIT_PROFILE", "smollm2-135m")
    arguments = parser().parse_args([*command.split(), "--profile", "gemma-3-270m"])
    with pytest.raises(KitError, match="--profile"):
        getattr(commands, arguments.command)(arguments)


def test_fetch_takes_the_profile_as_a_word_or_as_an_option(monkeypatch):
    fetched = []

    def get_weights(profile):
        fetched.append(profile.name)
        return profile, "a folder"

    monkeypatch.setattr(models, "get_weights", get_weights)
    monkeypatch.setenv("QLORA_KIT_PROFILE", "smollm2-135m")
    for words in (["gemma-3-270m"], ["--profile", "gemma-3-270m"], []):
        arguments = parser().parse_args(["fetch", *words])
        commands.choose_profile(arguments)
        commands.fetch(arguments)
        os.environ["QLORA_KIT_PROFILE"] = "smollm2-135m"
    assert fetched == ["gemma-3-270m", "gemma-3-270m", "smollm2-135m"]
    with pytest.raises(SystemExit):
        parser().parse_args(["fetch", "gemma-3-270m", "--profile", "smollm2-135m"])


def test_doctor_says_what_each_notebook_takes_here(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "machine", lambda: [doctor.Finding("ok", "fine")])
    monkeypatch.setattr(memory, "free_bytes", lambda: 1.0e9)
    monkeypatch.setenv("QLORA_KIT_PROFILE", "smollm2-135m")
    assert commands.doctor(None) == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    for stage in course.STAGES:
        row = rows[stage.number]
        assert f"{stage.minutes:g} min" in row and f"{stage.gigabytes:g} GB" in row
        assert ("needs more than is free" in row) == (stage.gigabytes > 1.0), row


def test_doctor_knows_that_a_larger_model_takes_more(monkeypatch, capsys):
    """At least the difference of the two steps; a measured run of Gemma 3 270M took more still."""
    report = json.loads((ROOT / "data" / "gemma_270m_report.json").read_text(encoding="utf-8"))
    cpu = models.Dtypes("cpu", torch.bfloat16, torch.bfloat16)
    small, gemma, large = (
        {stage.number: stage for stage in hardware.stages(models.PROFILES[name], cpu)}
        for name in ("smollm2-135m", "gemma-3-270m", "gemma-3-4b")
    )
    assert tuple(small.values()) == course.STAGES
    takes = [stages["06"].gigabytes for stages in (small, gemma, large)]
    assert takes[0] < takes[1] < report["peak_memory_bytes"] / 1e9
    assert takes[1] < takes[2]
    assert [number for number in small if gemma[number] != small[number]] == ["06"]
    monkeypatch.setattr(doctor, "machine", lambda: [doctor.Finding("ok", "fine")])
    monkeypatch.setattr(memory, "free_bytes", lambda: 2.7e9)
    monkeypatch.setattr(models, "pick_dtypes", lambda: cpu)
    monkeypatch.setenv("QLORA_KIT_PROFILE", "gemma-3-270m")
    commands.doctor(None)
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  06")]
    assert re.search(rf"longer +> {takes[1]:g} GB", row)
    assert row.endswith("needs more than is free, with gemma-3-270m")
    on_gpu = models.Dtypes("cuda", torch.bfloat16, torch.bfloat16)
    assert hardware.stages(models.PROFILES["gemma-3-1b"], on_gpu) == course.STAGES


def test_doctor_prints_no_table_where_packages_are_missing(monkeypatch, capsys):
    """There the memory that is free cannot be asked."""
    broken = [doctor.Finding("error", "seen", "why", "fix")]
    monkeypatch.setattr(doctor, "machine", lambda: broken)
    monkeypatch.setattr(memory, "free_bytes", None)  # would raise
    assert commands.doctor(None) == 1
    assert course.STAGES[-1].title not in capsys.readouterr().out


def test_a_process_that_was_killed_is_one_sentence(notebook, tmp_path):
    book = notebook("seed = 0", "import os; os.kill(os.getpid(), 9)")
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(KitError, match="memory ran out"):
        notebooks.execute(book, folder, {})


def test_a_failing_cell_is_one_sentence_and_the_copy_is_kept(notebook, tmp_path):
    book = notebook("seed = 0", "1 / seed")
    folder = tmp_path / "run"
    folder.mkdir()
    with pytest.raises(KitError, match="failed with ZeroDivisionError"):
        notebooks.execute(book, folder, {"seed": 0})
    assert (folder / book.name).exists()


def test_store_keeps_the_outputs_of_a_whole_run_only(notebook):
    book = notebook("x = 1", "print(x)")
    notebooks.store(book)
    stored = nbformat.read(book, as_version=4)
    assert [cell.execution_count for cell in stored.cells] == [1, 2]
    assert "execution" not in stored.cells[1].metadata
    assert set(stored.metadata) == {"kernelspec", "language_info"}
    broken = notebook("x = 1", "print(y)")
    before = broken.read_bytes()
    with pytest.raises(Exception, match="NameError"):
        notebooks.store(broken)
    assert broken.read_bytes() == before


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the files that carry the repository's address."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    monkeypatch.setattr(link, "ROOT", tmp_path)
    monkeypatch.setattr(link, "NOTEBOOKS", tmp_path / "notebooks")
    return tmp_path


def test_link_stamps_every_address_and_can_be_repeated(copy):
    def text():
        files = [copy / "README.md", copy / "pyproject.toml", *copy.glob("notebooks/*.ipynb")]
        return "\n".join(file.read_text(encoding="utf-8") for file in files)

    old = link.linked_repository()
    with open(copy / "README.md", "a", encoding="utf-8") as readme:
        readme.write(f"https://mybinder.org/v2/gh/{old}/main?urlpath=lab\n")
    original = text()
    commands.link(types.SimpleNamespace(repository="ada/kit.one"))
    stamped = text()
    for place in (
        "git clone https://github.com/",
        'address = \\"https://github.com/',  # in the set-up cells, as JSON has it
        "colab.research.google.com/github/",
        "mybinder.org/v2/gh/",
    ):
        assert place + old in original
        assert place + old not in stamped
        assert place + "ada/kit.one" in stamped
    commands.link(types.SimpleNamespace(repository=old))
    assert text() == original


@pytest.mark.parametrize("name", ["", "alone", "a/b/c", "a b/c", "https://github.com/a/b"])
def test_link_refuses_what_is_no_repository(copy, name):
    with pytest.raises(KitError, match="OWNER/REPO"):
        commands.link(types.SimpleNamespace(repository=name))


def test_the_table_shows_before_and_after():
    scores = {"category_accuracy": 0.125, "exact_match": 0.0, "stops_by_itself": 0.5}
    report = {
        "before": scores | {"perplexity": 30.0, "rows": 200},
        "after": scores | {"category_accuracy": 0.8, "perplexity": 3.0, "rows": 200},
        "trainable_parameters": 4_884_480,
        "total_parameters": 139_399_488,
        "train_seconds": 200.4,
        "tokens_per_second": 190.2,
        "peak_memory_bytes": 2_500_000_000,
        "adapter_bytes": 19_600_000,
    }
    table = tables.before_and_after(report)
    assert "200 held-out tickets" in table
    assert "12.5%   80.0%" in table
    assert "4,884,480 of 139,399,488 parameters" in table


def test_a_stored_picture_looks_the_same_in_fewer_bytes():
    from matplotlib.figure import Figure
    from PIL import Image, ImageChops

    figure, buffer = Figure(), io.BytesIO()
    figure.subplots().plot([1, 3, 2], color="#E69F00")
    figure.savefig(buffer, format="png")
    picture = base64.b64encode(buffer.getvalue()).decode()
    smaller = notebooks.smaller(picture)
    assert len(smaller) < len(picture) / 2
    before, after = (
        Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in (picture, smaller)
    )
    assert before.size == after.size
    assert max(most for _, most in ImageChops.difference(before, after).getextrema()) < 64
