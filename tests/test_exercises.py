"""Every exercise of every notebook: right answers, typical wrong ones, nonsense, and the stub.

The answers of `qlora_kit/exercises/nbNN.py` are in `tests/answers_nbNN.py`:

    ANSWERS = {
        "parameters": {  # the Exercise's name in the module
            "right": [6, torch.tensor(6)],
            "wrong": [(15, "frozen"), (9, "frozen")],  # each with a word that the verdict must hold
        },
    }
"""

import importlib
import json
import math

import pytest
import torch

from qlora_kit.exercises import Exercise
from qlora_kit.paths import ROOT

MODULES = sorted(path.stem for path in (ROOT / "qlora_kit" / "exercises").glob("nb*.py"))
EXERCISES = [
    (module, name)
    for module in MODULES
    for name, value in vars(importlib.import_module(f"qlora_kit.exercises.{module}")).items()
    if isinstance(value, Exercise)
]


def raises(*_):
    raise RuntimeError("two\nlines")


# Never the right answer of anything.
NONSENSE = [
    *(None, "", "banana", math.nan, [], {}, object(), torch.tensor(math.nan), torch.zeros(0)),
    *(raises, lambda: None, lambda *_: None, lambda *_: "banana", lambda *_: torch.zeros(7, 5, 3)),
    lambda *_, **__: math.nan,
]

each_exercise = pytest.mark.parametrize("module, name", EXERCISES)


def exercise(module, name):
    return getattr(importlib.import_module(f"qlora_kit.exercises.{module}"), name)


def answers(module, name):
    return importlib.import_module(f"answers_{module}").ANSWERS[name]


@pytest.mark.parametrize("module", MODULES)
def test_answers_are_given_for_every_exercise_and_for_no_other(module):
    given = importlib.import_module(f"answers_{module}").ANSWERS
    assert set(given) == {name for place, name in EXERCISES if place == module}
    assert 2 <= len(given) <= 4


@each_exercise
def test_right_answers_are_right(module, name):
    task = exercise(module, name)
    assert answers(module, name)["right"]
    for answer in answers(module, name)["right"]:
        assert task.verdict(answer) == f"Right. {task.why}", answer


@each_exercise
def test_typical_wrong_answers_are_told_what_is_wrong(module, name):
    assert len(answers(module, name)["wrong"]) >= 2
    for answer, word in answers(module, name)["wrong"]:
        verdict = exercise(module, name).verdict(answer)
        assert verdict.startswith("Not yet: ") and word in verdict, (answer, verdict)


@each_exercise
def test_nonsense_is_wrong_in_one_line_and_never_raises(module, name):
    for place, answer in enumerate(NONSENSE):
        verdict = exercise(module, name).verdict(answer)
        told = verdict.startswith("Not yet: ") and "\n" not in verdict
        assert told, f"NONSENSE[{place}], {answer!r}: {verdict}"


@each_exercise
def test_what_still_holds_dots_is_not_tried(module, name):
    verdict = exercise(module, name).verdict(...)
    assert verdict.startswith("Not tried yet")


@each_exercise
def test_the_solution_is_right_and_the_hint_does_not_give_it_away(module, name, capsys):
    task = exercise(module, name)
    task.solution()
    code = capsys.readouterr().out
    names = {"torch": torch, "math": math}
    exec(code, names)
    task.check(names["answer"])
    assert capsys.readouterr().out == f"Right. {task.why}\n"
    task.hint()
    hint = capsys.readouterr().out.strip()
    assert hint and code.strip().splitlines()[-1].strip() not in hint


@each_exercise
def test_the_notebook_sets_it_with_an_untouched_stub(module, name):
    [path] = (ROOT / "notebooks").glob(f"{module.removeprefix('nb')}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    task = f"{module}.{name}"
    [stub] = [c for c in cells if f"{task}.check(answer)" in "".join(c["source"])]
    text = "".join(stub["source"])
    # Commented out, so that Run all gives nothing away.
    assert f"# {task}.hint()" in text and f"# {task}.solution()" in text
    [output] = stub["outputs"]
    assert "".join(output["text"]).startswith("Not tried yet")
