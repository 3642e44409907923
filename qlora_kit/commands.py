"""What each command of `python3 -m qlora_kit` does, once the environment fits."""

import json
import os
import re
import sys
from pathlib import Path

from qlora_kit.bootstrap import ROOT, hand_over
from qlora_kit.errors import KitError

NOTEBOOKS = ROOT / "notebooks"

# Arguments of nbclient's client, which papermill passes on. ipykernel 7.4 warns at every start that
# it listens on loopback without encryption; a learner can do nothing about it.
KERNEL = {"kernel_name": "python3", "extra_arguments": ["--log-level=ERROR"]}


def train(arguments):
    from qlora_kit import finetune, models

    profile, _ = models.get_weights(models.pick_profile())
    print(f"Fine-tuning {profile.name} with notebook 06:", flush=True)
    os.environ["QLORA_KIT_PROFILE"] = profile.name  # after a fallback the notebook does the same
    folder = finetune.new_run(profile)
    execute(find_notebook("06"), folder, {"run_dir": str(folder)})
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    print(before_and_after(report))
    print(f"\nWritten to {folder}:")
    for path in sorted(folder.iterdir()):
        print(f"  {path.name}{'/' if path.is_dir() else ''}")
    return 0


def before_and_after(report):
    """The table that `train` ends with."""
    before, after = report["before"], report["after"]
    lines = [f"{before['rows']} held-out tickets      before   after"]
    for key, name in (
        ("category_accuracy", "category right"),
        ("exact_match", "and priority right"),
        ("stops_by_itself", "stops by itself"),
    ):
        lines.append(f"{name:<24}{before[key]:>8.1%}{after[key]:>8.1%}")
    surprise = f"{before['perplexity']:>8.2f}{after['perplexity']:>8.2f}"
    lines.append(f"{'perplexity of answers':<24}{surprise}")
    lines.append(
        f"{report['trainable_parameters']:,} of {report['total_parameters']:,} parameters trained "
        f"in {report['train_seconds']:.0f} s, {report['tokens_per_second']:.0f} tokens a second, "
        f"peak memory {report['peak_memory_bytes'] / 1e9:.2f} GB, "
        f"adapter {report['adapter_bytes'] / 1e6:.1f} MB."
    )
    return "\n".join(lines)


def run(arguments):
    from qlora_kit import finetune, models

    notebook = find_notebook(arguments.number)
    if arguments.in_place:
        store(notebook)
        print(f"Stored the outputs in {notebook}.")
        return 0
    values = checked(notebook, arguments.set)
    folder = finetune.new_run(models.pick_profile())
    if "run_dir" in parameters(notebook):
        values.setdefault("run_dir", str(folder))
    execute(notebook, folder, values)
    print(f"Written to {folder}.")
    return 0


def find_notebook(number):
    found = sorted(NOTEBOOKS.glob(f"{number.zfill(2)}_*.ipynb"))
    if not found:
        known = ", ".join(path.name[:2] for path in sorted(NOTEBOOKS.glob("*.ipynb")))
        raise KitError(f"There is no notebook {number}; there are {known}.")
    return found[0]


def setting(text):
    """('rows', 20) from 'rows=20'. A value that is no Python literal is taken as text."""
    import ast

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
    import papermill

    return list(papermill.inspect_notebook(str(notebook)))


def execute(notebook, folder, values):
    """Run a notebook from top to bottom with papermill; the executed copy lies in `folder`."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    executed = folder / notebook.name
    # A "python3" kernel of another environment in the user's home would be taken first.
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
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
    import nbclient
    import nbformat

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
    unfinished = notebook.with_suffix(".partial")
    nbformat.write(book, unfinished)
    os.replace(unfinished, notebook)


def test(arguments):
    command = [sys.executable, "-m", "pytest", *(["--full"] if arguments.full else [])]
    return hand_over(command, cwd=ROOT)


def lab(arguments):
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={ROOT}"]
    return hand_over([*command, str(find_notebook("06"))], cwd=ROOT)


def fetch(arguments):
    from qlora_kit import models

    profile = models.get_profile(arguments.profile) if arguments.profile else models.pick_profile()
    profile, folder = models.get_weights(profile)
    print(f"{profile.name} is in {folder}")
    return 0


def bench(arguments):
    from qlora_kit import bench

    result = bench.bench_nf4()
    print(json.dumps(result) if arguments.json else speeds(result))
    return 0


def speeds(result):
    """The table that `bench nf4` prints."""
    lines = ["4096 x 4096 float32, CPU    kit, s  bitsandbytes, s  speed of the kit"]
    for key in ("quantize", "dequantize"):
        kit, library = result[f"{key}_seconds"], result[f"library_{key}_seconds"]
        lines.append(f"{key:<26}{kit:>8.3f}{library:>17.3f}{result[f'{key}_ratio']:>17.2f}x")
    return "\n".join(lines)


def link(arguments):
    """Replace the repository's address in every file that carries it."""
    if not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", arguments.repository):
        raise KitError(f"{arguments.repository!r} is not of the form OWNER/REPO.")
    old = linked_repository()
    # github.com/O/R and colab.research.google.com/github/O/R
    address = re.compile(r"(github\.com/|/github/)" + re.escape(old) + r"(?![A-Za-z0-9_-])")
    # pyproject.toml comes last: it knows the old address, should this be interrupted.
    for path in [*sorted(NOTEBOOKS.glob("*.ipynb")), ROOT / "README.md", ROOT / "pyproject.toml"]:
        text = path.read_text(encoding="utf-8")
        path.write_text(
            address.sub(lambda match: match[1] + arguments.repository, text),
            encoding="utf-8",
            newline="\n",
        )
    print(f"Every address now points to {arguments.repository}.")
    return 0


def linked_repository():
    """OWNER/REPO as pyproject.toml has it: the one place that decides."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["urls"]["Repository"].removeprefix("https://github.com/")
