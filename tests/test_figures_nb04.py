"""The pictures of notebook 04 show the numbers that they are given."""

import matplotlib.pyplot as plt
import pytest

from qlora_kit import memory
from qlora_kit.figures import nb04 as figures
from qlora_kit.memory import GIB, MIB

STACKS = {
    "one": {"quantised weights": 3 * GIB, "adapter": 1 * GIB},
    "two": {"quantised weights": 2 * GIB, "logits and loss": 5 * GIB, figures.GAPS: GIB},
}
MOMENTS = [
    {"optimizer": 0, "logits and loss": 100 * MIB},
    {"optimizer": 300 * MIB, "logits and loss": 0},
    {"optimizer": 300 * MIB, "logits and loss": 200 * MIB},
]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def ends(axes, row):
    """Where the pieces of a row's bar end."""
    return [p.get_x() + p.get_width() for p in axes.patches if round(p.get_y() + 0.35) == row]


def test_each_term_has_a_colour_of_its_own():
    assert set(figures.COLOURS) == {*memory.TERMS, figures.GAPS, figures.SCRATCH}
    assert len(set(figures.COLOURS.values())) == len(figures.COLOURS)


def test_the_pieces_of_a_bar_add_up_and_their_sum_stands_beside_it():
    [axes] = figures.bars(STACKS, sizes=[6]).axes
    assert ends(axes, 0) == [3, 4, 4, 4]
    assert ends(axes, 1) == [2, 2, 7, 8]
    assert [text.get_text() for text in axes.texts] == ["4.0", "8.0", "6"]
    assert [line.get_xdata()[0] for line in axes.lines] == [6]
    assert axes.get_xlim()[1] > 8


def heights(collection):
    """The upper edge of a stack's area at each whole number, and the lower one."""
    path = collection.get_paths()[0].vertices
    return path[:, 1].min(), path[:, 1].max()


def test_the_timeline_stacks_the_bytes_of_each_moment():
    [axes] = figures.timeline(MOMENTS, {"forward": 0, "backward": 2}, limit=GIB).axes
    optimizer, logits = axes.collections  # in the order of memory.TERMS
    assert heights(optimizer)[1] == pytest.approx(300 * MIB / GIB)
    assert heights(logits)[1] == pytest.approx(500 * MIB / GIB)
    names = [text.get_text().strip() for text in axes.texts]
    assert names == ["0.49 GiB", "forward", "backward", "what the GPU has"]
    assert axes.lines[-1].get_ydata()[0] == 1


def test_a_timeline_below_one_gib_is_drawn_in_mib_and_its_words_stay_inside():
    [axes] = figures.timeline([*MOMENTS, *MOMENTS], {"forward": 0, "optimizer": 5.5}).axes
    assert heights(axes.collections[-1])[1] == 500 and axes.get_ylabel() == "MiB"
    peak, forward, optimizer = axes.texts
    assert peak.get_text() == "500 MiB"
    assert (forward.get_ha(), optimizer.get_ha()) == ("left", "right")


def test_only_as_much_is_paged_out_as_does_not_fit_and_never_more_than_the_states():
    [axes] = figures.paging(MOMENTS, limit=350 * MIB).axes
    rest, stays, away = axes.collections
    assert heights(rest)[1] == 200
    assert heights(stays)[1] == 350  # 150 of the 300 are away
    assert heights(away)[1] == 500
    [axes] = figures.paging(MOMENTS[::-1], limit=50 * MIB).axes
    _, stays, _ = axes.collections
    assert {y for x, y in stays.get_paths()[0].vertices if x == 0} == {200}  # none stays


def test_errors_are_drawn_in_per_cent_and_what_is_far_off_is_written():
    errors = {"near": [1.01, 0.98], "far": [0.5, 0.25]}
    [axes] = figures.said_and_measured(errors).axes
    assert axes.lines[0].get_xdata() == pytest.approx([1, -2])
    assert list(axes.lines[0].get_ydata()) == [0, 0]
    low, high = axes.get_xlim()
    assert (low, high) == pytest.approx((-2.5, 2.5)), "as wide as the errors that it is about"
    [words] = axes.texts
    assert words.get_text() == "\N{MINUS SIGN}75 % to \N{MINUS SIGN}50 %"
    assert words.get_position()[1] == 1 and low < words.get_position()[0] < 0


def test_a_peak_of_one_moment_is_not_lost_in_a_long_timeline():
    flat = [{"adapter": 1}] * 1000
    starts, shown = figures.fullest([*flat, {"adapter": 9}, *flat], places=10)
    assert len(starts) == len(shown) == 10
    assert [moment["adapter"] for moment in shown].count(9) == 1
    assert figures.fullest(MOMENTS) == (range(3), MOMENTS)
