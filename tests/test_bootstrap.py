"""From a fresh clone to an environment that fits."""

import ast
import json
import os
import pathlib
import shutil
import subprocess
import sys
import types
import venv

import pytest

import qlora_kit
from qlora_kit import bootstrap, commands
from qlora_kit.bootstrap import ROOT
from qlora_kit.errors import KitError


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """The bootstrap's view of a fresh clone in a folder of its own."""
    for name in ("pyproject.toml", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / ".venv" / "qlora_kit.json")
    return tmp_path


@pytest.fixture
def built(clone, monkeypatch):
    """A clone whose environment is built, without pip, whose calls are noted instead."""
    calls = []
    monkeypatch.setattr(venv.EnvBuilder, "_setup_pip", lambda self, context: None)
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda command, **_: calls.append(command))
    monkeypatch.setattr(bootstrap, "cpu_index", lambda: [])
    bootstrap.build()
    return clone, calls


def test_needs_no_package_and_imports_nothing_heavy():
    heavy = ["torch", "transformers", "numpy", "matplotlib", "filelock"]
    code = f"import qlora_kit, sys; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    bare = [sys.executable, "-S", "-m", "qlora_kit", "--help"]
    helped = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True)
    assert helped.returncode == 0
    assert "examples:" in helped.stdout


