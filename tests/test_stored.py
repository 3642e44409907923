"""Stored results: the reports of trainings."""

import importlib.util
import json

import pytest

from qlora_kit import models
from qlora_kit.data import stored
from qlora_kit.paths import DATA


def report(profile, rows, seed, open_book=True):
    settings = {"rows": rows, "open_book": open_book}
    return {"profile": profile, "rows": rows, "seed": seed, "settings": settings}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A store with reports of two profiles."""
    file = tmp_path / "trainings.jsonl"
    lines = [report("a", 2000, 0), report("a", 1000, 1), report("b", 1000, 0)]
    lines.append(report("a", 500, 2, open_book=False))
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr(stored, "TRAININGS", file)
    return file


def test_trainings_are_those_of_a_profile_the_fewest_rows_first(kept):
    assert [(r["rows"], r["seed"]) for r in stored.trainings("a", True)] == [(1000, 1), (2000, 0)]
    assert [r["seed"] for r in stored.trainings("a", True, 2000)] == [0]
    assert [r["seed"] for r in stored.trainings("a", False)] == [2]
    assert stored.trainings("c", True) == []
    kept.unlink()
    assert stored.trainings("a", True) == []


def test_a_training_that_is_stored_is_not_run_again(kept, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("trainings", DATA / "trainings.py")
    trainings = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(trainings)
    small = models.PROFILES["smollm2-135m"]
    kept.write_text(json.dumps(report(small.name, small.recipe.rows, 1)) + "\n")
    asked = []

    def train(seed, recipe, options):
        asked.append((seed, recipe.rows, options))
        return report(small.name, recipe.rows, seed, "--no-open-book" not in options)

    monkeypatch.setattr(trainings, "train", train)
    monkeypatch.setattr(trainings.models, "pick_profile", lambda: small)
    for arguments in (["0,1"], ["1", "--long"], ["1", "--closed-book"]):
        monkeypatch.setattr(trainings.sys, "argv", ["trainings.py", "--seeds", *arguments])
        trainings.main()
    assert asked == [
        (0, small.recipe.rows, []),
        (1, small.long.rows, ["--long"]),
        (1, small.recipe.rows, ["--no-open-book"]),
    ]
    assert "seed 1: stored already" in capsys.readouterr().out
    assert [(r["rows"], r["seed"]) for r in stored.trainings(small.name, True)] == [
        (small.recipe.rows, 0),
        (small.recipe.rows, 1),
        (small.long.rows, 1),
    ]
