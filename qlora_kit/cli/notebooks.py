"""Notebooks from the command line: found, given settings, executed, stored."""

import ast
import base64
import io
import logging
import os
import sys
from pathlib import Path

import nbclient
import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from qlora_kit.errors import KitError
from qlora_kit.paths import NOTEBOOKS

# Arguments of nbclient's client, which papermill passes on. ipykernel 7.4 warns at every start that
# it listens on loopback without encryption; a learner can do nothing about it. Asked politely to
# end while a cell runs, as after Ctrl-C, it sometimes prints a traceback of its own.
KERNEL = {
    "kernel_name": "python3",
    "extra_arguments": ["--log-level=ERROR"],
    "shutdown_kernel": "immediate",
}


def setting(text):
    """('rows', 20) from 'rows=20'. A value that is no Python literal is taken as text."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise KitError(f"--set wants NAME=VALUE, such as seed=1, and got {text!r}.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def checked(notebook, settings):
    """NAME=VALUE texts as a dictionary; each name must be a parameter of the notebook.

    Folders are taken from where the user stands: the notebook itself runs in notebooks/.
    """
    values = dict(setting(text) for text in settings)
    known = parameters(notebook)
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise KitError(
            f"{notebook.name} has no parameter {', '.join(unknown)}; "
            f"it has {', '.join(known) or 'none'}."
        )
    for name in values:
        if name.endswith("_dir"):
            values[name] = str(Path(str(values[name])).resolve())
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
            f"The notebook as far as it came is {executed}."
        ) from None
    except DeadKernelError:
        raise KitError(
            "The notebook's process was ended, most likely because memory ran out. Close other "
            "programs, or choose a smaller model with QLORA_KIT_PROFILE."
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


def smaller(picture):
    """A PNG in base64 with at most 256 colours: a plot has few, and takes a third of the bytes."""
    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