@pytest.mark.parametrize("name", ["__init__", "__main__", "bootstrap", "errors"])
def test_what_runs_before_the_version_check_parses_on_python_3_8(name):
    source = (ROOT / "qlora_kit" / f"{name}.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))


def test_too_old_a_python_gets_one_sentence():
    pretend = "import sys; sys.version_info = (3, 8, 1); import qlora_kit"
    old = subprocess.run([sys.executable, "-c", pretend], cwd=ROOT, capture_output=True, text=True)
    assert old.returncode == 1
    assert "needs Python 3.11 or newer; this is Python 3.8" in old.stderr
    assert "Traceback" not in old.stderr


def test_stamp_is_good_after_a_build(built):
    folder, calls = built
    assert bootstrap.stamp_is_good()
    assert calls[0][-2:] == ["-r", "requirements.txt"]
    assert "prompt = 'qlora_kit'" in (folder / ".venv" / "pyvenv.cfg").read_text()


def test_changed_requirements_call_for_a_new_build(built):
    folder, _ = built
    (folder / "requirements.txt").write_text("torch==1.0\n")
    assert not bootstrap.stamp_is_good()


def test_a_moved_folder_calls_for_a_new_build(built):
    stamp = json.loads(bootstrap.STAMP.read_text())
    bootstrap.STAMP.write_text(json.dumps(stamp | {"folder": "/somewhere/else"}))
    assert not bootstrap.stamp_is_good()


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_build_that_was_cut_off_is_done_again(built, damage):
    bootstrap.STAMP.write_text(damage)
    assert not bootstrap.stamp_is_good()
    bootstrap.build()
    assert bootstrap.stamp_is_good()


def test_what_an_interrupted_build_left_is_cleared_away(built):
    folder, _ = built
    (folder / ".venv.old").mkdir()
    (folder / ".venv" / "half").write_text("a package")
    bootstrap.build()
    assert bootstrap.stamp_is_good()
    assert not (folder / ".venv" / "half").exists()
    assert not (folder / ".venv.old").exists()


def test_a_python_whose_pip_does_not_start_is_one_sentence(clone, monkeypatch):
    def fail(self, context):
        raise subprocess.CalledProcessError(7, "pip")

    monkeypatch.setattr(venv.EnvBuilder, "_setup_pip", fail)
    with pytest.raises(KitError, match="pip did not start in it"):
        bootstrap.build()


def test_ctrl_c_is_left_to_the_command():
    """The command ends by itself after the interrupt, and its exit status comes back."""
    code = """
import os, signal, sys, threading
from qlora_kit.bootstrap import hand_over
child = '''
import time
try:
    time.sleep(60)
except KeyboardInterrupt:
    time.sleep(1)
    raise SystemExit(5)
'''
threading.Timer(2, lambda: os.killpg(0, signal.SIGINT)).start()
sys.exit(hand_over([sys.executable, "-c", child]))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    assert run.returncode == 5


def test_a_failed_install_leaves_no_stamp(clone, monkeypatch):
    monkeypatch.setattr(bootstrap.subprocess, "call", lambda command, **_: 1)
    monkeypatch.setattr(bootstrap, "cpu_index", lambda: [])
    with pytest.raises(KitError, match="could not be installed"):
        bootstrap.build()
    assert not bootstrap.stamp_is_good()


@pytest.mark.parametrize(
    "config", [None, "home = /usr/bin\n", "command = python -m venv /home/ada/qlora_kit/.venv\n"]
)
def test_an_environment_of_the_users_own_is_left_alone(clone, config):
    (clone / ".venv").mkdir()
    if config:
        (clone / ".venv" / "pyvenv.cfg").write_text(config)
    (clone / ".venv" / "precious").write_text("work")
    with pytest.raises(KitError, match="did not make"):
        bootstrap.build()
    assert (clone / ".venv" / "precious").read_text() == "work"


def test_without_ensurepip_the_debian_package_is_named(clone, monkeypatch):
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(KitError, match="apt install python3-venv"):
        bootstrap.build()


def test_an_intel_mac_is_told_that_it_is_not_supported(clone, monkeypatch):
    monkeypatch.setattr(bootstrap.platform, "system", lambda: "Darwin")
    monkeypatch.setattr(bootstrap.platform, "machine", lambda: "x86_64")
    with pytest.raises(KitError, match="Intel"):
        bootstrap.build()


def test_fitting_packages_are_used_where_they_are(monkeypatch):
    monkeypatch.setattr(bootstrap, "in_kit_environment", lambda: False)
    monkeypatch.setattr(bootstrap, "build", lambda: pytest.fail("built an environment"))
    bootstrap.ensure("test")  # this very Python runs the tests, so it has what they need


def test_a_version_out_of_range_is_missing(monkeypatch):
    real = bootstrap.importlib.metadata.version
    old = {"trl": "0.9.0"}
    monkeypatch.setattr(
        bootstrap.importlib.metadata, "version", lambda name: old.get(name) or real(name)
    )
    assert [line.partition(">")[0] for line in bootstrap.missing(["test"])] == ["trl"]


@pytest.fixture
def colab(monkeypatch):
    """A machine with these packages, by name and version, where pip's calls are noted instead.

    `colab.wanted` is what pip is asked for; it then has what `colab.brings` says.
    """
    machine = types.SimpleNamespace(packages={}, wanted=["trl>=1.16,<2"], brings={}, calls=[])

    def version(name):
        try:
            return machine.packages[name]
        except KeyError:
            raise bootstrap.importlib.metadata.PackageNotFoundError(name) from None

    def distributions():
        return [
            types.SimpleNamespace(metadata={"Name": name}, version=version)
            for name, version in machine.packages.items()
        ]

    def run(command, **_):
        machine.calls.append(command)
        if "uninstall" in command:
            del machine.packages[command[-1]]
        else:
            constraints = command[command.index("-c") + 1]
            machine.constraints = pathlib.Path(constraints).read_text().split()
            machine.packages |= machine.brings
            machine.wanted = []
        return types.SimpleNamespace(returncode=0)

    metadata = bootstrap.importlib.metadata
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "distributions", distributions)
    monkeypatch.setattr(
        metadata, "packages_distributions", lambda: {name: [name] for name in machine.packages}
    )
    monkeypatch.setattr(bootstrap, "missing", lambda extras: machine.wanted)
    monkeypatch.setattr(bootstrap, "replaced", set())
    monkeypatch.setattr(bootstrap.subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "/env/python")
    return machine


def test_colab_gets_what_it_lacks_in_one_pip_command_and_once(colab):
    colab.packages = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "pyarrow": "18.1.0"}
    colab.wanted = ["trl>=1.16,<2", "gguf>=0.19"]
    bootstrap.install_on_colab()
    [command] = colab.calls
    assert command[-2:] == ["trl>=1.16,<2", "gguf>=0.19"]
    assert colab.constraints == ["torch==2.11.0+cu128", "numpy==2.1.3"], "what must not move"
    bootstrap.install_on_colab()
    assert colab.calls == [command]


def test_an_old_torchao_goes_and_a_new_one_stays(colab):
    colab.wanted = []
    colab.packages = {"torchao": "0.10.0"}
    bootstrap.install_on_colab()
    assert [command[3:] for command in colab.calls] == [
        ["--disable-pip-version-check", "uninstall", "--yes", "torchao"]
    ]
    colab.packages = {"torchao": "0.16.0"}
    bootstrap.install_on_colab()
    assert len(colab.calls) == 1


def test_a_loaded_module_that_was_replaced_calls_for_a_restart(colab, monkeypatch):
    colab.packages = {"a_table": "18.1.0", "a_hub": "1.27.0", "a_plot": "3.10"}
    colab.brings = {"a_table": "26.0.0", "a_hub": "1.33.0"}
    monkeypatch.setitem(sys.modules, "a_table", types.ModuleType("a_table"))
    monkeypatch.setitem(sys.modules, "a_plot", types.ModuleType("a_plot"))
    for _ in range(2):  # running the cell again does not help
        with pytest.raises(KitError, match=r"loaded a_table in another version: .* Restart"):
            bootstrap.install_on_colab()
    assert len(colab.calls) == 1
    monkeypatch.setattr(bootstrap, "replaced", set())  # a new process
    bootstrap.install_on_colab()


def test_a_pip_that_fails_on_colab_is_one_sentence(colab, monkeypatch):
    said = "WARNING: slow\nERROR: No matching distribution found for trl\n"
    failed = types.SimpleNamespace(returncode=1, stderr=said)
    monkeypatch.setattr(bootstrap.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(KitError, match=r"^pip install failed \(No matching .* for trl\)\. Look"):
        bootstrap.install_on_colab()


def test_the_kit_is_importable_from_everywhere_and_listed_once(colab, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT.parent)
    sys.path[:0] = [ROOT.name, "", str(ROOT)]  # as the set-up cell has it
    colab.wanted = []
    for _ in range(2):
        bootstrap.install_on_colab()
    assert [entry for entry in sys.path if entry and os.path.realpath(entry) == str(ROOT)] == [
        str(ROOT)
    ]
    assert "" in sys.path, "the working folder is not the kit's to remove"
    assert os.environ["PYTHONPATH"] == os.pathsep.join([str(ROOT), "/env/python"])
    child = [sys.executable, "-c", "import qlora_kit"]
    assert subprocess.call(child, cwd=tmp_path) == 0


def test_an_error_of_the_kit_is_one_line_in_a_notebook():
    assert KitError("Do this.")._render_traceback_() == ["KitError: Do this."]


@pytest.fixture
def hosting(tmp_path, monkeypatch):
    """A bare clone of a small kit that git takes for the hosting site; the set-up cell, to run."""
    work, bare = tmp_path / "work", tmp_path / "bare.git"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    (work / "qlora_kit").mkdir(parents=True)
    (work / "qlora_kit" / "__init__.py").write_text("")
    (work / "qlora_kit" / "bootstrap.py").write_text(
        "import pathlib\n"
        "def install_on_colab():\n"
        "    print(pathlib.Path('qlora-kit/which').read_text())\n"
    )

    def commit(which):
        (work / "which").write_text(which)
        for command in (["add", "."], ["commit", "-qm", which]):
            subprocess.run([*git, *command], cwd=work, check=True)

    subprocess.run([*git, "init", "-q", str(work)], check=True)
    commit("the release")
    subprocess.run([*git, "clone", "-q", "--bare", str(work), str(bare)], check=True)
    address = f"https://github.com/{commands.linked_repository()}"
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{bare.as_uri()}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", address)

    def tag():
        subprocess.run([*git, "tag", f"v{qlora_kit.__version__}"], cwd=bare, check=True)
        commit("the main branch")
        subprocess.run([*git, "push", "-q", str(bare), "HEAD:main"], cwd=work, check=True)

    return types.SimpleNamespace(bare=bare, tag=tag)


def run_set_up_cell(folder):
    """Run the notebooks' set-up cell in a process of its own in which google.colab is loaded."""
    book = json.loads((ROOT / "notebooks" / "01_rank_one_by_hand.ipynb").read_text("utf-8"))
    [cell] = [cell for cell in book["cells"] if cell["id"] == "set-up"]
    code = f"""
import sys, types
from IPython.core.interactiveshell import InteractiveShell
sys.modules["google.colab"] = types.ModuleType("google.colab")
shell = InteractiveShell.instance()
shell.run_cell({"".join(cell["source"])!r}).raise_error()
"""
    folder.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"IPYTHONDIR": str(folder / ".ipython"), "NO_COLOR": "1"}
    python = [sys.executable, "-c", code]
    return subprocess.run(python, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_set_up_cell_takes_the_release_else_the_main_branch(hosting, tmp_path):
    cell = run_set_up_cell(tmp_path / "early")
    assert cell.stdout.strip() == "the release", cell.stdout + cell.stderr
    hosting.tag()
    cell = run_set_up_cell(tmp_path / "late")
    assert cell.stdout.strip() == "the release", cell.stdout + cell.stderr
    subprocess.run(["git", "tag", "-d", f"v{qlora_kit.__version__}"], cwd=hosting.bare, check=True)
    assert run_set_up_cell(tmp_path / "untagged").stdout.strip() == "the main branch"


def test_the_set_up_cell_uses_a_folder_that_is_there(hosting, tmp_path):
    uploaded = tmp_path / "uploaded"
    uploaded.mkdir()
    subprocess.run(
        ["git", "clone", "-q", str(hosting.bare), str(uploaded / "qlora-kit")], check=True
    )
    (uploaded / "qlora-kit" / "which").write_text("the upload")
    assert run_set_up_cell(uploaded).stdout.strip() == "the upload"


def test_a_clone_that_fails_is_one_sentence(hosting, tmp_path):
    shutil.rmtree(hosting.bare)
    cell = run_set_up_cell(tmp_path / "alone")
    assert cell.returncode
    assert "git could not fetch the kit: run this cell again." in cell.stderr


def test_the_lock_lets_one_process_in_at_a_time(tmp_path):
    code = f"""
import pathlib, sys, time
sys.path.insert(0, {str(ROOT)!r})
from qlora_kit import bootstrap
inside = pathlib.Path("inside")
with bootstrap.lock("lock"):
    assert not inside.exists()
    inside.touch(); time.sleep(0.2); inside.unlink()
"""
    crowd = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in range(4)]
    assert [process.wait() for process in crowd] == [0, 0, 0, 0]


@pytest.mark.full
def test_a_fresh_clone_trains_with_one_command(tmp_path):
    """The newcomer's way, in the short form: a clone, one command, a report."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "JUPYTER"))
    } | {"QLORA_KIT_PROFILE": "smollm2-135m-short"}
    base = os.path.realpath(sys.executable)
    train = subprocess.run(
        [base, "-m", "qlora_kit", "train"],
        cwd=clone,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert train.returncode == 0, train.stdout + train.stderr
    assert "category right" in train.stdout
    [folder] = (clone / "runs").iterdir()
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert (folder / "loss.png").exists()
    report = json.loads((folder / "report.json").read_text())
    assert report["base_unchanged"]
    assert report["after"]["perplexity"] < report["before"]["perplexity"]
    # The second call finds the environment and the model again.
    fetch = [base, "-m", "qlora_kit", "fetch"]
    again = subprocess.run(fetch, cwd=clone, env=environment, capture_output=True, text=True)
    assert again.stdout.startswith("smollm2-135m-short is in ")
