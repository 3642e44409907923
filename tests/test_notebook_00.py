"""What comparing outputs cannot see in notebook 00: that it shows what the kit has."""

import json
import re
import types

from qlora_kit import course
from qlora_kit.cli import commands
from qlora_kit.doctor import findings
from qlora_kit.memory import architectures
from qlora_kit.paths import ROOT

BOOK = json.loads((ROOT / "notebooks" / "00_start_here.ipynb").read_text(encoding="utf-8"))
CELLS = {cell["id"]: cell for cell in BOOK["cells"]}


def printed(name):
    """What a cell printed, as stored."""
    texts = [output["text"] for output in CELLS[name]["outputs"] if "text" in output]
    return "".join("".join(text) for text in texts)


def test_the_map_adds_the_course_up():
    total = sum(stage.minutes for stage in course.STAGES)
    assert f"{total:.0f} minutes of computing" in printed("map")
    most = max(stage.gigabytes for stage in course.STAGES)
    assert f"{most:.1f} GB at a time" in printed("map")


def test_the_picture_of_the_model_counts_its_matrices():
    architecture = architectures.find("SmolLM2-135M-Instruct")
    weights = architecture.linear_parameters()
    assert f"{7 * architecture.layers} matrices hold {weights:,} weights" in printed("model")


def test_every_mark_is_readable_without_colour():
    marks = {line[:9].strip() for line in printed("card").splitlines()} - {""}
    assert marks <= {level.upper() for level in findings.LEVELS}


def test_the_stored_card_is_that_of_a_machine_that_can_go_on():
    assert [line.split(": ")[1] for line in printed("card-facts").splitlines()] == [
        "nothing",
        "none",
    ]


def test_only_notebook_06_asks_for_the_machines_profile_and_dtypes():
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        trains_here = re.search(r"pick_profile|pick_dtypes|cuda|load_4bit\(", code)
        assert bool(trains_here) == (file.name[:2] in ("00", "06")), file.name


def test_the_lab_opens_here(monkeypatch):
    called = []
    monkeypatch.setattr(commands, "hand_over", lambda command, **_: called.append(command))
    commands.lab(types.SimpleNamespace())
    assert called[0][-1].endswith("00_start_here.ipynb")
