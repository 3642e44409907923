"""The pictures of notebook 03: what they compute, and that each draws."""

import pytest
from matplotlib import pyplot as plt

from qlora_kit.figures import nb03 as figures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_picture_of_the_layer_dequantises_in_both_directions():
    forward, backward = figures.layer().axes

    def arrows(axes):
        drawn = [text for text in axes.texts if getattr(text, "arrow_patch", None)]
        return {(text.xyann, text.xy) for text in drawn}

    turned = {(end, start) for start, end in arrows(backward)}
    shared = arrows(forward) & arrows(backward)
    assert len(shared) == 1, "from the codes to the weight, in both"
    assert arrows(forward) - shared == turned - {(end, start) for start, end in shared}
    words = [" ".join(text.get_text() for text in axes.texts) for axes in (forward, backward)]
    assert ["gradient of A" in part for part in words] == [False, True]


def test_curves_are_shown_as_means_of_the_last_20():
    runs = {name: [float(x + shift) for x in range(60)] for shift, name in enumerate("ab")}
    [axes] = figures.losses(runs).axes
    assert axes.lines[1].get_xydata()[-1].tolist() == [60, 50.5]


def test_the_others_draw_what_they_are_given():
    [axes] = figures.layer_bytes([8, 16], [36, 144], [128, 256], rank=2, turn=12).axes
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [[36, 144], [128, 256]]
    curves = {name: [0.9, 0.5] for name in "abc"}
    [axes] = figures.error_by_rank([1, 2], curves).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list("abc")
    [axes] = figures.layers_left({"q": (0.9, 0.6), "k": (0.8, 0.5)}).axes
    assert [round(bar.get_width(), 2) for bar in axes.patches] == [0.9, 0.8, 0.6, 0.5]
