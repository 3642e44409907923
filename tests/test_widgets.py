"""Sliders over pictures, and a box for a ticket: what a move or a click changes, and what is stored
for those who have no kernel.
"""

import base64
import gc

import ipywidgets
import matplotlib.pyplot as plt
import pytest

from qlora_kit.errors import KitError
from qlora_kit.figures import cards, widgets
from qlora_kit.figures.style import style


def draw(height, name="bar"):
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.bar([name], [height])
    axes.set(ylim=(0, 10))
    return figure, f"{name} {height:g}"


def picture_of(*values):
    with style():  # as `explore` has it
        figure, _ = draw(*values)
        return widgets.png(figure)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, as pairs of the box with its parts and the stored bundle."""
    pairs, vbox = [], ipywidgets.VBox

    def box(children):
        pairs.append([vbox(children)])
        return pairs[-1][0]

    monkeypatch.setattr(widgets.ipywidgets, "VBox", box)
    monkeypatch.setattr(widgets, "display", lambda bundle, raw: pairs[-1].append(bundle))
    return pairs


def test_a_move_of_a_slider_changes_the_picture_and_the_numbers(shown):
    height = ipywidgets.FloatSlider(value=1, max=10)
    name = ipywidgets.Text("a")
    widgets.explore(draw, height=height, name=name)
    [(box, bundle)] = shown
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == box.model_id
    first, second, numbers, picture = box.children
    assert (first, second) == (height, name) and numbers.value == "a 1"
    before = picture.value
    height.value = 4
    assert numbers.value == "a 4"
    assert picture.value == picture_of(4, "a") != before
    name.value = "b"
    assert numbers.value == "b 4"


def test_a_control_without_a_label_gets_its_name(shown):
    height = ipywidgets.FloatSlider(value=1)
    name = ipywidgets.Dropdown(options=["a", "b"], description="which bar")
    widgets.explore(lambda bar_height, name: draw(bar_height, name), bar_height=height, name=name)
    assert (height.description, name.description) == ("bar height", "which bar")


def test_the_first_picture_is_stored_and_the_text_never_changes(shown):
    for height in (1, 2):
        widgets.explore(draw, height=ipywidgets.FloatSlider(value=height))
    (_, first), (_, second) = shown
    assert base64.b64decode(first["image/png"]) == picture_of(1)
    assert first["text/plain"] == second["text/plain"]


def test_no_figure_is_left_open(shown):
    height = ipywidgets.FloatSlider(value=1)
    widgets.explore(draw, height=height)
    height.value = 2
    assert plt.get_fignums() == []


def test_the_garbage_collector_waits_while_a_move_is_answered_and_then_goes_on(shown):
    collecting = []

    def watched(height):
        collecting.append(gc.isenabled())
        if height == 3:
            raise ZeroDivisionError
        return draw(height)

    height = ipywidgets.FloatSlider(value=1)
    widgets.explore(watched, height=height)
    height.value = 2
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        height.value = 3
    assert gc.isenabled() and collecting == [False, False, False]


class Models:
    """They repeat the ticket, or fail, and note what was asked and how the box looked meanwhile."""

    def __init__(self):
        self.asked, self.seen, self.failure, self.box = [], [], None, None

    def __call__(self, texts):
        self.asked.append(texts)
        if self.box:
            _, button, says, table = self.box.children
            self.seen.append((button.disabled, bool(says.value), table.value))
        if self.failure:
            raise self.failure
        chances = {"app": 0.9, "repair": 0.1}
        return [
            {name: cards.Reading("app, low", text, chances) for name in ("base", "tuned")}
            for text in texts
        ]


TICKETS = ["My kettle is cold.", "Is it out?", "No tea today."]


@pytest.fixture
def models(shown):
    models = Models()
    widgets.ticket_box(models, TICKETS, limit=40)
    [(models.box, models.bundle)] = shown
    return models


def test_the_box_opens_with_the_first_example_and_a_picture_of_all_is_stored(models):
    ticket, button, says, table = models.box.children
    assert models.asked == [TICKETS] and ticket.value == TICKETS[0]
    assert not button.disabled and not says.value
    answers = Models()(TICKETS)
    assert table.value == cards.side_by_side(answers[0])
    stored = widgets.png(cards.picture(TICKETS, answers))
    assert base64.b64decode(models.bundle["image/png"]) == stored
    view = models.bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == models.box.model_id
    assert plt.get_fignums() == []


def test_a_click_asks_about_the_ticket_and_the_box_is_busy_meanwhile(models):
    ticket, button, says, table = models.box.children
    ticket.value = "  <b>Where</b> is it? \n"
    button.click()
    assert models.asked[1:] == [["<b>Where</b> is it?"]]
    assert models.seen == [(True, True, "")]  # no old answer stands below a new ticket
    assert not button.disabled and not says.value
    assert table.value == cards.side_by_side(Models()(["<b>Where</b> is it?"])[0])


@pytest.mark.parametrize("text", ["", " \n ", "x" * 41], ids=["empty", "blank", "too long"])
def test_what_is_no_ticket_is_not_asked_about(models, text):
    ticket, button, says, table = models.box.children
    ticket.value = text
    button.click()
    assert models.asked == [TICKETS]
    assert says.value and not table.value and not button.disabled


@pytest.mark.parametrize(
    "failure", [KitError("Not <so>."), RuntimeError("Not <so>\nat all"), KeyboardInterrupt()]
)
def test_a_failure_is_one_line_and_the_box_can_be_used_again(models, failure):
    _, button, says, table = models.box.children
    models.failure = failure
    button.click()
    assert "Not &lt;so&gt;" in says.value or isinstance(failure, KeyboardInterrupt)
    assert says.value and "\n" not in says.value
    assert not table.value and not button.disabled
    models.failure = None
    button.click()
    assert table.value and not says.value
