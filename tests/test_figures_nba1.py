"""The pictures of appendix a1: what they compute, and that each draws."""

import pytest
import torch
from matplotlib import pyplot as plt

from qlora_kit.figures import nba1 as figures

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


def test_gaps_are_those_against_the_first_curve():
    runs = {name: [float(x + shift) for x in range(60)] for shift, name in enumerate("abcd")}
    left, right = figures.loss_gaps(runs).axes
    assert left.lines[0].get_xydata()[0].tolist() == [20, 9.5]
    assert [line.get_ydata()[-1] for line in right.lines] == [0, 1, 2, 3]


def test_the_stream_is_drawn_against_the_limit_and_what_passes_it_in_another_colour():
    [axes] = figures.residual_stream([10.0, 70_000.0, 65_504.0], 65_504).axes
    fits, over = axes.containers
    drawn = [
        [(round(bar.get_center()[0]), bar.get_height()) for bar in bars] for bars in (fits, over)
    ]
    assert drawn == [[(0, 10), (2, 65_504)], [(1, 70_000)]]
    assert fits.get_label() == "fits" and over.get_label() == "too large"
    assert axes.lines[0].get_ydata()[0] == 65_504
    assert axes.texts[0].get_text() == "float16 ends at 65,504"


def test_gradients_are_drawn_as_shares_between_the_ends_of_float16():
    shares = {"plain": [0.75, 0.25, 0.0], "scaled": [0.0, 0.5, 0.5]}
    [axes] = figures.gradients(shares, [-30, -26, -22], 2**-25, 65_504).axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn == {"plain": [75, 25, 0], "scaled": [0, 50, 50]}
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle()
    zero, infinity = axes.patches
    assert (zero.get_x(), zero.get_x() + zero.get_width()) == (-30, -25)
    assert [text.get_text() for text in axes.texts] == ["zero", "infinity"]
    assert infinity.get_x() == pytest.approx(16, abs=0.01)
