"""From a fresh clone to an environment that fits."""

import ast
import json
import os
import shutil
import subprocess
import sys
import types
import venv

import pytest

import qlora_kit
from qlora_kit import bootstrap
from qlora_kit.cli import link
from qlora_kit.errors import KitError
from qlora_kit.paths import ROOT


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


@pytest.mark.skipif(os.name == "nt", reason="sends a signal that Windows does not have")
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
def hosting(tmp_path, monkeypatch):
    """A bare clone of a small kit that git takes for the hosting site; the set-up cell, to run."""
    if os.name == "nt":
        pytest.skip("the set-up cell is for Colab's shell, which Windows does not have")
    work, bare = tmp_path / "work", tmp_path / "bare.git"
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    (work / "qlora_kit").mkdir(parents=True)
    (work / "qlora_kit" / "__init__.py").write_text("")
    (work / "qlora_kit" / "colab.py").write_text(
        "import pathlib\ndef install():\n    print(pathlib.Path('qlora-kit/which').read_text())\n"
    )

    def commit(which):
        (work / "which").write_text(which)
        for command in (["add", "."], ["commit", "-qm", which]):
            subprocess.run([*git, *command], cwd=work, check=True)

    subprocess.run([*git, "init", "-q", str(work)], check=True)
    commit("the release")
    subprocess.run([*git, "clone", "-q", "--bare", str(work), str(bare)], check=True)
    address = f"https://github.com/{link.linked_repository()}"
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
