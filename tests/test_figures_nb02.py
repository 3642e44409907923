"""The pictures of notebook 02 show the numbers that they are given."""

import matplotlib.pyplot as plt
import pytest
import torch

from qlora_kit import nf4
from qlora_kit.figures import nb02 as figures

LEVELS = nf4.CODEBOOK
WEIGHT = torch.randn(1024, 64, generator=torch.Generator().manual_seed(0))
SCALED = WEIGHT / WEIGHT.abs().amax(dim=1, keepdim=True)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def codes_of(values):
    packed = nf4.quantize(values).packed
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()


def heights(axes):
    return torch.tensor([float(bar.get_height()) for bar in axes.patches])


def segments(lines):
    """The x of each vertical line of a LineCollection."""
    return torch.tensor([path[0][0] for path in lines.get_segments()], dtype=torch.float32)


def test_the_bell_is_a_density_like_the_curve_on_it():
    [axes] = figures.bell(WEIGHT + 3).axes
    [stairs] = axes.patches
    density, edges, _ = (torch.as_tensor(part) for part in stairs.get_data())
    assert (density * edges.diff()).sum() == pytest.approx(1)
    [curve] = axes.lines
    at = torch.bucketize((edges[:-1] + edges[1:]) / 2, torch.as_tensor(curve.get_xdata()))
    torch.testing.assert_close(density, torch.as_tensor(curve.get_ydata())[at], atol=0.03, rtol=0)


def test_the_steps_of_share_lead_to_the_levels():
    end = 1 - (1 / 32 + 1 / 30) / 2
    above, below = (torch.linspace(end, 0.5, n)[:-1] for n in (9, 8))
    axes = figures.quantile_steps(1 - below, above).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    values = torch.cat([torch.as_tensor(line.get_xdata()) for line in dots]).sort().values
    largest = values.max().item()
    torch.testing.assert_close(values / largest, LEVELS, atol=1e-6, rtol=0)
    axes.figure.draw_without_rendering()
    [top] = axes.child_axes  # the second axis, in levels
    assert top.get_xlim() == pytest.approx([x / largest for x in axes.get_xlim()])
    assert {line.get_label() for line in dots} == {"8 above zero", "zero", "7 below zero"}


@pytest.mark.parametrize("value", [-1.0, -0.85, -0.04, 0.0, 0.3, 0.62, 0.99, 1.0])
def test_the_number_line_marks_the_code_that_the_value_gets(value):
    [axes] = figures.number_line(value, LEVELS).axes
    [bold] = [text.get_text() for text in axes.texts if text.get_weight() == "bold"]
    code = codes_of(torch.tensor([1.0, value]))[1].item()
    assert int(bold) == code
    [area] = axes.patches
    assert area.get_x() <= value <= area.get_x() + area.get_width()
    bar, dot = axes.lines
    assert list(bar.get_xdata()) == pytest.approx([value, LEVELS[code].item()])
    assert list(dot.get_xdata()) == pytest.approx([value])


def test_weights_over_levels_and_the_use_of_the_codes():
    heights, used = torch.rand(5), torch.rand(16)
    left, right = figures.over_levels(heights, used, LEVELS).axes
    [stairs] = left.patches
    assert torch.equal(torch.as_tensor(stairs.get_data()[0]), heights)
    assert torch.equal(torch.as_tensor(stairs.get_data()[1]), torch.linspace(-1, 1, 6))
    assert torch.equal(segments(left.collections[0]), LEVELS)
    [bars] = right.collections
    assert torch.equal(segments(bars), torch.arange(16.0))
    tops = torch.tensor([path[1][1] for path in bars.get_segments()])
    torch.testing.assert_close(tops, used, atol=1e-6, rtol=0, check_dtype=False)
    assert right.get_ylim()[1] > used.max()
    assert right.lines[0].get_ydata()[0] == 1 / 16


def test_code_books_stand_side_by_side_with_their_own_levels():
    books = {"NF4": LEVELS, "three": torch.tensor([-1.0, 0.0, 1.0])}
    first, first_use, second, second_use = figures.code_books(books, SCALED).axes
    assert [first.get_ylabel(), second.get_ylabel()] == list(books)
    for axes, levels in zip((first, second), books.values(), strict=True):
        assert torch.equal(segments(axes.collections[0]), levels)
    middle = (SCALED.abs() < 0.5).float().mean()
    assert heights(second_use)[1] == pytest.approx(middle.item(), abs=1e-4)
    assert second_use.lines[0].get_ydata()[0] == 1 / 3
    assert first_use.get_ylim() == second_use.get_ylim()


@pytest.mark.parametrize("block_size, start", [(16, 192), (64, 192), (512, 0)])
def test_the_coloured_block_is_the_one_of_the_outlier(block_size, start):
    row = WEIGHT.flatten()[:512]
    [axes] = figures.outlier(row, row / 2, 200, block_size).axes
    [area] = axes.patches[:1]
    assert (area.get_x(), area.get_width()) == (start, block_size)
    before, after = axes.lines
    assert torch.equal(torch.as_tensor(before.get_ydata()), row)
    assert torch.equal(torch.as_tensor(after.get_ydata()), row / 2)


def test_errors_and_bytes_are_drawn_as_given():
    [axes] = figures.error_by_block([16, 64], {"a": [1, 2], "b": [3, 4], "c": [5, 6]}).axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[1, 2], [3, 4], [5, 6]]
    [axes] = figures.bytes_of_a_block({"plain": (128, 0), "NF4": (32, 4)}).axes
    assert [text.get_text() for text in axes.texts[:2]] == ["128", "36"]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [(0, 128), (0, 32), (128, 0), (32, 4)]
