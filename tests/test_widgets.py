"""Sliders over pictures: what a move changes, and what is stored for those who have no kernel."""

import base64
import gc

import ipywidgets
import matplotlib.pyplot as plt
import pytest

from qlora_kit.figures import widgets
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
