"""The axes that a slider's picture is drawn on: marks and words stand where their numbers are."""

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from qlora_kit.figures import nb06 as figures

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
