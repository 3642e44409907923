"""Notebooks from the command line: found, given settings, executed, stored."""

import ast
import base64
import io
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import nbclient
import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from qlora_kit import course
from qlora_kit.errors import KitError
from qlora_kit.paths import DATA, NOTEBOOKS
from qlora_kit.training import runs

# Arguments of nbclient's client, which papermill passes on. ipykernel 7.4 warns at every start that
# it listens on loopback without encryption; a learner can do nothing about it. Asked politely to
# end while a cell runs, as after Ctrl-C, it sometimes prints a traceback of its own.
KERNEL = {
    "kernel_name": "python3",
    "extra_arguments": ["--log-level=ERROR"],
    "shutdown_kernel": "immediate",
}


def setting(text):
    """('rows', 20) from 'rows=20'. A value that is no Python literal is text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise KitError(f"--set needs NAME=VALUE, such as seed=1, not {text!r}.")
    return name, literal(value.strip())


def literal(text):
    """What a text means in Python, or the text itself where it is no literal."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def categories_in(text):
    """['bug', 'praise'] from 'bug,praise', or from a list or tuple written as in Python.

    Raises KitError for anything else, and for fewer than two different names.
    """
    value = literal(text.strip())
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) for name in value):
        value = (value if isinstance(value, str) else text).split(",")
    names = [name.strip() for name in value]
    written = all(re.fullmatch(r"[^][(){}'\"]+", name) for name in names)
    if not written or len(set(names)) < max(2, len(names)):
        raise KitError(
            "Give two or more different categories with commas between them, such as bug,praise, "
            f"not {text!r}."
        )
    return names


def tickets_folder(text):
    """The absolute path of a folder with tickets, from where the user stands.

    Raises KitError where one of the three files is missing.
    """
    folder = Path(text).expanduser().resolve()
    for name in ("train", "dev", "test"):
        if not (folder / f"tickets_{name}.jsonl").is_file():
            raise KitError(
                f"{folder} has no tickets_{name}.jsonl; a folder with your own tickets holds "
                "tickets_train.jsonl, tickets_dev.jsonl and tickets_test.jsonl."
            )
    return str(folder)


def checked(notebook, settings):
    """NAME=VALUE texts as a dictionary; each name must be a parameter of the notebook.

    An empty value is left out: the notebook's own holds. Folders are taken from where the user
    stands: the notebook itself runs in notebooks/. papermill would pass a tuple on as a text.
    """
    values, texts = {}, {}
    for given in settings:
        name, value = setting(given)
        values[name], texts[name] = value, given.partition("=")[2]
    values = {name: value for name, value in values.items() if value != ""}
    known = parameters(notebook)
    unknown = sorted(set(texts) - set(known))
    if unknown:
        raise KitError(
            f"{notebook.name} has no parameter {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none'}."
        )
    for name, value in values.items():
        if value is None:
            continue
        if name == "categories":
            values[name] = categories_in(texts[name])
        elif name == "data_dir":
            values[name] = tickets_folder(str(value))
        elif name.endswith("_dir"):
            values[name] = str(Path(str(value)).expanduser().resolve())
        elif isinstance(value, tuple):
            values[name] = list(value)
    return values


def parameters(notebook):
    """The names in the notebook's parameters cell."""
    return list(papermill.inspect_notebook(str(notebook)))


def execute(notebook, folder, values):
    """Run a notebook from top to bottom with papermill; the executed copy lies in `folder`."""
    executed = folder / notebook.name
    # A "python3" kernel of another environment in the user's home would be taken first.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    # After Ctrl-C, asyncio would print a traceback for what nbclient leaves behind.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(executed),
            parameters=values,
            cwd=str(NOTEBOOKS),
            stderr_file=sys.stderr,
            **KERNEL,
        )
    except PapermillExecutionError as error:
        raise KitError(
            f"Cell {error.exec_count} of {notebook.name} failed with {error.ename}: {error.evalue} "
            f"The notebook up to there is {executed}."
        ) from None
    except DeadKernelError:
        raise KitError(
            "The notebook's process was ended, most likely because memory ran out. Close other "
            "programs, or choose a smaller model with --profile."
        ) from None


def store(notebook):
    """Run a notebook from top to bottom and store its outputs in it, whole or not at all."""
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    book = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(
        book,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,  # a progress bar leaves its last line alone
        store_widget_state=False,  # metadata.widgets breaks GitHub's page
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        **KERNEL,
    ).execute()
    book.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    unfinished = notebook.with_suffix(".partial")
    nbformat.write(book, unfinished)
    os.replace(unfinished, notebook)


def store_all():
    """Store the outputs of all notebooks, and in data/ what README and data card quote of them.

    That is a1's results on Gemma, the report of 06's run, and 06's picture of the scores.
    """
    os.environ["QLORA_KIT_STORE"] = "1"
    before = set(runs.home().glob("*/report.json"))
    for stage in course.STAGES:
        notebook = NOTEBOOKS / f"{stage.file}.ipynb"
        print(f"Running {notebook.name} ...", flush=True)
        store(notebook)
    [report] = set(runs.home().glob("*/report.json")) - before
    shutil.copy(report, DATA / "smollm2_135m_report.json")
    (DATA / "scores.png").write_bytes(stored_picture(NOTEBOOKS / "06_train_gemma.ipynb", "compare"))


def stored_picture(notebook, cell_id):
    """The PNG that is stored below a cell, as bytes."""
    [cell] = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.id == cell_id]
    [output] = [output for output in cell.outputs if "image/png" in output.get("data", {})]
    return base64.b64decode(output.data["image/png"])


def smaller(picture):
    """A PNG in base64 with at most 256 colours: a plot has few, and takes a third of the bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
