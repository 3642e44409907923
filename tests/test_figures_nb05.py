"""The pictures of notebook 05: what they draw is what they are given."""

import pytest
from matplotlib import pyplot as plt

from qlora_kit.figures import nb05 as figures


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def widths(axes):
    return [[round(bar.get_width(), 3) for bar in stack] for stack in axes.containers]


def starts(axes):
    return [[round(bar.get_x(), 3) for bar in stack] for stack in axes.containers]


def test_parts_are_stacked_and_their_sum_is_written_beside():
    models = {"16 bits": {"a": 2e6, "b": 6e6}, "4 bits": {"a": 2e6, "b": 1e6}}
    [axes] = figures.parts(models).axes
    assert widths(axes) == [[2, 2], [6, 1]]
    assert starts(axes) == [[0, 0], [2, 2]]
    assert [text.get_text() for text in axes.texts] == ["8 MB", "3 MB"]


def test_options_show_bytes_error_loss_and_seconds_side_by_side():
    terms = "quantised weights", "quantisation constants", "unquantised weights"
    rows = {
        name: {"bytes": dict(zip(terms, sizes, strict=True)), "error": error, "seconds": seconds}
        for name, sizes, error, seconds in (
            ("none", (0, 0, 8e6), 0.0, 1.0),
            ("four", (2e6, 1e6, 4e6), 0.1, 2.5),
        )
    }
    rows["none"]["loss"], rows["four"]["loss"] = 4.5, 4.75
    size, error, loss, time = figures.options(rows).axes
    assert widths(size) == [[0, 2], [0, 1], [8, 4]]
    assert starts(size) == [[0, 0], [0, 2], [0, 3]]
    assert [line.get_xdata()[0] for line in loss.lines] == [4.5, 4.5, 4.75]  # the first is the rule
    assert [text.get_text() for text in loss.texts] == ["4.500", "4.750"]
    assert widths(error) == [[0, 0.1]] and widths(time) == [[1, 2.5]]
    assert [label.get_text() for label in size.get_yticklabels()] == ["none", "four"]


def test_targets_are_counted_and_their_share_is_that_of_pefts_line():
    choices = {
        "one": {"attention": 1_000_000, "MLP": 0},
        "all": {"attention": 2_000_000, "MLP": 3_000_000},
    }
    [axes] = figures.targets(choices, base=99_000_000).axes
    assert widths(axes) == [[1, 2], [0, 3]]
    said = [text.get_text() for text in axes.texts]
    assert said == ["1,000,000 (1.00%)", "5,000,000 (4.81%)"]
