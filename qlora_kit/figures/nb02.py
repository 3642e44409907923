"""The pictures of notebook 02. Each function returns a Figure."""

import matplotlib.pyplot as plt
import torch

from qlora_kit.figures.style import BLUE, GREEN, GREY, ORANGE, canvas, frame, styled


@styled
def bell(weight):
    """A histogram of weights under the normal curve of the same mean and standard deviation."""
    figure, axes = plt.subplots(figsize=(8, 3))
    standard = (weight.flatten() - weight.mean()) / weight.std()
    density, edges = torch.histogram(standard, bins=90, range=(-5, 5), density=True)
    axes.stairs(density, edges, fill=True, color=BLUE, alpha=0.6, label="weights")
    x = torch.linspace(-5, 5, 300)
    normal = torch.exp(-(x**2) / 2) / (2 * torch.pi) ** 0.5
    axes.plot(x, normal, color="black", label="normal curve")
    axes.set(xlabel="weight (in standard deviations)", ylabel="density", xlim=(-5, 5))
    axes.legend(frameon=False)
    return figure


@styled
def quantile_steps(below, above):
    """How equal steps of probability become levels: the normal distribution function, read across.

    `below` and `above` are the probabilities of the levels on either side of zero.
    """
    figure, axes = plt.subplots(figsize=(8, 4.2))
    x = torch.linspace(-2.6, 2.6, 300)
    axes.plot(x, torch.special.ndtr(x), color="black")
    zero = torch.tensor([0.5])
    for probabilities, colour, name in (
        (above, BLUE, f"{len(above)} above zero"),
        (zero, GREY, "zero"),
        (below, ORANGE, f"{len(below)} below zero"),
    ):
        values = torch.special.ndtri(probabilities)
        axes.hlines(probabilities, -2.6, values, color=colour, linewidth=1)
        axes.vlines(values, 0, probabilities, color=colour, linewidth=1)
        axes.plot(values, probabilities, "o", color=colour, markersize=5, label=name)
    largest = torch.special.ndtri(above).max().item()
    top = axes.secondary_xaxis("top", functions=(lambda x: x / largest, lambda x: x * largest))
    top.set_xlabel("level (divided by the largest)")
    axes.set(xlabel="value (in standard deviations)", ylabel="proportion of values below")
    axes.set(xlim=(-2.6, 2.6), ylim=(0, 1))
    axes.grid(visible=False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def number_line(value, levels):
    """A value between -1 and 1, the level that it is rounded to, and all that shares this level."""
    code = torch.bucketize(value, _midpoints(levels)).item()
    edges = [-1, *_midpoints(levels).tolist(), 1]
    level = levels[code].item()
    figure, place = canvas(8, 2.2), (0.02, 0.24, 0.96, 0.64)
    ticks = {-1: "-1", -0.5: "-0.5", 0: "0", 0.5: "0.5", 1: "1"}
    axes = frame(figure, place, (-1.04, 1.04), (0, 0.75), ticks, {}, "scaled weight")
    axes.axvspan(edges[code], edges[code + 1], color=ORANGE, alpha=0.25, linewidth=0)
    axes.vlines(levels, 0, 0.5, color=BLUE)
    axes.vlines(level, 0, 0.5, color=BLUE, linewidth=4)
    for number, place in enumerate(levels.tolist()):
        chosen = {"weight": "bold", "color": "black"} if number == code else {"color": "#555555"}
        axes.text(place, 0.55, number, ha="center", fontsize=9, **chosen)
    axes.plot([value, level], [0.25, 0.25], color=ORANGE, linewidth=3)
    axes.plot(value, 0.25, "o", color="black", markersize=8)
    words = "blue: levels and their codes        orange: what gets this code"
    figure.text(0.5, 0.97, words, ha="center", va="top", fontsize=10)
    return figure


def over_levels(heights, used, levels):
    """Left the scaled weights over the levels, right how often each code is used.

    `heights` is a histogram from -1 to 1, `used` holds a number for each code, both as shares.
    """
    figure, proportion = canvas(9, 3), "proportion of the weights"
    ticks = {-1: "-1", 0: "0", 1: "1"}, {0: "0%", 0.02: "2%", 0.04: "4%"}
    names = "scaled weight (orange: the levels)", proportion
    left = frame(figure, (0.05, 0.18, 0.53, 0.7), (-1.02, 1.02), (0, 0.055), *ticks, *names)
    edges = torch.linspace(-1, 1, len(heights) + 1)
    left.stairs(heights, edges, fill=True, color=BLUE, alpha=0.5)
    left.vlines(levels, 0, 1, color=ORANGE, linewidth=1.2)

    ticks = {0: "0", 5: "5", 10: "10", 15: "15"}, {0: "0%", 0.05: "5%", 0.1: "10%"}
    names = "code (dashed: all used equally)", proportion
    high = 1.05 * max(0.12, used.max().item())
    right = frame(figure, (0.65, 0.18, 0.34, 0.7), (-1, len(levels)), (0, high), *ticks, *names)
    right.vlines(range(len(levels)), 0, used, color=BLUE, linewidth=10)
    right.axhline(1 / len(levels), color="black", linestyle="--", linewidth=1)
    return figure


@styled
def code_books(books, scaled):
    """Code books side by side: left the levels, right how often each is used for these weights."""
    figure, rows = plt.subplots(
        len(books), 2, figsize=(8, 1.15 * len(books)), sharex="col", sharey="col"
    )
    for (name, levels), (left, right) in zip(books.items(), rows, strict=True):
        left.vlines(levels, 0, 1, color=ORANGE, linewidth=2)
        left.set(ylim=(0, 1.2), yticks=[], xlim=(-1.05, 1.05))
        left.set_ylabel(name, rotation=0, ha="right", va="center")
        left.grid(visible=False)
        _use_of_codes(right, scaled, levels)
    rows[-1][0].set_xlabel("level")
    rows[-1][1].set(xlabel="code (dashed: all used equally)", xticks=[0, 5, 10, 15])
    return figure


def _use_of_codes(axes, scaled, levels):
    codes = torch.bucketize(scaled.flatten(), _midpoints(levels))
    proportion = torch.bincount(codes, minlength=len(levels)) / scaled.numel()
    axes.bar(range(len(levels)), proportion, color=BLUE)
    axes.axhline(1 / len(levels), color="black", linestyle="--", linewidth=1)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="x", visible=False)


