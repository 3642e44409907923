"""Colab, simulated: its libraries, its kernel, and a `google.colab` that does as good as nothing.

This machine's Python and torch stand in for Colab's, and a bare clone of the repository for the
site that hosts it. A learner's folder is empty but for the notebooks: the set-up cell itself
fetches the kit and installs what is missing. The GPU is not simulated.

Three notebooks run to their end: the first, one with a widget and trainings by hand, and the one
that trains with the libraries. Of all others the names are looked up that they take from modules.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import types
import venv

import nbclient
import nbformat
import pytest

import qlora_kit
from qlora_kit.cli import link
from qlora_kit.colab import normal
from qlora_kit.paths import ROOT

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(os.name == "nt", reason="Colab runs on Linux"),
]

NOTEBOOKS = [path for n in ("00", "03", "06") for path in (ROOT / "notebooks").glob(f"{n}_*.ipynb")]
NEVER_MOVED = ("torch", "numpy", "pandas", "ipywidgets", "transformers", "peft", "accelerate")
# Imports all that the notebooks' cells import, and looks up each `module.name` that they use.
LOOK_UP = """import ast, json, pathlib, types
looked_up = 0
for path in sorted(pathlib.Path(NOTEBOOKS).glob("*.ipynb")):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and cell["id"] != "set-up"]
    nodes = [n for cell in code for n in ast.walk(ast.parse("".join(cell["source"])))]
    bound = {}
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            exec(ast.unparse(node), bound)
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = bound.get(node.value.id)
            if isinstance(module, types.ModuleType):
                assert hasattr(module, node.attr), f"{path.name}: no {ast.unparse(node)}"
                looked_up += 1
print(looked_up, "names")
"""
STUB = {
    "__init__": "",
    "drive": "def mount(place): raise ValueError('mount failed')\n",
    "files": """import os
def download(path):
    os.stat(path)
    with open("downloads.txt", "a") as asked:
        asked.write(path + chr(10))
""",
    "userdata": """class SecretNotFoundError(Exception): pass
def get(name): raise SecretNotFoundError(f"Secret {name} does not exist.")
""",
}


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """A fresh machine: `work` is where notebooks lie, `execute` runs one, `versions` lists."""
    place = tmp_path_factory.mktemp("colab")
    work, python = place / "content", place / "venv" / "bin" / "python"
    work.mkdir()
    venv.create(place / "venv", with_pip=True, symlinks=True)
    make_image(python)
    [packages] = (place / "venv").glob("lib/*/site-packages")
    (packages / "google" / "colab").mkdir(parents=True)
    for name, text in STUB.items():
        (packages / "google" / "colab" / f"{name}.py").write_text(text)
    startup = place / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "colab.py").write_text("import google.colab\n")  # as Colab's kernel does
    kernel = place / "share" / "kernels" / "colab" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel.write_text(json.dumps({"argv": argv, "display_name": "Colab", "language": "python"}))
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "JUPYTER", "MPL", "HF_", "QLORA_KIT"))
    } | {
        "IPYTHONDIR": str(place / "ipython"),
        "QLORA_KIT_CACHE": str(place / "cache"),
        "QLORA_KIT_PROFILE": "smollm2-135m-short",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{host(place).as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": f"https://github.com/{link.linked_repository()}",
    }

    def execute(book):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("JUPYTER_PATH", str(place / "share"))
            client = nbclient.NotebookClient(
                book,
                timeout=1200,
                kernel_name="colab",
                resources={"metadata": {"path": str(work)}},
            )
            return client.execute(env=environment)

    def versions():
        listed = subprocess.run(
            [python, "-m", "pip", "list", "--format=json"], capture_output=True, check=True
        )
        return {normal(one["name"]): one["version"] for one in json.loads(listed.stdout)}

    return types.SimpleNamespace(work=work, execute=execute, versions=versions)


def make_image(python):
    """Install what Colab has; skip where there is no network."""
    torch = f"torch=={importlib.metadata.version('torch')}"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check"]
    image = ROOT / "tests" / "colab_image.txt"
    done = subprocess.run([*pip, "-r", image, torch], capture_output=True, text=True)
    if done.returncode and re.search("Retrying|from versions: none", done.stderr):
        pytest.skip(f"pip finds no packages here: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def host(place):
    """A bare clone of the working tree as it is, with the release's tag."""
    copy, bare = place / "copy", place / "kit.git"
    subprocess.run(["git", "init", "--quiet", copy], check=True)
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(os.path.exists, (ROOT / line for line in names.splitlines())):
        target = copy / name.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(name.read_bytes())
    git = ["git", "-C", copy, "-c", "user.name=kit", "-c", "user.email=kit@example.org"]
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "-m", "The kit"], check=True)
    subprocess.run([*git, "tag", f"v{qlora_kit.__version__}"], check=True)
    subprocess.run(["git", "clone", "--quiet", "--bare", copy, bare], check=True)
    return bare


