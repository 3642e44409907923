"""What can be checked without running a notebook: no torch in here."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import qlora_kit
from qlora_kit import bootstrap, course, scoring
from qlora_kit.cli import link, tables
from qlora_kit.cli.notebooks import stored_picture
from qlora_kit.paths import DATA, ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
CLAIMS = tomllib.loads((ROOT / "tests" / "claims.toml").read_text(encoding="utf-8"))

# Cells whose outputs are not compared, by id, each with its reason. The facts that they lead to are
# printed by a compared cell further down.
MACHINE = "depends on the machine and the profile"
LEARNT = "scores and texts of one run: they differ between processors"
IGNORED = {
    "00_start_here": {"card": MACHINE, "fits": MACHINE},
    "01_rank_one_by_hand": {
        "taste-before": LEARNT,
        "taste-after": LEARNT,
        "kept": LEARNT,
    },
    "02_nf4_by_hand": {"weights": "the first run fetches them, with a progress bar"},
    "03_qlora_layer_by_hand": {
        "weights": "the first run fetches them, with a progress bar",
        "mother-tongue": LEARNT,
        "teach": LEARNT,
        "seeds": LEARNT,
        "write": LEARNT,
    },
    "04_memory_budget": {
        "load": "the first run fetches the weights, with a progress bar",
        "measure": "bitsandbytes may warn on some processors",
    },
    "05_attach_to_a_real_model": {
        "weights": "the first run fetches them, with a progress bar",
        "table": "seconds, and losses that differ between processors in the third digit",
        "stop": LEARNT,
    },
    "06_train_gemma": {
        "profile": MACHINE,
        "data": MACHINE,
        "quantised": MACHINE,
        "answers-before": LEARNT,
        "score-before": LEARNT,
        "recipe": MACHINE,
        "run": "says which runs were cut off, and why one is not resumed",
        "trainer": "may warn on some machines",
        "train": "seconds, and a progress bar",
        "budget": MACHINE,
        "answers-after": LEARNT,
        "score-after": LEARNT,
        "false-replies": LEARNT,
        "truth": LEARNT,
        "books": "stored trainings of the profile",
        "box": LEARNT,
        "rival-classifier": "seconds",
        "rival-prompt": "a progress bar",
        "rivals": LEARNT,
        "paired": LEARNT,
        "rival-replies": LEARNT,
        "seeds": "stored trainings of the profile",
        "examples": "how many rows the profile has",
        "price": "seconds",
        "save": "sizes depend on the profile",
        "download": "the name of one run's folder",
        "new-process": "in bfloat16 two answers can be equally likely: the last bit decides",
        "report": "seconds, bytes and paths of one run",
    },
    "a1_number_formats": {
        "types": LEARNT,
        "gemma-ready": MACHINE,
        "gemma-loss": "losses that differ between processors in the third digit",
        "gemma-underflow": "cosines that differ between processors in the last digit",
        "gemma-below": "proportions that differ between processors in the last digit",
    },
}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code_cells(book):
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def ignored(cell):
    return "nbval-ignore-output" in cell["metadata"].get("tags", [])


notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@notebooks
def test_the_stored_outputs_are_from_one_run_from_top_to_bottom(path):
    cells = code_cells(read(path))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("execution_count") in (None, cell["execution_count"])


@notebooks
def test_cells_have_ids_of_their_own_and_are_short(path):
    book = read(path)
    ids = [cell["id"] for cell in book["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in code_cells(book):
        assert len(source(cell).splitlines()) <= 25, cell["id"]


@notebooks
def test_the_file_is_small_and_holds_nothing_private(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.encode()) < 400_000
    assert "widgets" not in read(path)["metadata"]
    for place in (str(ROOT.parent), str(Path.home()), "/tmp/", "site-packages"):
        assert place not in text, place
    assert not re.search(r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}", text)


@notebooks
def test_badges_and_links_name_this_file_and_this_repository(path):
    text = path.read_text(encoding="utf-8")
    repository = link.linked_repository()
    colab = rf"colab\.research\.google\.com/github/{repository}/blob/main/notebooks/([\w.]+)"
    assert re.findall(colab, text) == [path.name]
    binder = rf"mybinder\.org/v2/gh/{repository}/main\?urlpath=lab/tree/notebooks/([\w.]+)"
    assert re.findall(binder, text) == [path.name]
    for owner_and_name, file in re.findall(
        r"github\.com/([\w.-]+/[\w.-]+)/blob/main/([\w./-]+)", text
    ):
        assert owner_and_name == repository
        assert (ROOT / file).is_file(), file
    assert "![" not in text, "a picture from elsewhere is broken without a network"


@notebooks
def test_the_neighbours_are_linked_for_github_and_for_jupyterlab(path):
    """A relative link does not work in Colab, and an address does not without a network."""
    text = path.read_text(encoding="utf-8")
    names = [file.name for file in NOTEBOOKS]
    if path.stem[0].isdigit():  # an appendix lies beside the road
        road = [name for name in names if name[0].isdigit()]
        place = road.index(path.name)
        for name in {*road[max(0, place - 1) : place + 2]} - {path.name}:
            name = re.escape(name)
            both = rf"/blob/main/notebooks/{name}\) \(\[in JupyterLab\]\({name}\)\)"
            assert re.search(both, text), name
    relative = re.findall(r"\]\((?!https?://|#)([^)]*)", text)
    assert set(relative) <= set(names)


def test_the_set_up_cell_is_the_same_in_all_notebooks():
    first = {source(code_cells(read(path))[0]) for path in NOTEBOOKS}
    assert len(first) == 1
    [cell] = first
    assert '"google.colab" in sys.modules' in cell
    assert f"--branch v{qlora_kit.__version__} " in cell
    assert f"https://github.com/{link.linked_repository()}" in cell


@notebooks
def test_what_prepares_a_notebook_is_folded_and_has_a_title(path):
    """JupyterLab goes by the metadata, Colab by the form and its title."""
    cells = {cell["id"]: cell for cell in code_cells(read(path))}
    for name in ("set-up", "imports"):
        assert cells[name]["metadata"]["jupyter"] == {"source_hidden": True}
        assert cells[name]["metadata"]["cellView"] == "form"
        assert source(cells[name]).startswith("# @title ")


def test_the_version_has_one_value():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == qlora_kit.__version__


@notebooks
def test_every_ignored_cell_is_listed_with_its_reason(path):
    found = {cell["id"] for cell in code_cells(read(path)) if ignored(cell)}
    assert found == set(IGNORED.get(path.stem, {}))


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_are_shown_by_a_cell_and_guarded(claim):
    entry = CLAIMS[claim]
    [path] = [path for path in NOTEBOOKS if path.stem == entry["notebook"]]
    cells = {cell["id"]: cell for cell in read(path)["cells"]}
    for name in entry["cells"]:
        assert cells[name]["outputs"], f"{name} shows nothing"
    for guard in entry["guards"]:
        place, _, name = guard.partition("::")
        if place.endswith(".ipynb"):
            cell = {cell["id"]: cell for cell in read(ROOT / place)["cells"]}[name]
            assert cell["outputs"] and not ignored(cell), f"{guard} is not compared"
        else:
            assert f"def {name}(" in (ROOT / place).read_text(encoding="utf-8"), guard


def test_the_path_table_of_the_readme_is_the_course():
    assert [f"{stage.file}.ipynb" for stage in course.STAGES] == [path.name for path in NOTEBOOKS]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    repository = link.linked_repository()
    for stage in course.STAGES:
        name = f"notebooks/{stage.file}.ipynb"
        minutes = "1 minute" if stage.minutes == 1 else f"{stage.minutes:g} minutes"
        row = (
            f"| [{stage.number} {stage.title}]({name}) | {stage.outcome} "
            f"| {minutes}, {stage.gigabytes:g} GB | {stage.device} "
            f"| [Colab](https://colab.research.google.com/github/{repository}/blob/main/{name}) "
            f"· [Binder](https://mybinder.org/v2/gh/{repository}/main?urlpath=lab/tree/{name}) |"
        )
        assert row in text.splitlines(), row
    for name in re.findall(r"\(((?:notebooks|data)/[^)]+)\)", text):
        assert (ROOT / name).exists(), name


def data_card():
    return (ROOT / "data" / "README.md").read_text(encoding="utf-8")


def test_the_scores_in_the_data_card_are_those_of_the_stored_run():
    [path] = [path for path in NOTEBOOKS if path.stem == "06_train_gemma"]
    printed = {
        cell["id"]: source({"source": cell["outputs"][0]["text"]})
        for cell in code_cells(read(path))
        if cell["id"] in ("rivals", "paired", "score-after")
    }
    card = data_card()
    rows = printed["rivals"].splitlines()[1:]
    assert len(rows) == 6
    for row in rows:
        name, *scores = re.fullmatch(r"(.+?)\s+(\d+ % \[.+?\])\s+(\d+ % \[.+\])", row).groups()
        assert f"| {name} | {' | '.join(scores)} |" in card.splitlines()
    for name in ("facts_right", "facts_evasive", "facts_false"):
        [line] = [line for line in printed["score-after"].splitlines() if line.startswith(name)]
        assert f"| {' | '.join(re.split(r'  +', line))} |" in card.splitlines()
    for row in re.findall(r"^  (.+?) *(\d+) {2,}(\d+) {2,}(.+)$", printed["paired"], re.MULTILINE):
        assert f"| {' | '.join(row)} |" in card.splitlines()
    assert printed["paired"].count(" points [") == 2 * (len(rows) - 1)


def test_what_the_readme_shows_of_train_is_that_of_the_stored_run():
    report = json.loads((DATA / "smollm2_135m_report.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"```\n{tables.before_and_after(report)}\n```" in readme
    book = NOTEBOOKS[6]
    printed = {
        cell["id"]: source({"source": cell["outputs"][0]["text"]})
        for cell in code_cells(read(book))
        if cell["id"] == "score-after"
    }["score-after"]
    for name in ("category_accuracy", "exact_match"):
        [line] = [line for line in printed.splitlines() if line.startswith(name)]
        for when in ("before", "after"):
            right = round(report[when][name] * report[when]["rows"])
            rows = [True] * right + [False] * (report[when]["rows"] - right)
            assert str(scoring.proportion(rows)) in line
    assert stored_picture(book, "compare") == (DATA / "scores.png").read_bytes()


def test_what_the_data_card_says_of_gemma_is_in_the_report_of_its_run():
    report = json.loads((ROOT / "data" / "gemma_270m_report.json").read_text(encoding="utf-8"))
    assert (report["profile"], report["seed"], report["resumed_from"]) == ("gemma-3-270m", 0, None)
    card = data_card()
    rows = report["after"]["rows"]
    for name in ("base, likeliest label", "base, prompted", "QLoRA"):
        scores = report["rivals"][name]
        right = [round(rows * scores[key]) for key in ("category_accuracy", "exact_match")]
        cells = [str(scoring.proportion([True] * n + [False] * (rows - n))) for n in right]
        assert f"| Gemma 3 270M, {' | '.join([name, *cells])} |" in card
    for figure in (
        f"{report['train_seconds']:.0f} seconds of training",
        f"{report['tokens_per_second']:.0f} tokens a second",
        f"{report['peak_memory_bytes'] / 1e9:.1f} GB of memory",
        f"adapter of {report['adapter_bytes'] / 1e6:.1f} MB",
    ):
        assert figure in " ".join(card.split()), figure


def test_requirements_are_exact_and_within_the_ranges():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    for text in bootstrap.requirements(["run", "lab", "test"]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[wanted.name]), text


def test_no_file_names_a_package_host_or_a_place_of_one_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    assert tracked.stdout
    hosts = "pypi" + ".org", "files.pythonhosted" + ".org", "registry.npmjs" + ".org"
    for name in tracked.stdout.split():
        if name.endswith(".png"):
            continue
        text = (ROOT / name).read_text(encoding="utf-8")
        for place in (*hosts, "deb.debian" + ".org", str(ROOT)):
            assert place not in text, f"{name}: {place}"


def test_modules_import_only_from_the_layers_below():
    """The layers stand in pyproject.toml, once."""
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", ["qlora_kit", "qlora_kit.memory", "qlora_kit.bootstrap"])
def test_the_start_up_path_and_the_memory_formulas_load_no_library(package):
    code = f"import sys, {package}; print(*{{'torch', 'transformers', 'peft'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "" and done.returncode == 0, done.stdout + done.stderr


def test_a_module_holds_one_idea():
    for path in (ROOT / "qlora_kit").rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= 300, path


def test_the_package_alone_says_that_it_wants_a_clone(tmp_path):
    """As a wheel would install it: without notebooks and data."""
    shutil.copytree(ROOT / "qlora_kit", tmp_path / "qlora_kit")
    command = [sys.executable, "-m", "qlora_kit", "doctor"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("qlora_kit: ") and "clone the repository" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_ruff_is_content():
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--quiet", "."]
        done = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
