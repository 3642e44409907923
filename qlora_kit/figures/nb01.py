"""The pictures of notebook 01. Each function returns a Figure."""

import functools
import math

import matplotlib.pyplot as plt
import torch
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from qlora_kit.figures.style import BLUE, GREEN, GREY, ORANGE, canvas, frame, styled

PAPER, NOTE = "#F4F1EA", "#FFE9A8"


def rank_one(W, A, B, scaling, x):
    """A 3 x 3 layer and its rank-1 adapter: the three matrices, and the output as an arrow.

    W [3, 3], A [1, 3], B [3, 1] and x [3] are tensors. The arrow shows the first two of the three
    outputs.
    """
    figure = canvas(9, 3.6)
    left = figure.add_axes((0, 0.02, 0.655, 0.96), xlim=(-1.1, 12.7), ylim=(4.0, -2.2))
    left.set(aspect="equal")
    left.axis("off")
    change = scaling * B @ A
    grids(
        left,
        (W, (-0.9, 0), GREY),
        (B, (3.8, 0), ORANGE),
        (A, (5.2, -1.2), ORANGE),
        (change, (5.2, 0), ORANGE),
        (W + change, (9.5, 0), BLUE),
    )
    for text, place, height, size in (
        (f"W: {W.numel()} frozen", 0.6, 3.45, 10),
        ("+", 2.95, 1.5, 18),
        (f"B: {B.numel()} trained", 4.3, 3.45, 10),
        (f"A: {A.numel()} trained", 6.7, -1.65, 10),
        (f"{scaling:g} · B A", 6.7, 3.45, 10),
        ("=", 8.85, 1.5, 18),
        ("W + scaling · B A", 11, 3.45, 10),
    ):
        left.text(place, height, text, ha="center", va="center", fontsize=size)

    before, after = W @ x, (W + change) @ x
    largest = torch.stack([before[:2], after[:2]]).abs().max()
    reach = 5 * max(2, math.ceil(largest / 5))
    ticks = {place: place for place in (-reach, reach)}
    limits = -1.15 * reach, 1.15 * reach
    place, names = (0.745, 0.17, 0.245, 0.6125), ("first output", "second output")
    right = frame(figure, place, limits, limits, ticks, ticks, *names)
    cross = {"color": GREY, "linewidth": 0.8, "alpha": 0.5}
    right.hlines(0, *limits, **cross)
    right.vlines(0, *limits, **cross)
    if B.any():
        along = B[:, 0] / B.norm() * 4 * reach
        ends = torch.stack([before - along, before + along])
        right.plot(ends[:, 0], ends[:, 1], color=ORANGE, linestyle=":", linewidth=1.5)
    arrow(right, (0, 0), before, GREY)
    arrow(right, (0, 0), after, BLUE)
    arrow(right, before, after, ORANGE)
    words = "grey: W x    orange: detour    blue: together"
    figure.text(0.99, 0.92, words, ha="right", va="top", fontsize=10)
    return figure


def grids(axes, *matrices):
    """Matrices as coloured cells with digits; each is (tensor, its upper left corner, colour)."""
    cells, digits, frames = [], [], []
    for matrix, (left, top), _ in matrices:
        frames.append(rectangle(left, top, *matrix.T.shape))
        for i, row in enumerate(matrix.tolist()):
            for j, number in enumerate(row):
                cells.append(rectangle(left + j, top + i, 1, 1))
                middle = Affine2D().translate(left + j + 0.5, top + i + 0.5)
                digits.append(outline(f"{number + 0.0:.3g}").transformed(middle))
    values = torch.cat([matrix.flatten() for matrix, _, _ in matrices])
    # A wide range, so that the colours stay light enough for black digits; none is the adapter's.
    colours = {"array": values, "cmap": "PRGn", "clim": (-24, 24), "antialiased": False}
    axes.add_collection(PolyCollection(cells, **colours))
    edges = [colour for _, _, colour in matrices]
    axes.add_collection(PolyCollection(frames, facecolor="none", edgecolor=edges, linewidth=3))
    axes.add_collection(PathCollection(digits, color="black", linewidth=0))


def rectangle(left, top, width, height):
    right, bottom = left + width, top + height
    return (left, top), (right, top), (right, bottom), (left, bottom)


@functools.cache
def outline(number):
    """A number as a path around (0, 0), which takes a seventh of the time of a text."""
    path = TextPath((0, 0), number, size=0.33)
    box = path.get_extents()
    return path.transformed(Affine2D().translate(-box.x0 - box.width / 2, -0.12).scale(1, -1))


def arrow(axes, start, end, colour):
    start, end = (float(start[0]), float(start[1])), (float(end[0]), float(end[1]))
    if start != end:
        style = {"arrowstyle": "-|>", "mutation_scale": 14, "shrinkA": 0, "shrinkB": 0}
        axes.add_patch(FancyArrowPatch(start, end, color=colour, linewidth=2.5, **style))


