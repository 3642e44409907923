"""What each command of `python3 -m qlora_kit` does, once the environment fits.

Each imports what it needs when it is called, so that `link` or `lab` need not wait for torch.
"""

import json
import os
import sys

from qlora_kit.bootstrap import hand_over
from qlora_kit.cli import tables
from qlora_kit.errors import KitError
from qlora_kit.paths import DATA, NOTEBOOKS, ROOT


def train(arguments):
    from qlora_kit import models
    from qlora_kit.cli import notebooks
    from qlora_kit.training import runs

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
        notebooks.execute(notebook, folder, {"run_dir": str(folder)})
    except KeyboardInterrupt:
        print(f"\nStopped. {resume}", file=sys.stderr)
        return 130
    except (KitError, OSError) as error:
        raise KitError(f"{str(error).rstrip('.')}. {resume}") from None
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    print(tables.before_and_after(report))
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

    from qlora_kit import models
    from qlora_kit.training import runs

    given = papermill.inspect_notebook(str(notebook))
    seed, data_dir = (ast.literal_eval(given[name]["default"]) for name in ("seed", "data_dir"))
    data = NOTEBOOKS / data_dir if data_dir else DATA
    settings = runs.settings(profile, models.pick_dtypes(), seed, data)
    return settings | {notebook.name: runs.code_digest(notebook)}


def run(arguments):
    from qlora_kit import models
    from qlora_kit.cli import notebooks
    from qlora_kit.training import runs

    notebook = find_notebook(arguments.number)
    if arguments.in_place:
        notebooks.store(notebook)
        print(f"Stored the outputs in {notebook}.")
        return 0
    values = notebooks.checked(notebook, arguments.set)
    folder = runs.new_run(models.pick_profile())
    if "run_dir" in notebooks.parameters(notebook):
        values.setdefault("run_dir", str(folder))
    notebooks.execute(notebook, folder, values)
    print(f"Written to {folder}.")
    return 0


def find_notebook(number):
    found = sorted(NOTEBOOKS.glob(f"{number.zfill(2)}_*.ipynb"))
    if not found:
        known = ", ".join(path.name[:2] for path in sorted(NOTEBOOKS.glob("*.ipynb")))
        raise KitError(f"There is no notebook {number}; there are {known}.")
    return found[0]


def test(arguments):
    command = [sys.executable, "-m", "pytest", *(["--full"] if arguments.full else [])]
    return hand_over(command, cwd=ROOT)


def lab(arguments):
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={ROOT}"]
    return hand_over([*command, str(find_notebook("00"))], cwd=ROOT)


def link(arguments):
    from qlora_kit.cli import link

    link.stamp(arguments.repository)
    print(f"Every address now points to {arguments.repository}.")
    return 0


def doctor(arguments):
    from qlora_kit import doctor

    found = doctor.machine()
    print(doctor.report("this machine", found))
    return 1 if any(finding.level == "error" for finding in found) else 0


def fetch(arguments):
    from qlora_kit import models

    profile = models.get_profile(arguments.profile) if arguments.profile else models.pick_profile()
    profile, folder = models.get_weights(profile)
    print(f"{profile.name} is in {folder}")
    return 0


def bench(arguments):
    if arguments.what == "nf4":
        from qlora_kit.bench import nf4

        result, table = nf4.bench_nf4(), tables.speeds
    else:
        from qlora_kit.bench import training

        result, table = training.bench_train(), tables.training_speeds
        if arguments.json:  # scripts know the runs by the letters that they had
            keys = {"defaults": "a", "kit": "b", "lora": "c"}
            result = result | {"runs": {keys[n]: run for n, run in result["runs"].items()}}
    print(json.dumps(result) if arguments.json else table(result))
    return 0


def budget(arguments):
    from qlora_kit import memory, models
    from qlora_kit.memory import architectures

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
        from qlora_kit.memory import xray

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
