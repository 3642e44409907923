"""The style of pictures, and a slider's axes: marks and words stand where their numbers are."""

import matplotlib
import matplotlib.pyplot as plt
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from qlora_kit.figures import style as figures

PLACE = (0.1, 0.2, 0.7, 0.6)


@pytest.fixture(params=[(-2.0, 2.0), (2.5, -0.5)], ids=["upwards", "downwards"])
def framed(request):
    figure = figures.canvas(8, 3)
    ticks = {0: "none", 5: "five", 10: 10}, {0: "zero", 2: "two"}
    axes = figures.frame(figure, PLACE, (0, 10), request.param, *ticks, "across", "up")
    return FigureCanvasAgg(figure).get_renderer(), figure, axes


def test_words_stand_at_the_numbers_that_they_name(framed):
    renderer, figure, axes = framed
    boxes = {text.get_text(): text.get_window_extent(renderer) for text in figure.texts}
    assert set(boxes) == {"none", "five", "10", "across", "zero", "two", "up"}
    frame = axes.get_window_extent(renderer)
    for number, word in ((0, "none"), (5, "five"), (10, "10")):
        place, _ = axes.transData.transform((number, 0))
        assert (boxes[word].x0 + boxes[word].x1) / 2 == pytest.approx(place, abs=1)
        assert boxes["across"].y1 < boxes[word].y0 < boxes[word].y1 < frame.y0
    for number, word in ((0, "zero"), (2, "two")):
        _, place = axes.transData.transform((0, number))
        assert (boxes[word].y0 + boxes[word].y1) / 2 == pytest.approx(place, abs=2)
        assert boxes[word].x1 < frame.x0
    assert boxes["up"].y0 > frame.y1
    assert all(min(box.x0, box.y0) >= 0 for box in boxes.values())


def test_marks_stand_at_the_numbers_and_the_data_have_the_axes_for_themselves(framed):
    _, figure, axes = framed
    under, beside = (line for line in figure.artists if line.get_linestyle() == "None")
    assert list(under.get_xdata()) == [0, 5, 10] and list(beside.get_ydata()) == [0, 2]
    assert not axes.axison and not axes.texts and not axes.lines


def test_without_numbers_beside_it_there_is_no_line_at_the_left():
    figure = figures.canvas(8, 3)
    figures.frame(figure, PLACE, (0, 1), (0, 1), {0: "0"}, {}, "across")
    assert [list(line.get_xdata()) for line in figure.artists] == [[0, 1], [0]]


def test_a_picture_has_the_kits_style_and_a_learners_own_keeps_theirs():
    before = dict(matplotlib.rcParams)

    @figures.styled
    def draw():
        figure, axes = plt.subplots()
        axes.plot([0, 1], [0, 1])
        return figure

    figure = draw()
    [axes] = figure.axes
    assert dict(matplotlib.rcParams) == before
    figure.draw_without_rendering()  # most ticks are made only now, outside the style
    for tick in axes.xaxis.get_major_ticks():
        assert tick.label1.get_size() == figures.STYLE["font.size"] != before["font.size"]
        assert tick.gridline.get_alpha() == figures.STYLE["grid.alpha"]
        assert tick.gridline.get_visible()
    assert not axes.spines["top"].get_visible()
    plt.close(figure)


def test_a_picture_leaves_pyplot_as_interactive_as_the_first_one_made_it():
    """Jupyter's backend switches it on with the first picture, and shows none without."""

    @figures.styled
    def draw():
        figure = plt.figure()
        plt.ion()
        return figure

    try:
        plt.close(draw())
        assert plt.isinteractive()
    finally:
        plt.ioff()
