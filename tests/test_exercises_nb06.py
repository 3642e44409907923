"""What the exercises of notebook 06 show is what their answers say of it."""

import ast
import itertools
import json
import math
import re

import pytest
import torch
from matplotlib import pyplot as plt

from qlora_kit.exercises import nb06, toys
from qlora_kit.figures import nb06_exercises as figures
from qlora_kit.paths import ROOT

BOOK = json.loads((ROOT / "notebooks" / "06_train_gemma.ipynb").read_text(encoding="utf-8"))
CELLS = {cell["id"]: "".join(cell["source"]) for cell in BOOK["cells"]}


@pytest.fixture(scope="module")
def runs():
    before = torch.random.get_rng_state()
    runs = toys.four_runs()
    assert torch.equal(torch.random.get_rng_state(), before), "the learner's seed is the learner's"
    return {nb06.CURVES[letter]: losses for letter, losses in runs.items()}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def jumps(losses):
    return sum(abs(b - a) for a, b in itertools.pairwise(losses[2:]))


def test_few_rows_are_known_by_heart_and_the_dev_loss_turns(runs):
    training, dev = runs["few rows"]
    assert training[-1] < 0.01 and dev[-1] > min(dev) + 0.1 and dev.index(min(dev)) < 6


def test_the_good_run_levels_off_where_its_dev_loss_is_lowest(runs):
    training, dev = runs["good"]
    assert training[-1] < dev[-1] < min(dev) + 0.05 and dev[-1] < 1.1
    assert dev[-11] - dev[-1] < 0.15 * (dev[0] - dev[-1])


def test_too_small_a_rate_falls_smoothly_and_has_not_stopped(runs):
    training, dev = runs["too small"]
    assert dev == sorted(dev, reverse=True)
    assert dev[-11] - dev[-1] > 0.3 * (dev[0] - dev[-1]) > 0
    assert abs(training[-1] - dev[-1]) < 0.2 and training[-1] > 1.5


def test_too_large_a_rate_leaps_up_and_goes_on_jumping_where_a_guess_is(runs):
    training, dev = runs["too large"]
    chance = math.log(8)
    assert training[0] > chance + 0.5
    assert min(training + dev) > chance - 0.2 and dev[-1] < chance + 0.3
    smooth, wild = runs["too small"][0], training
    assert jumps(wild) > 3 * jumps(smooth)


def test_the_curves_are_drawn_on_one_scale_under_their_letters():
    row = figures.curves({"A": ([3.0, 1.0], [3.0, 2.0]), "B": ([9.0, 8.0], [9.0, 8.5])}).axes
    assert [axes.get_title() for axes in row] == ["A", "B"]
    assert {axes.get_ylim() for axes in row} == {row[0].get_ylim()}
    low, high = row[0].get_ylim()
    assert low == 0 and high > 9
    training, dev = row[1].lines
    assert list(training.get_xdata()) == [10, 20] and list(training.get_ydata()) == [9, 8]
    assert training.get_linestyle() != dev.get_linestyle()


def learnt(letter):
    """What is learnt of each of the two examples, as text."""
    pieces, labels = toys.masked_rows()[letter]
    middle = pieces.index("<user>", 1)
    marks = [(p if label != -100 else "") for p, label in zip(pieces, labels, strict=True)]
    return ["".join(marks[:middle]), "".join(marks[middle:])]


def test_the_masks_are_wrong_as_the_answers_say():
    by_word = {word: learnt(letter) for letter, word in nb06.MASKS.items()}
    assert by_word == {
        "right": ["returns, urgent<end>", "billing, normal<end>"],
        "never ends": ["returns, urgent", "billing, normal"],
        "guesses": [", urgent<end>", ", normal<end>"],
        "writes tickets": [
            "<user>My kettle leaks<end><assistant>returns, urgent<end>",
            "<user>Refund me<end><assistant>billing, normal<end>",
        ],
    }


def test_a_piece_is_blue_where_it_is_learnt():
    [axes] = figures.masks(
        {"A": (["one", " two"], [-100, 7]), "B": (["one", " two"], [5, -100])}
    ).axes
    boxes = [(t.get_text(), t.get_color()) for t in axes.texts if t.get_bbox_patch()]
    assert boxes == [("one", "black"), ("two", "white"), ("one", "white"), ("two", "black")]
    rows = [t.get_position()[1] for t in axes.texts]
    assert rows == [0, 0, 0, -1, -1, -1]


def test_each_change_of_memory_is_clearly_what_its_word_says():
    """Far from the borders that the text names, so that no rounding decides."""
    borders = {"less": (0, 0.8), "same": (0.95, 1.06), "more": (1.2, 1.6), "double": (1.75, 2.1)}
    for change, word in zip(nb06.CHANGES, nb06.memory_words(), strict=True):
        low, high = borders[word]
        assert low < nb06.times(change) < high, change


def test_the_text_names_the_changes_and_the_counts_that_are_checked():
    given = re.findall(r"`(\w+)=([^`]+)`", CELLS["text-exercise-memory"])
    assert [{name: ast.literal_eval(value)} for name, value in given] == list(nb06.CHANGES)
    rows = re.findall(r"^\|(?: *\d+ *\|){5}$", CELLS["text-exercise-conclude"], re.MULTILINE)
    assert [tuple(map(int, re.findall(r"\d+", row)))[1:] for row in rows] == list(nb06.COUNTS)


def test_the_counts_are_of_200_tickets_and_two_differ_by_the_same():
    assert {sum(counts) for counts in nb06.COUNTS} == {200}
    first, second = (ours - theirs for _, ours, theirs, _ in nb06.COUNTS[:2])
    assert first == second
    for counts in nb06.COUNTS:  # the verdict and the interval say the same
        paired = nb06.pair(*counts)
        outside = paired.difference.low > 0 or paired.difference.high < 0
        assert outside == (paired.verdict != "not settled on these rows"), counts
