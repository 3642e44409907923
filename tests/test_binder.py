"""The files of binder/, read by repo2docker itself: mybinder.org builds its image with it."""

import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

from qlora_kit import models
from qlora_kit.bootstrap import CPU_WHEELS, ROOT

if os.name == "nt":
    pytest.skip("repo2docker does not run on Windows", allow_module_level=True)
app = pytest.importorskip("repo2docker.app", reason="needs jupyter-repo2docker")

FILES = sorted(path.name for path in (ROOT / "binder").iterdir())


def picked(folder, monkeypatch):
    """The build pack that repo2docker picks for a folder, as it does for a repository."""
    monkeypatch.chdir(folder)
    for kind in app.Repo2Docker().buildpacks:
        pack = kind(base_image="ubuntu")
        pack.platform = "linux/amd64"
        if pack.detect():
            return pack


@pytest.fixture
def copy(tmp_path):
    """What of this repository repo2docker looks at, in a folder that a test may change."""
    shutil.copytree(ROOT / "binder", tmp_path / "binder")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def steps(pack):
    """The Dockerfile's lines from the moment on when the whole repository is in the image."""
    return pack.render().partition("COPY --chown=1000:1000 src/ ${REPO_DIR}/")[2]


def test_the_python_is_the_one_of_the_stored_outputs(monkeypatch):
    pack = picked(ROOT, monkeypatch)
    assert type(pack).__name__ == "PythonBuildPack"
    assert pack.python_version == "3.11"
    assert "environment.py-3.11-linux-64.lock" in " ".join(pack.get_build_script_files())


def test_the_pins_are_installed_once_the_repository_is_there(monkeypatch):
    # In the repository's folder, as `-e .` wants; pip takes `-r` from where the file lies.
    after = steps(picked(ROOT, monkeypatch))
    assert 'pip install --no-cache-dir -r "binder/requirements.txt"' in after
    lines = (ROOT / "binder" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    assert f"--extra-index-url {CPU_WHEELS}" in lines
    [pins] = [line.removeprefix("-r ") for line in lines if line.startswith("-r ")]
    assert (ROOT / "binder" / pins).resolve() == ROOT / "requirements.txt"
    assert not any("==" in line for line in lines), "versions stand in requirements.txt alone"


def test_the_model_is_fetched_into_the_image_when_all_is_installed(monkeypatch):
    after = steps(picked(ROOT, monkeypatch))
    assert after.index("pip install") < after.index("RUN ./binder/postBuild")
    script = (ROOT / "binder" / "postBuild").read_text(encoding="utf-8")
    [profile] = re.findall(r"^python3 -m qlora_kit fetch (\S+)$", script, re.MULTILINE)
    assert models.PROFILES[profile].embedded  # no token, no hub
    assert "CACHE" not in script + after, "the cache is the one in the user's home"


def test_the_session_starts_through_the_start_script(monkeypatch):
    after = steps(picked(ROOT, monkeypatch))
    assert 'ENV R2D_ENTRYPOINT="${REPO_DIR}/binder/start"' in after


@pytest.mark.skipif(sys.platform != "linux", reason="Binder's images are Linux")
def test_the_start_script_hands_over_with_its_settings():
    names = ("OMP_NUM_THREADS", "MALLOC_MMAP_THRESHOLD_")
    say = f"import os; print(*map(os.environ.get, {names}))"
    command = [ROOT / "binder" / "start", sys.executable, "-c", say]
    bare = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(command, env=bare, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "131072"]


@pytest.mark.parametrize("name", FILES)
def test_no_file_is_one_that_repo2docker_ignores(name, copy, monkeypatch):
    before = picked(copy, monkeypatch).render()
    (copy / "binder" / name).unlink()
    assert picked(copy, monkeypatch).render() != before


@pytest.mark.parametrize("name", ["postBuild", "start"])
def test_scripts_are_executable(name):
    path = ROOT / "binder" / name
    assert path.stat().st_mode & stat.S_IXUSR
    assert path.read_bytes().startswith(b"#!/bin/bash\n")