def set_up_alone(code=""):
    """The set-up cell of the notebooks, and then `code`."""
    book = nbformat.read(NOTEBOOKS[0], as_version=4)
    [cell] = [cell for cell in book.cells if cell.id == "set-up"]
    return nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_code_cell(code)])


def said(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.fixture(scope="module")
def ready(colab):
    """The machine after the first set-up cell, and what that has changed."""
    before = colab.versions()
    [cell, _] = colab.execute(set_up_alone()).cells
    colab.before, colab.after, colab.said = before, colab.versions(), said(cell)
    return colab


def test_the_set_up_cell_leaves_alone_what_colab_runs_on(ready):
    assert "Installing what is missing" in ready.said
    moved = {n: (v, ready.after.get(n)) for n, v in ready.before.items() if ready.after.get(n) != v}
    new = ready.after.keys() - ready.before.keys()
    print("moved:", moved, "new:", sorted(new))
    assert {n: ready.after[n] for n in NEVER_MOVED} == {n: ready.before[n] for n in NEVER_MOVED}
    assert set(moved) <= {"datasets", "huggingface-hub", "pyarrow", "fsspec", "torchao"}
    assert "torchao" not in ready.after
    assert new.isdisjoint({"jupyterlab", "nbval", "papermill", "playwright"}), "those are extras"


def test_a_second_set_up_cell_does_nothing_and_children_find_the_kit(ready):
    child = """import subprocess
child = [sys.executable, "-c", "import os, qlora_kit; print(qlora_kit.__file__)"]
print(subprocess.run(child, capture_output=True, text=True, cwd="/").stdout)
"""
    cell, found = ready.execute(set_up_alone(child)).cells
    assert cell.outputs == []
    assert ready.versions() == ready.after
    assert said(found).strip() == str(ready.work / "qlora-kit" / "qlora_kit" / "__init__.py")


def test_colabs_libraries_have_every_name_that_a_notebook_takes_from_a_module(ready):
    code = f'NOTEBOOKS = "qlora-kit/notebooks"\n{LOOK_UP}'
    [_, looked_up] = ready.execute(set_up_alone(code)).cells
    assert int(said(looked_up).split()[0]) > 400


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_on_colabs_libraries_with_this_machines_python_and_torch(ready, path):
    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        if 'data_dir = ""' in cell.source:  # 06 on a few tickets: its scores are tested elsewhere
            cell.source += f"\ndata_dir = {str(few_tickets(ready.work))!r}"
    ready.execute(book)  # an error in a cell is raised
    [set_up] = [cell for cell in book.cells if cell.id == "set-up"]
    assert set_up.outputs == [], "the set-up cell has found something to do again"
    assert ready.versions() == ready.after
    if any("notebook.download_link(" in cell.source for cell in book.cells):
        asked = (ready.work / "downloads.txt").read_text().splitlines()
        assert asked[-1].endswith("adapter.zip")


def few_tickets(work):
    """A folder with every fortieth training ticket and a few to look at and to score."""
    folder = work / "few"
    folder.mkdir()
    for name, every in (("train", 40), ("dev", 10), ("test", 20)):
        lines = (ROOT / "data" / f"tickets_{name}.jsonl").read_text(encoding="utf-8").splitlines()
        text = "\n".join(lines[::every]) + "\n"
        (folder / f"tickets_{name}.jsonl").write_text(text, encoding="utf-8")
    return folder
