"""The workflow files of GitHub Actions, which runs them: here they can only be read.

actionlint's package fetches its program from GitHub while it is installed, and many networks do not
let it. So the files are held against GitHub's schema, which check-jsonschema brings along, and what
a schema cannot see of them is checked here.
"""

import re
import subprocess
import sys
import tomllib

import pytest

from qlora_kit.paths import ROOT

yaml = pytest.importorskip("yaml", reason="needs PyYAML")

FOLDER = ROOT / ".github" / "workflows"
TESTS = yaml.safe_load((FOLDER / "tests.yml").read_text(encoding="utf-8"))
QUICK = TESTS["jobs"]["quick"]

MISTAKES = [
    ("runs-on:", "run-on:"),
    ("timeout-minutes: 60", "timeout-minutes: soon"),
    ("        shell: bash", "        shel: bash"),
    ("contents: read", "contents: all"),
]


def is_valid(*files):
    """What check-jsonschema says of workflow files: whether they are valid, and why not."""
    pytest.importorskip("check_jsonschema", reason="needs check-jsonschema")
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema"]
    command = [*check, "vendor.github-workflows", *files]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def test_every_workflow_is_valid():
    valid, why = is_valid(*FOLDER.iterdir())
    assert valid, why


def test_typical_mistakes_are_found(tmp_path):
    text = (FOLDER / "tests.yml").read_text(encoding="utf-8")
    for place, (right, wrong) in enumerate(MISTAKES):
        assert right in text
        (tmp_path / f"{place}.yml").write_text(text.replace(right, wrong), encoding="utf-8")
    valid, why = is_valid(*tmp_path.iterdir())
    assert not valid
    for place, mistake in enumerate(MISTAKES):
        assert str(tmp_path / f"{place}.yml") in why, mistake


def test_expressions_name_what_the_matrix_has():
    text = (FOLDER / "tests.yml").read_text(encoding="utf-8")
    expressions = re.findall(r"\$\{\{ (.*?) \}\}", text)
    assert expressions and {f"matrix.{name}" for name in QUICK["strategy"]["matrix"]} == set(
        expressions
    )


def test_the_quick_tests_run_on_three_systems_by_the_readmes_command():
    systems = QUICK["strategy"]["matrix"]["system"]
    assert systems == ["ubuntu-latest", "windows-latest", "macos-latest"]
    [command] = [step["run"] for step in QUICK["steps"] if "run" in step]
    assert command == "python3 -m qlora_kit test"
    assert f"`{command}`" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_is_the_oldest_that_the_kit_takes_and_what_pip_fetched_is_kept():
    [setup] = [s for s in QUICK["steps"] if s.get("uses", "").startswith("actions/setup-python@")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={setup['with']['python-version']}"
    assert setup["with"]["cache"] == "pip"
    for name in setup["with"]["cache-dependency-path"].split():
        assert (ROOT / name).is_file(), name


def test_git_gives_every_system_the_same_bytes():
    """Runs are told apart by hashes of their data, and no line of a script ends in \\r."""
    said = subprocess.run(
        ["git", "check-attr", "eol", "data/tickets_train.jsonl", "binder/start"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout
    assert [line.rpartition(" ")[2] for line in said.splitlines()] == ["lf", "lf"]
