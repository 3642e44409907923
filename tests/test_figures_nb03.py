"""The pictures of notebook 03: what they compute, and that each draws."""

import pytest
import torch
from matplotlib import pyplot as plt

from qlora_kit.figures import nb03 as figures

DTYPES = torch.float32, torch.bfloat16, torch.float16


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.0117, 0.09375, 0.1, 1.0, 3.9])
def test_the_spacing_is_the_distance_to_the_next_number(value, dtype):
    stored = torch.tensor(value, dtype=dtype)
    bits = {2: torch.int16, 4: torch.int32}[stored.element_size()]
    following = (stored.view(bits) + 1).view(dtype)
    assert figures.spacing(value, dtype) == (following.double() - stored.double()).item()


@pytest.mark.parametrize("update", [1e-5, 1e-4, 2.4e-4, 2.5e-4, 1e-3, 1e-2])
def test_the_picture_of_rounding_says_lost_exactly_where_the_number_stays(update):
    weight = 0.09375
    figure = figures.rounding(weight, update, DTYPES)
    [axes] = figure.axes
    words = [text.get_text() for text in axes.texts]
    for dtype, word in zip(DTYPES, words, strict=True):
        landed = torch.tensor(weight, dtype=dtype) + update
        assert (word == "lost") == (landed.item() == weight), dtype
        if word != "lost":
            moved = (landed.double().item() - weight) / update
            assert float(word.removeprefix("moves by ")) == pytest.approx(moved, abs=6e-3)


def test_curves_are_shown_as_means_of_the_last_20_and_gaps_against_the_first():
    runs = {name: [float(x + shift) for x in range(60)] for shift, name in enumerate("abcd")}
    left, right = figures.loss_gaps(runs).axes
    assert left.lines[0].get_xydata()[0].tolist() == [20, 9.5]
    assert [line.get_ydata()[-1] for line in right.lines] == [0, 1, 2, 3]
    [axes] = figures.losses({name: runs[name] for name in "ab"}).axes
    assert axes.lines[1].get_xydata()[-1].tolist() == [60, 50.5]


def test_the_others_draw_what_they_are_given():
    [axes] = figures.layer_bytes([8, 16], [36, 144], [128, 256], rank=2, turn=12).axes
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [[36, 144], [128, 256]]
    curves = {name: [0.9, 0.5] for name in "abc"}
    [axes] = figures.error_by_rank([1, 2], curves, {"d": (1, 0.9), "e": (2, 0.6)}).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list("abcde")
    [axes] = figures.layers_left({"q": (0.9, 0.6), "k": (0.8, 0.5)}).axes
    assert [round(bar.get_width(), 2) for bar in axes.patches] == [0.9, 0.8, 0.6, 0.5]
