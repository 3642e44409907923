"""The pictures of notebook 03. Each function returns a Figure."""

import matplotlib.pyplot as plt
import torch

from qlora_kit.figures.style import BLUE, GREEN, GREY, ORANGE, canvas, frame, styled


@styled
def layer_bytes(sides, base, adapter, rank, turn):
    """Bytes of base and adapter of an n x n layer against n; `turn` is where the lines cross."""
    figure, axes = plt.subplots(figsize=(7.2, 3))
    axes.plot(sides, base, color=BLUE, marker="o", markersize=4, label="base: codes and scales")
    axes.plot(
        sides,
        adapter,
        color=ORANGE,
        marker="s",
        markersize=4,
        label=f"adapter of rank {rank}, float32",
    )
    axes.axvline(turn, color="black", linestyle="--", linewidth=1, label=f"n = {turn}")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xticks(sides, sides)
    axes.set_yticks([2**5, 2**10, 2**15, 2**20], ["32 bytes", "1 KB", "32 KB", "1 MB"])
    axes.minorticks_off()
    axes.set(xlabel="n, for a matrix of n x n", ylabel="size")
    axes.legend(frameon=False, loc="lower right")
    return figure


@styled
def losses(curves):
    """Training losses against steps, each the mean of the last 20; `curves` go by name."""
    figure, axes = plt.subplots(figsize=(7.2, 2.6))
    styles = zip(curves.items(), (BLUE, ORANGE), ("-", "--"), strict=True)
    for (name, values), colour, line in styles:
        axes.plot(*_smooth(values), color=colour, linestyle=line, label=name)
    axes.set(xlabel="step", ylabel="loss (nats a character)", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


@styled
def loss_gaps(curves):
    """Left the losses, right how far each lies above the first curve at the same step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    reference = torch.tensor(next(iter(curves.values())))
    styles = zip(curves.items(), (BLUE, ORANGE, GREEN, GREY), ("-", "-", "--", ":"), strict=True)
    for (name, values), colour, line in styles:
        for axes, shown in ((left, values), (right, torch.tensor(values) - reference)):
            axes.plot(*_smooth(shown), color=colour, linestyle=line, linewidth=2, label=name)
    left.set(xlabel="step", ylabel="loss (nats a character)")
    right.set(xlabel="step", ylabel="loss above float32 (nats)")
    figure.legend(
        *left.get_legend_handles_labels(), ncols=2, loc="outside lower center", frameon=False
    )
    return figure


def _smooth(values, window=20):
    """Steps, and the mean of the last `window` values at each."""
    means = torch.as_tensor(values).unfold(0, window, 1).mean(dim=1)
    return range(window, window + len(means)), means


@styled
def error_by_rank(ranks, curves, trained):
    """What the best correction of each rank leaves of an error, and what trained adapters left.

    `curves` by name are proportions at `ranks`; `trained` by name are points (rank, proportion).
    """
    figure, axes = plt.subplots(figsize=(7, 3.2))
    styles = zip(curves.items(), (GREY, BLUE, ORANGE), (":", "-", "-"), strict=True)
    for (name, shares), colour, line in styles:
        axes.plot(ranks, shares, color=colour, linestyle=line, linewidth=2, label=name)
    for (name, point), colour in zip(trained.items(), (BLUE, ORANGE), strict=True):
        axes.plot(*point, "o", color=colour, markersize=9, markeredgecolor="black", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, ranks)
    axes.set(xlabel="rank of the correction", ylabel="error left", ylim=(0, 1.03))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(frameon=False, loc="lower left", fontsize=10)
    return figure


@styled
def layers_left(left):
    """Bars of the error that is left in each layer: `left` is (in weights, in outputs) by name."""
    figure, axes = plt.subplots(figsize=(7.2, 3))
    for column, colour, name in (
        (0, GREY, "in the weights"),
        (1, BLUE, "in the outputs\non unseen tickets"),
    ):
        places = [i + 0.4 * column - 0.2 for i in range(len(left))]
        bars = axes.barh(places, [pair[column] for pair in left.values()], 0.38, color=colour)
        axes.bar_label(bars, fmt="{:.0%}", padding=3, fontsize=9)
        bars.set_label(name)
    axes.set_yticks(range(len(left)), left)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="error left", xlim=(0, 1.08))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def rounding(weight, update, dtypes):
    """Where weight + update lands in each dtype: the ticks are the numbers that it can hold.

    The axis counts in updates: the weight lies at 0, the exact sum at 1. `weight` must be a number
    that each dtype can hold.
    """
    figure, (low, high) = canvas(8, 2.8), (-0.4, 2.4)
    names = {row: str(dtype).removeprefix("torch.") for row, dtype in enumerate(dtypes)}
    ticks = {0: "the weight", 1: "weight + update", 2: "+ 2 updates"}
    limits = (low, high), (len(dtypes) - 0.5, -0.5)
    axes = frame(figure, (0.12, 0.14, 0.7, 0.76), *limits, ticks, names, "")
    for row, dtype in enumerate(dtypes):
        landed = (torch.tensor(weight + update, dtype=dtype).double().item() - weight) / update
        step = spacing(weight, dtype) / update
        if step < (high - low) / 150:
            axes.fill_between([low, high], row - 0.22, row + 0.22, color=GREY, alpha=0.5, lw=0)
        else:
            ticks = torch.arange(int(low / step), int(high / step) + 1) * step
            axes.vlines(ticks, row - 0.22, row + 0.22, color="#555555", linewidth=1.2)
        colour, words = (BLUE, f"moves by {landed:.2f}") if landed else (ORANGE, "lost")
        axes.plot([0, min(landed, high)], [row, row], color=colour, linewidth=3)
        axes.plot(min(landed, high), row, "o", color=colour, markersize=10, clip_on=False)
        axes.text(high + 0.08, row, words, va="center", color="black")
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    words = "ticks: the numbers that can be stored        grey: too many to draw"
    figure.text(0.47, 0.98, words, ha="center", va="top", fontsize=10)
    return figure


def spacing(value, dtype):
    """The distance from a positive number to the next larger one of that dtype."""
    _, exponent = torch.frexp(torch.tensor(value, dtype=torch.float64))
    return torch.finfo(dtype).eps * 2.0 ** (exponent.item() - 1)