def _midpoints(levels):
    return (levels[:-1] + levels[1:]) / 2


def outlier(weight, restored, place, block_size):
    """A row of weights and what comes back of them, with the outlier's block in colour.

    `place` is the outlier's index; it is so large that it lies above the picture.
    """
    figure = canvas(8, 3.2)
    ticks = {k: k for k in range(0, len(weight) + 1, 100)}, {-4: "-4", 0: "0", 4: "4"}
    names = "place in the row (orange: the outlier's block)", "weight (in std)"
    axes = frame(figure, (0.05, 0.17, 0.93, 0.7), (0, len(weight)), (-4.3, 4.3), *ticks, *names)
    start = place // block_size * block_size
    axes.axvspan(start, start + block_size, color=ORANGE, alpha=0.2, linewidth=0)
    axes.plot(weight, ".", color=GREY, markersize=4)
    axes.plot(restored, ".", color=BLUE, markersize=4)
    axes.annotate(
        "outlier", (place, 4.3), (place, 3.4), ha="center", arrowprops={"arrowstyle": "->"}
    )
    figure.text(0.98, 0.97, "grey: before    blue: after", ha="right", va="top", fontsize=10)
    return figure


@styled
def error_by_block(sizes, errors):
    """Errors against the block size, a line for each name in `errors`."""
    figure, axes = plt.subplots(figsize=(8, 3.2))
    styles = zip((BLUE, ORANGE, GREEN), "os^", strict=True)
    for (name, values), (colour, marker) in zip(errors.items(), styles, strict=True):
        axes.plot(sizes, values, color=colour, marker=marker, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, sizes)
    axes.set(xlabel="weights in a block", ylabel="relative RMSE", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


@styled
def bytes_of_a_block(rows):
    """Bytes that 64 weights take. `rows` maps a name to the bytes of codes and of scales."""
    figure, axes = plt.subplots(figsize=(8, 2.4))
    names = list(rows)
    codes, scales = zip(*rows.values(), strict=True)
    axes.barh(names, codes, color=BLUE, label="weights or codes")
    bars = axes.barh(names, scales, left=codes, color=ORANGE, label="scales")
    axes.bar_label(bars, [f"{sum(row):.4g}" for row in rows.values()], padding=3)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="bytes for 64 weights", xlim=(0, 280))
    axes.legend(frameon=False, loc="lower right")
    return figure
