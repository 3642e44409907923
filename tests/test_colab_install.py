"""What the set-up cell installs on Colab. pip is not called here: its calls are noted."""

import importlib
import os
import pathlib
import subprocess
import sys
import types
import zipfile

import pytest

from qlora_kit import colab
from qlora_kit.errors import KitError
from qlora_kit.paths import ROOT


@pytest.fixture
def machine(monkeypatch):
    """A machine with these packages, by name and version, where pip's calls are noted instead.

    `machine.wanted` is what pip is asked for; it then has what `machine.brings` says.
    """
    machine = types.SimpleNamespace(packages={}, wanted=["trl>=1.16,<2"], brings={}, calls=[])

    def version(name):
        try:
            return machine.packages[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

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

    metadata = importlib.metadata
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "distributions", distributions)
    monkeypatch.setattr(
        metadata, "packages_distributions", lambda: {name: [name] for name in machine.packages}
    )
    monkeypatch.setattr(colab, "missing", lambda extras: machine.wanted)
    monkeypatch.setattr(colab, "replaced", set())
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "/env/python")
    return machine


def test_colab_gets_what_it_lacks_in_one_pip_command_and_once(machine):
    machine.packages = {"torch": "2.11.0+cu128", "numpy": "2.1.3", "pyarrow": "18.1.0"}
    machine.wanted = ["trl>=1.16,<2", "gguf>=0.19"]
    colab.install()
    [command] = machine.calls
    assert command[-2:] == ["trl>=1.16,<2", "gguf>=0.19"]
    assert machine.constraints == ["torch==2.11.0+cu128", "numpy==2.1.3"], "what must not move"
    colab.install()
    assert machine.calls == [command]


def test_what_is_too_old_is_not_held_in_place(machine):
    """Else pip is asked for transformers>=5.15 and for 4.57 at once."""
    machine.packages = {"torch": "2.11.0", "transformers": "4.57.1", "peft": "0.20.0"}
    machine.packages |= {"tokenizers": "0.22.1", "accelerate": "1.14.0"}
    machine.wanted = ["transformers>=5.15,<6", "trl>=1.16,<2"]
    colab.install()
    [command] = machine.calls
    assert command[-2:] == ["transformers>=5.15,<6", "trl>=1.16,<2"]
    assert machine.constraints == ["torch==2.11.0", "peft==0.20.0", "accelerate==1.14.0"], (
        "and tokenizers goes along with transformers"
    )


def test_a_torch_that_is_too_old_is_named_before_pip_is_called(machine):
    machine.packages = {"torch": "2.6.0+cu124", "ipywidgets": "7.6.0", "transformers": "4.57.1"}
    machine.wanted = ["torch>=2.9", "transformers>=5.15,<6", "ipywidgets>=7.7"]
    with pytest.raises(KitError) as raised:
        colab.install()
    assert "has torch 2.6.0+cu124, ipywidgets 7.6.0" in str(raised.value)
    assert "needs torch>=2.9, ipywidgets>=7.7" in str(raised.value)
    assert "latest runtime version" in str(raised.value) and "network" not in str(raised.value)
    assert not machine.calls


def test_what_must_not_move_but_is_not_there_is_installed(machine):
    machine.wanted = ["ipywidgets>=7.7"]
    colab.install()
    assert machine.calls[0][-1] == "ipywidgets>=7.7"


def make_package(folder, name, version, *needs):
    """A wheel without a module, as pip finds it in a folder."""
    stem = f"{name}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        about = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        about += [f"Requires-Dist: {need}" for need in needs]
        wheel.writestr(f"{stem}.dist-info/METADATA", "\n".join(about) + "\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{stem}.dist-info/WHEEL", tags)
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def test_a_conflict_is_named_and_not_blamed_on_the_network(tmp_path):
    """pip itself, which installs nothing here."""
    make_package(tmp_path, "a_trainer", "1.16", "a_helper>=2")
    for version in "12":
        make_package(tmp_path, "a_helper", version)
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("a_helper==1")
    with pytest.raises(KitError) as raised:
        colab.pip(
            *("install", "--dry-run", "--no-index", "--find-links", str(tmp_path)),
            *("-c", str(constraints), "a_trainer"),
        )
    said = str(raised.value).replace("_", "-")
    assert "a-trainer 1.16 depends on a-helper>=2; " in said
    assert "(constraint) a-helper==1" in said
    assert "latest runtime version" in said and "network" not in said and "help visit" not in said


def test_an_old_torchao_goes_and_a_new_one_stays(machine):
    machine.wanted = []
    machine.packages = {"torchao": "0.10.0"}
    colab.install()
    assert [command[3:] for command in machine.calls] == [
        ["--disable-pip-version-check", "uninstall", "--yes", "torchao"]
    ]
    machine.packages = {"torchao": "0.16.0"}
    colab.install()
    assert len(machine.calls) == 1


def test_a_loaded_module_that_was_replaced_calls_for_a_restart(machine, monkeypatch):
    machine.packages = {"a_table": "18.1.0", "a_hub": "1.27.0", "a_plot": "3.10"}
    machine.brings = {"a_table": "26.0.0", "a_hub": "1.33.0"}
    monkeypatch.setitem(sys.modules, "a_table", types.ModuleType("a_table"))
    monkeypatch.setitem(sys.modules, "a_plot", types.ModuleType("a_plot"))
    for _ in range(2):  # running the cell again does not help
        with pytest.raises(KitError, match=r"loaded a_table in another version: .* Restart"):
            colab.install()
    assert len(machine.calls) == 1
    monkeypatch.setattr(colab, "replaced", set())  # a new process
    colab.install()


def test_a_pip_that_fails_on_colab_is_one_sentence(machine, monkeypatch):
    said = "WARNING: slow\nERROR: No matching distribution found for trl\n"
    failed = types.SimpleNamespace(returncode=1, stderr=said, stdout="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(KitError, match=r"^pip install failed \(No matching .* for trl\)\. Look"):
        colab.install()


def test_the_kit_is_importable_from_everywhere_and_listed_once(machine, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT.parent)
    sys.path[:0] = [ROOT.name, "", str(ROOT)]  # as the set-up cell has it
    machine.wanted = []
    for _ in range(2):
        colab.install()
    assert [entry for entry in sys.path if entry and os.path.realpath(entry) == str(ROOT)] == [
        str(ROOT)
    ]
    assert "" in sys.path, "the working folder is not the kit's to remove"
    assert os.environ["PYTHONPATH"] == os.pathsep.join([str(ROOT), "/env/python"])
    child = [sys.executable, "-c", "import qlora_kit"]
    assert subprocess.call(child, cwd=tmp_path) == 0


def test_an_error_of_the_kit_is_one_line_in_a_notebook():
    assert KitError("Do this.")._render_traceback_() == ["KitError: Do this."]
