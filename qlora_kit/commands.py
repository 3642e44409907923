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
# it listens on loopback without encryption; a learner can do nothing about it. Asked politely to
# end while a cell runs, as after Ctrl-C, it sometimes prints a traceback of its own.
KERNEL = {
    "kernel_name": "python3",
    "extra_arguments": ["--log-level=ERROR"],
    "shutdown_kernel": "immediate",
}


def train(arguments):
    from qlora_kit import models, runs

    profile, _ = models.get_weights(models.pick_profile())
    os.environ["QLORA_KIT_PROFILE"] = profile.name  # after a fallback the notebook does the same
    notebook = find_notebook("06")
    settings = training_settings(notebook, profile)
    folder = (not arguments.new and runs.unfinished(settings)) or runs.new_run(profile)
    checkpoint = runs.begin(folder, settings)
    if checkpoint:
        print(f"Resuming {folder.name} from {checkpoint.name} (--new would begin another run).")
    print(f"Fine-tuning {profile.name} with notebook 06:", flush=True)
    resume = f"The same command goes on with {folder.name}, from its last checkpoint if it has one."
    try:
        execute(notebook, folder, {"run_dir": str(folder)})
    except KeyboardInterrupt:
        print(f"\nStopped. {resume}", file=sys.stderr)
        return 130
    except (KitError, OSError) as error:
        raise KitError(f"{str(error).rstrip('.')}. {resume}") from None
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    print(before_and_after(report))
    print(f"\nWritten to {folder}:")
    for path in sorted(folder.glob("[!.]*")):
        print(f"  {path.name}{'/' if path.is_dir() else ''}")
    return 0


def training_settings(notebook, profile):
    """What must be equal for `train` to resume a run: all that the notebook compares, and its code.

    The seed and the data are those of the notebook's parameters cell.
    """
    import ast

    import papermill

    from qlora_kit import models, runs, tickets

    given = papermill.inspect_notebook(str(notebook))
    seed, data_dir = (ast.literal_eval(given[name]["default"]) for name in ("seed", "data_dir"))
    data = NOTEBOOKS / data_dir if data_dir else tickets.DATA
    settings = runs.settings(profile, models.pick_dtypes(), seed, data)
    return settings | {notebook.name: runs.code_digest(notebook)}


def before_and_after(report):
    """The table that `train` ends with."""
    before, after = report["before"], report["after"]
    lines = [f"{before['rows']} held-out tickets      before   after"]
    for key, name in (
        ("category_accuracy", "category right"),
        ("exact_match", "and priority right"),
        ("stops_by_itself", "stops by itself"),
        ("facts_right", "policy facts right"),
    ):
        if key in after:  # tickets of one's own may have no checklist of facts
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
    from qlora_kit import models, runs

    notebook = find_notebook(arguments.number)
    if arguments.in_place:
        store(notebook)
        print(f"Stored the outputs in {notebook}.")
        return 0
    values = checked(notebook, arguments.set)
    folder = runs.new_run(models.pick_profile())
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
    import logging

    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

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
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = smaller(output.data["image/png"])
    unfinished = notebook.with_suffix(".partial")
    nbformat.write(book, unfinished)
    os.replace(unfinished, notebook)


def smaller(picture):
    """A PNG in base64 with at most 256 colours: a plot has few, and takes a third of the bytes."""
    import base64
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
    buffer = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def test(arguments):
    command = [sys.executable, "-m", "pytest", *(["--full"] if arguments.full else [])]
    return hand_over(command, cwd=ROOT)


def lab(arguments):
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={ROOT}"]
    return hand_over([*command, str(find_notebook("00"))], cwd=ROOT)


def doctor(arguments):
    from qlora_kit import doctor

    found = doctor.machine()
    print(doctor.report("this machine", found))
    return 1 if any(finding.level == "stop" for finding in found) else 0


def fetch(arguments):
    from qlora_kit import models

    profile = models.get_profile(arguments.profile) if arguments.profile else models.pick_profile()
    profile, folder = models.get_weights(profile)
    print(f"{profile.name} is in {folder}")
    return 0