@styled
def sticky_notes():
    """The base as a printed textbook, the adapter as sticky notes on its pages."""
    figure, axes = plt.subplots(figsize=(8, 3.4))
    for shift in (0.16, 0.08, 0.0):  # pages below
        for left in (0, 4):
            page = Rectangle((left + shift, -shift), 4, 5, facecolor=PAPER, edgecolor=GREY)
            axes.add_patch(page)
    for left in (0, 4):
        for line in range(9):
            width = 3.2 if line % 4 != 3 else 2.1
            height = 4.4 - 0.48 * line
            axes.plot([left + 0.4, left + 0.4 + width], [height] * 2, color=GREY, linewidth=2)
    for x, y, turn, text in (
        (2.0, 2.6, 4, "kettle?\nsee repair"),
        (5.2, 0.7, -5, "refund:\nbilling"),
    ):
        note = Rectangle((x, y), 1.7, 1.4, angle=turn, facecolor=NOTE, edgecolor=ORANGE, zorder=3)
        axes.add_patch(note)
        middle = x + 0.85, y + 0.7 + 0.02 * turn
        axes.text(*middle, text, ha="center", va="center", fontsize=10, rotation=turn, zorder=4)
    for text, at, place, colour in (
        ("W: the printed pages.\nNobody rewrites them.", (7.3, 3.9), (9.0, 4.3), GREY),
        (
            "A and B: sticky notes.\nFew, easy to write,\neasy to take off again.",
            (6.85, 1.2),
            (9.0, 1.5),
            ORANGE,
        ),
    ):
        line = {"arrowstyle": "-", "color": colour}
        axes.annotate(text, at, place, va="center", arrowprops=line)
    axes.set(xlim=(-0.2, 13), ylim=(-0.4, 5.2), aspect="equal")
    axes.axis("off")
    return figure


@styled
def detour(inputs=576, rank=8, outputs=1536):
    """Two ways from x to y: the main road W, and the detour through A and B."""
    figure, axes = plt.subplots(figsize=(8, 3.4))
    station(axes, 0.4, 2.5, 0.8, 3.0, PAPER, f"x\n\n{inputs}")
    station(axes, 9.4, 2.5, 0.8, 4.2, PAPER, f"y\n\n{outputs}")
    road = Rectangle((1.6, 3.0), 5.6, 1.2, facecolor=GREY, alpha=0.35, edgecolor=GREY, linewidth=2)
    axes.add_patch(road)
    axes.text(4.4, 3.6, "W: the main road, frozen", ha="center", va="center")
    narrowing = [(1.6, 0.4), (1.6, 2.0), (4.1, 1.35), (4.1, 1.05)]
    widening = [(4.7, 1.05), (4.7, 1.35), (7.2, 2.2), (7.2, 0.2)]
    for corners, label, x in ((narrowing, "A", 2.6), (widening, "B", 6.2)):
        axes.add_patch(Polygon(corners, facecolor=NOTE, edgecolor=ORANGE, linewidth=2))
        axes.text(x, 1.2, label, ha="center", va="center", fontsize=13)
    axes.text(4.4, 0.55, f"the narrow place:\n{rank} numbers (the rank)", ha="center", va="top")
    axes.text(7.5, 1.6, "times scaling", ha="left", va="top", fontsize=10)
    for start, end, colour in (
        ((0.85, 3.2), (1.55, 3.6), GREY),
        ((0.85, 1.8), (1.55, 1.2), ORANGE),
        ((4.12, 1.2), (4.68, 1.2), ORANGE),
        ((7.25, 3.6), (7.92, 2.7), GREY),
        ((7.25, 1.4), (7.98, 2.2), ORANGE),
        ((8.42, 2.48), (8.95, 2.48), BLUE),
    ):
        arrow(axes, start, end, colour)
    axes.text(8.15, 2.48, "+", ha="center", va="center", fontsize=20)
    axes.set(xlim=(-0.2, 10), ylim=(-0.5, 4.8))
    axes.axis("off")
    return figure


def station(axes, x, y, width, height, colour, text):
    corner = x - width / 2, y - height / 2
    style = "round,pad=0.02,rounding_size=0.1"
    box = FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor=BLUE)
    axes.add_patch(box)
    axes.text(x, y, text, ha="center", va="center", fontsize=10)


@styled
def proportion_kept(curves):
    """How much of a matrix its best approximations of rising rank hold.

    `curves` maps a label to the proportions at rank 1, 2, and so on: of the change, of W, and of
    random numbers.
    """
    figure, axes = plt.subplots(figsize=(8, 3.2))
    looks = (ORANGE, "-"), (GREY, "-"), ("black", ":")
    for (label, held), (colour, line) in zip(curves.items(), looks, strict=True):
        ranks = range(1, len(held) + 1)
        axes.plot(ranks, held, color=colour, linestyle=line, linewidth=2, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set(xlabel="rank", ylabel="proportion of the squared size kept", ylim=(0, 1.03))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def loss_by_rank(update, whole, base, tuned):
    """Held-out loss of a fine-tuned layer of which only some ranks are kept.

    `update` and `whole` map a rank to the loss with the change, or the whole matrices, cut to it;
    `base` and `tuned` are the losses before and after the fine-tuning.
    """
    figure, axes = plt.subplots(figsize=(8, 3.2))
    for losses, colour, label in (
        (update, BLUE, "W + (the change\ncut to this rank)"),
        (whole, GREEN, "the whole tuned matrices,\ncut to this rank"),
    ):
        axes.plot(list(losses), list(losses.values()), color=colour, marker="o", label=label)
    for loss, label, style in ((base, "before", ":"), (tuned, "fully fine-tuned", "--")):
        axes.axhline(loss, color="black", linewidth=1, linestyle=style, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="rank kept", ylabel="held-out loss (nats a token)", ylim=(0, None))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


@styled
def first_steps(ranks, moved):
    """How far the first training step moves a layer's output, by rank.

    `moved` maps a rule for the scaling to the distances at `ranks`, each relative to the first.
    """
    figure, axes = plt.subplots(figsize=(8, 3.2))
    for (label, sizes), colour in zip(moved.items(), (GREEN, BLUE, GREY), strict=True):
        axes.plot(ranks, sizes, color=colour, marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.axhline(1, color="black", linewidth=1, linestyle=":")
    axes.set(xlabel="rank", ylabel=f"output moved (rank {ranks[0]} = 1)")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
