"""The pictures of notebook 01 show the numbers that they are given."""

import matplotlib.pyplot as plt
import pytest
import torch

from qlora_kit.figures import nb01 as figures

W = torch.tensor([[2.0, 0, 1], [1, 3, 0], [0, 1, 2]])
A, B = torch.tensor([[1.0, 0, 2]]), torch.tensor([[1.0], [0.5], [-0.5]])
X = torch.tensor([2.0, 1, 1])


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_rank_one_shows_the_matrices_and_counts():
    left, _ = figures.rank_one(W, A, B, 2.0, X).axes
    shown = texts(left)
    assert [t for t in shown if ":" in t] == ["W: 9 frozen", "B: 3 trained", "A: 3 trained"]
    assert "2 · B A" in shown
    cells, _, digits = left.collections
    both = [4, 0, 5, 2, 3, 2, -1, 1, 0]
    assert cells.get_array().tolist()[-9:] == both
    pairs = zip(both, cells.get_paths()[-9:], digits.get_paths()[-9:], strict=True)
    for number, cell, path in pairs:
        outline = figures.outline(str(number)).vertices
        middle = cell.get_extents().get_points().mean(axis=0)
        assert path.vertices == pytest.approx(outline + middle)


@pytest.mark.parametrize("scaling", [0.0, 0.5, 2.0])
def test_rank_one_draws_the_arrows_from_the_layers_outputs(scaling):
    _, right = figures.rank_one(W, A, B, scaling, X).axes
    before, after = W @ X, (W + scaling * B @ A) @ X
    ends = [patch._posA_posB for patch in right.patches]
    ends = [(tuple(start), tuple(end)) for start, end in ends]
    assert ends[0] == ((0, 0), (before[0], before[1]))
    assert ends[1] == ((0, 0), (after[0], after[1]))
    assert len(ends) == (3 if scaling else 2)  # no detour, no arrow
    dotted = right.lines[0].get_xydata()
    slope = (dotted[1] - dotted[0])[1] / (dotted[1] - dotted[0])[0]
    assert slope == pytest.approx(B[1] / B[0])  # along B, through W x
    assert dotted.mean(axis=0) == pytest.approx(before[:2])


def test_the_arrows_fill_their_square():
    """Its half side is a multiple of 5, 10 at least, and the next one above the longest arrow."""
    for factor, side in ((0.0, 10), (1.0, 15), (2.0, 25)):
        _, right = figures.rank_one(W, A, factor * B, 2.0, X).axes
        assert right.get_xlim()[1] == pytest.approx(1.15 * side)


def test_no_cell_has_the_colour_of_the_adapter():
    left, _ = figures.rank_one(W, A, B, 2.0, X).axes
    orange = torch.tensor(plt.matplotlib.colors.to_rgb(figures.ORANGE))
    for strength in torch.linspace(-24, 24, 49):
        colour = torch.tensor(left.collections[0].to_rgba(strength.item())[:3])
        assert (colour - orange).abs().max() > 0.3


def test_rank_one_bears_an_adapter_of_zeros_and_large_numbers():
    for a, b in ((0 * A, 0 * B), (A, 0 * B), (100 * A, 100 * B)):
        _, right = figures.rank_one(W, a, b, 1.0, X).axes
        after = (W + b @ a) @ X
        assert right.get_xlim()[1] > after.abs().max()
        dotted = [line for line in right.lines if line.get_linestyle() == ":"]
        assert len(dotted) == b.any()  # a B of zero has no direction


def test_proportions_stand_over_their_ranks():
    held = {name: torch.tensor([0.8, 1.0]) for name in "abc"}
    lines = figures.proportion_kept(held).axes[0].lines
    assert [line.get_label() for line in lines] == list(held)
    for line in lines:
        assert list(line.get_xdata()) == [1, 2]
        assert line.get_ydata().tolist() == pytest.approx([0.8, 1.0])


def test_curves_carry_their_numbers():
    figure = figures.loss_by_rank({1: 2.0, 8: 1.5}, {8: 9.0, 64: 3.0}, 8.0, 1.4)
    lines = [list(line.get_ydata()) for line in figure.axes[0].lines]
    assert lines == [[2.0, 1.5], [9.0, 3.0], [8.0, 8.0], [1.4, 1.4]]
    moved = {"x": [1, 2], "y": [1, 1], "z": [1, 0.5]}
    figure = figures.first_steps((4, 16), moved)
    assert [list(line.get_ydata()) for line in figure.axes[0].lines[:3]] == list(moved.values())


def test_the_two_pictures_name_their_parts():
    notes = " ".join(texts(figures.sticky_notes().axes[0]))
    assert "W: the printed pages" in notes and "A and B: sticky notes" in notes
    road = " ".join(texts(figures.detour(inputs=5, rank=2, outputs=7).axes[0]))
    for part in ("x\n\n5", "y\n\n7", "2 numbers (the rank)", "frozen", "A", "B", "+", "scaling"):
        assert part in road