def bench(arguments):
    from qlora_kit import bench, bench_train

    measure, table = {
        "nf4": (bench.bench_nf4, speeds),
        "train": (bench_train.bench_train, training_speeds),
    }[arguments.what]
    result = measure()
    print(json.dumps(result) if arguments.json else table(result))
    return 0


def speeds(result):
    """The table that `bench nf4` prints."""
    lines = ["4096 x 4096 float32, CPU    kit, s  bitsandbytes, s  speed of the kit"]
    for key in ("quantize", "dequantize"):
        kit, library = result[f"{key}_seconds"], result[f"library_{key}_seconds"]
        lines.append(f"{key:<26}{kit:>8.3f}{library:>17.3f}{result[f'{key}_ratio']:>17.2f}x")
    return "\n".join(lines)


def training_speeds(result):
    """The table that `bench train` prints."""
    runs = result["runs"]
    b = runs["b"]
    lines = [f"{'':<38}tokens a second  seconds  peak memory  held-out loss"]
    for letter, run in runs.items():
        lines.append(
            f"{letter}  {run['name']:<35}{run['tokens_per_second']:>15.0f}{run['seconds']:>9.1f}"
            f"{run['peak_memory_bytes'] / 1e9:>10.2f} GB{run['heldout_loss']:>15.3f}"
        )
    lines += [
        f"Each: {b['steps']} steps over {b['tokens']:,} tokens, padding not counted; "
        f"{b['learnt']:,} of them are learnt.",
        f"b is {result['ratio']:.2f} times as fast as a, and {result['qlora_over_lora']:.2f} times "
        "as fast as c.",
        f"Matrix products fill {result['matmul_share']:.0%} of b's time at the best rate of this "
        f"machine, {b['product_rate'] / 1e9:.0f} GFLOP/s in {b['products_in']} "
        f"on {b['threads']} threads.",
    ]
    return "\n".join(lines)


def budget(arguments):
    from qlora_kit import architectures, memory, models

    profile = models.PROFILES.get(arguments.model.lower())
    architecture = architectures.find(profile or arguments.model)
    gpu = memory.find_gpu(arguments.gpu)
    targets = arguments.targets.split(",") if arguments.targets is not None else memory.LINEARS
    setup = memory.Setup(
        method=arguments.method,
        batch=arguments.batch,
        seq=arguments.seq,
        rank=arguments.rank,
        targets=tuple(name.strip() for name in targets),
        double_quant=not arguments.no_double_quant,
        prepare_kbit=arguments.prepare_kbit,
        adapter_dtype=arguments.adapter_dtype,
        optimizer=arguments.optimizer,
        checkpointing=not arguments.no_checkpointing,
        loss=arguments.loss,
        dropout=arguments.dropout,
        attention=arguments.attention,
    )
    if arguments.xray or not architecture.covered:
        from qlora_kit import xray

        result, how = xray.trace(architecture, setup, gpu), "by the X-ray"
        terms, reserved = result.terms, (result.peak_reserved,)
    else:
        result = memory.budget(architecture, setup, gpu)
        how = f"by the formulas, fullest moment: {result.moment}"
        terms, reserved = result.terms, result.peak_reserved
    fits = memory.fits(result.peak_allocated, gpu)
    if arguments.json:
        answer = {
            "peak_allocated_bytes": result.peak_allocated,
            "peak_reserved_bytes": reserved[-1],
            "static_bytes": result.static,
            "terms": terms,
            "fits": fits,
        }
        print(json.dumps(answer))
        return 0
    title = f"{architecture.name}, {setup.method}, {setup.batch} x {setup.seq} tokens, {how}"
    print("\n".join(memory.table(title, terms, reserved, gpu)))
    if not fits and architecture.covered:
        print("What helps:")
        print("\n".join(memory.advice(architecture, setup, gpu)))
    return 0


def link(arguments):
    """Replace the repository's address in every file that carries it."""
    if not re.fullmatch(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+", arguments.repository):
        raise KitError(f"{arguments.repository!r} is not of the form OWNER/REPO.")
    old = linked_repository()
    # github.com/O/R, colab.research.google.com/github/O/R and mybinder.org/v2/gh/O/R
    address = re.compile(r"(github\.com/|/github/|/gh/)" + re.escape(old) + r"(?![A-Za-z0-9_-])")
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
