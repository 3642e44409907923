"""The pictures of notebook 02, in the style of `figures`. Each function returns a Figure.

Those that a slider moves have fixed places: to compute a layout takes as long as to draw.
"""

import matplotlib.pyplot as plt
import torch

from qlora_kit.figures import BLUE, GREEN, GREY, ORANGE


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
    axes.set(xlabel="value (in standard deviations)", ylabel="share of values below")
    axes.set(xlim=(-2.6, 2.6), ylim=(0, 1))
    axes.grid(visible=False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def number_line(value, levels):
    """A value between -1 and 1, the level that it is rounded to, and all that shares this level."""
    code = torch.bucketize(value, _midpoints(levels)).item()
    edges = [-1, *_midpoints(levels).tolist(), 1]
    level = levels[code].item()
    places = {"left": 0.02, "right": 0.98, "bottom": 0.24, "top": 0.88}
    figure, axes = plt.subplots(figsize=(8, 2.2), layout="none", gridspec_kw=places)
    axes.axvspan(edges[code], edges[code + 1], color=ORANGE, alpha=0.25, linewidth=0)
    axes.vlines(levels, 0, 0.5, color=BLUE)
    axes.vlines(level, 0, 0.5, color=BLUE, linewidth=4)
    for number, place in enumerate(levels.tolist()):
        chosen = {"weight": "bold", "color": "black"} if number == code else {"color": "#555555"}
        axes.text(place, 0.55, number, ha="center", fontsize=9, **chosen)
    axes.plot([value, level], [0.25, 0.25], color=ORANGE, linewidth=3)
    axes.plot(value, 0.25, "o", color="black", markersize=8)
    axes.set_title("blue: levels and their codes        orange: what gets this code", fontsize=10)
    axes.set(xlabel="scaled weight", xlim=(-1.04, 1.04), ylim=(0, 0.75), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False)
    return figure


def over_levels(scaled, levels):
    """Left the scaled weights over the levels, right how often each code is used."""
    places = {"left": 0.08, "right": 0.99, "bottom": 0.18, "top": 0.97, "wspace": 0.25}
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3), layout="none", width_ratios=(3, 2), gridspec_kw=places
    )
    counts, edges = torch.histogram(scaled.flatten(), bins=81, range=(-1, 1))
    left.stairs(counts / scaled.numel(), edges, fill=True, color=BLUE, alpha=0.5)
    left.vlines(levels, 0, 1, color=ORANGE, linewidth=1.2)
    left.set(xlabel="scaled weight (orange: the levels)", xlim=(-1.02, 1.02), ylim=(0, 0.055))
    left.set(ylabel="share of the weights", xticks=[-1, 0, 1], yticks=[0, 0.02, 0.04])
    left.grid(visible=False)
    _use_of_codes(right, scaled, levels)
    right.set(xlabel="code", ylabel="share of the weights", xticks=[0, 5, 10, 15])
    return figure


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
    share = torch.bincount(codes, minlength=len(levels)) / scaled.numel()
    axes.bar(range(len(levels)), share, color=BLUE)
    axes.axhline(1 / len(levels), color="black", linestyle="--", linewidth=1)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.grid(axis="x", visible=False)


def _midpoints(levels):
    return (levels[:-1] + levels[1:]) / 2


def outlier(weight, restored, place, block_size):
    """A row of weights and what comes back of them, with the outlier's block in colour.

    `place` is the outlier's index; it is so large that it lies above the picture.
    """
    places = {"left": 0.08, "right": 0.86, "bottom": 0.17, "top": 0.97}
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="none", gridspec_kw=places)
    start = place // block_size * block_size
    axes.axvspan(start, start + block_size, color=ORANGE, alpha=0.2, linewidth=0)
    axes.plot(weight, ".", color=GREY, markersize=4, label="before")
    axes.plot(restored, ".", color=BLUE, markersize=4, label="after")
    axes.annotate(
        "outlier", (place, 4.3), (place, 3.4), ha="center", arrowprops={"arrowstyle": "->"}
    )
    axes.set(xlabel="place in the row (orange: the outlier's block)", ylabel="weight (in std)")
    axes.set(xlim=(0, len(weight)), ylim=(-4.3, 4.3))
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


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
