"""What each command of `python3 -m qlora_kit` does, once the environment fits.

Each imports what it needs when it is called, so that `link` or `lab` need not wait for torch.
"""

import ast
import contextlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from qlora_kit.bootstrap import hand_over
from qlora_kit.cli import tables
from qlora_kit.errors import KitError
from qlora_kit.paths import DATA, NOTEBOOKS, ROOT

# The numbers of a profile's recipe that `train` and notebook 06's parameters can replace.
RECIPE = ("rank", "alpha", "targets", "learning_rate", "open_book", "rows", "epochs")


def choose_profile(arguments):
    """Make --profile, where it is given, the profile of this process and those that it starts.

    Raises KitError for an unknown one.
    """
    name = getattr(arguments, "profile", None)
    if name:
        from qlora_kit import profiles

        os.environ["QLORA_KIT_PROFILE"] = profiles.get_profile(name).name


def train(arguments):
    from qlora_kit import models
    from qlora_kit.cli import notebooks
    from qlora_kit.training import runs

    notebook, values = find_notebook("06"), given_settings(arguments)
    check_settings(values)
    profile, _ = models.get_weights(models.pick_profile())
    os.environ["QLORA_KIT_PROFILE"] = profile.name  # after a fallback the notebook does the same
    dtype = None if arguments.new else runs.begun_dtype(profile)
    if dtype and not os.environ.get("QLORA_KIT_DTYPE"):
        os.environ["QLORA_KIT_DTYPE"] = dtype  # for the notebook's process as well
    settings = training_settings(notebook, profile, values)
    folder = (not arguments.new and runs.unfinished(settings)) or runs.new_run(profile.name)
    checkpoint = runs.begin(folder, settings)
    if checkpoint:
        print(f"Resuming {folder.name} from {checkpoint.name} (to start afresh, add --new).")
    print(f"Fine-tuning {profile.name} with notebook 06:", flush=True)
    resume = f"To continue {folder.name}, run the same command again."
    try:
        notebooks.execute(notebook, folder, {"run_dir": str(folder), **values})
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


def given_settings(arguments):
    """The values for notebook 06's parameters cell that the options of `train` give."""
    from qlora_kit.cli import notebooks

    values = {name: getattr(arguments, name) for name in ("seed", *RECIPE)}
    if arguments.data:
        values["data_dir"] = notebooks.tickets_folder(arguments.data)
    if arguments.categories:
        values["categories"] = notebooks.categories_in(arguments.categories)
    if arguments.targets:
        values["targets"] = [name.strip() for name in arguments.targets.split(",")]
    if arguments.long:
        values["long"] = True
    return {name: value for name, value in values.items() if value is not None}


def check_settings(values):
    """Raise KitError if a value makes no sense, before a model is fetched or loaded."""
    from qlora_kit import models

    seed = values.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**32:  # what NumPy takes
        raise KitError(f"seed must be a whole number from 0 to {2**32 - 1}, not {seed!r}.")
    with_own_recipe(models.pick_profile(), values)
    if values.keys() & {"data_dir", "categories"}:
        check_categories(values)


def check_categories(values):
    """Raise KitError if no training ticket has one of the categories: all would be left out."""
    from qlora_kit.data import tickets

    file = Path(values.get("data_dir") or DATA) / "tickets_train.jsonl"
    known = values.get("categories") or tickets.CATEGORIES
    found = set()
    for line in file.read_bytes().splitlines():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # the notebook names bad rows
            found.add(json.loads(line)["category"])
    if found and found.isdisjoint(known):
        have = sorted(map(str, found))[:10]
        raise KitError(
            f"No ticket in {file} has one of the categories {', '.join(known)}; they have "
            f"{', '.join(have)}. Name those that you mean, such as --categories {','.join(have)}."
        )


def with_own_recipe(profile, values):
    """The profile with those numbers of its recipe that `values` gives, as notebook 06 makes it."""
    recipe = profile.long if values.get("long") else profile.recipe
    own = {name: values[name] for name in RECIPE if values.get(name) is not None}
    return replace(profile, recipe=replace(recipe, **own))


def training_settings(notebook, profile, values=None):
    """What must be equal for `train` to resume a run: all that the notebook compares, and its code.

    What `values` does not give is as in the notebook's parameters cell.
    """
    import papermill

    from qlora_kit import models
    from qlora_kit.training import runs

    cell = papermill.inspect_notebook(str(notebook))
    given = {name: ast.literal_eval(one["default"]) for name, one in cell.items()} | (values or {})
    data = NOTEBOOKS / given["data_dir"] if given["data_dir"] else DATA
    profile = with_own_recipe(profile, given)
    dtypes = models.pick_dtypes()
    settings = runs.settings(profile, dtypes, given["seed"], data, given["categories"])
    return settings | {notebook.name: runs.code_digest(notebook)}


def run(arguments):
    from qlora_kit.cli import notebooks
    from qlora_kit.training import runs

    if arguments.number == "all" and arguments.in_place:
        notebooks.store_all()
        return 0
    notebook = find_notebook(arguments.number)
    if arguments.profile and "pick_profile()" not in notebook.read_text(encoding="utf-8"):
        raise KitError(f"{notebook.name} always uses the same model: leave --profile out.")
    if arguments.in_place:
        notebooks.store(notebook)
        print(f"Saved the outputs in {notebook}.")
        return 0
    values = notebooks.checked(notebook, arguments.set)
    check_settings(values)
    folder = runs.new_run(notebook.stem)
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

    if getattr(arguments, "folder", None):
        found = doctor.adapter(adapter_in(Path(arguments.folder)))
        print(doctor.report("the adapter", found))
        return int(any(finding.level == "error" for finding in found))
    found = doctor.machine()
    print(doctor.report("this machine", found))
    if any(finding.level == "error" for finding in found):
        return 1
    from qlora_kit import memory, models
    from qlora_kit.doctor import hardware

    profile, dtypes = models.pick_profile(), models.pick_dtypes()
    print()
    print(tables.path(hardware.stages(profile, dtypes), memory.free_bytes(), profile.name))
    return 0


def adapter_in(folder):
    """The folder of an adapter: this one, or `adapter` in a run's folder. Raises KitError."""
    for place in (folder, folder / "adapter"):
        if (place / "adapter_config.json").exists():
            return place
    raise KitError(f"{folder} holds no adapter (no adapter_config.json).")


def fetch(arguments):
    from qlora_kit import models

    profile = models.get_profile(arguments.name) if arguments.name else models.pick_profile()
    profile, folder = models.get_weights(profile)
    print(f"{profile.name} is in {folder}.")
    return 0


def bench(arguments):
    if arguments.what == "nf4":
        if arguments.profile:
            raise KitError("bench nf4 measures one matrix, not a model: leave --profile out.")
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
    from qlora_kit.cli import budget

    return budget.run(arguments)
