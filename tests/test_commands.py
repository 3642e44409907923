"""The command line."""

import base64
import io
import shutil
import types

import nbformat
import pytest

from qlora_kit.cli import commands, link, notebooks, tables
from qlora_kit.errors import KitError
from qlora_kit.paths import ROOT


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
    values = notebooks.checked(notebook("data_dir = ''\nseed = 0"), ["data_dir=mine", "seed=1"])
    assert values == {"data_dir": str(tmp_path / "mine"), "seed": 1}


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
