"""The pictures of appendix a1. Each function returns a Figure."""

import math

import matplotlib.pyplot as plt
import torch

from qlora_kit.figures.nb03 import smooth
from qlora_kit.figures.style import BLUE, GREEN, GREY, ORANGE, canvas, frame, styled


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


@styled
def loss_gaps(curves):
    """Left the losses, right how far each lies above the first curve at the same step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3))
    reference = torch.tensor(next(iter(curves.values())))
    styles = zip(curves.items(), (BLUE, ORANGE, GREEN, GREY), ("-", "-", "--", ":"), strict=True)
    for (name, values), colour, line in styles:
        for axes, shown in ((left, values), (right, torch.tensor(values) - reference)):
            axes.plot(*smooth(shown), color=colour, linestyle=line, linewidth=2, label=name)
    left.set(xlabel="step", ylabel="loss (nats a character)")
    right.set(xlabel="step", ylabel="loss above float32 (nats)")
    figure.legend(
        *left.get_legend_handles_labels(), ncols=2, loc="outside lower center", frameon=False
    )
    return figure


@styled
def residual_stream(largest, limit):
    """The largest magnitude between a model's layers, a bar for each layer, against a limit."""
    figure, axes = plt.subplots(figsize=(8, 3.4))
    for label, colour, over in (("fits", BLUE, False), ("too large", ORANGE, True)):
        rows = [(i, value) for i, value in enumerate(largest) if (value > limit) == over]
        axes.bar([i for i, _ in rows], [value for _, value in rows], 0.7, color=colour, label=label)
    axes.axhline(limit, color="black", linestyle="--", linewidth=1)
    axes.annotate(
        f"float16 ends at {limit:,.0f}", (0, limit), (-12, 4), textcoords="offset points", size=10
    )
    axes.set(xlabel="after layer", ylabel="largest magnitude", xticks=range(len(largest)))
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.grid(axis="x", visible=False)
    return figure


@styled
def gradients(shares, exponents, smallest, largest):
    """How large the numbers of a backward pass are, with and without a loss scale.

    `shares` by name are the shares of all numbers in bins, `exponents` the powers of two at which
    the bins begin. Left of `smallest` float16 has only zero, right of `largest` infinity.
    """
    figure, axes = plt.subplots(figsize=(8, 3.4))
    for (name, proportions), colour, style in zip(
        shares.items(), (ORANGE, BLUE), ("--", "-"), strict=True
    ):
        axes.step(
            exponents, [100 * s for s in proportions], style, color=colour, where="post", label=name
        )
    low, high = exponents[0], exponents[-1] + 1
    zero, infinity, top = math.log2(smallest), math.log2(largest), axes.get_ylim()[1]
    axes.axvspan(low, zero, color=GREY, alpha=0.3, linewidth=0)
    axes.axvspan(infinity, high, color=GREY, alpha=0.3, linewidth=0)
    axes.text(zero - 0.5, top, "zero", ha="right", va="top")
    axes.text(infinity + 0.2, top, "infinity", va="top")
    axes.set(xlim=(low, high))
    axes.xaxis.set_major_formatter(lambda x, _: f"$2^{{{x:.0f}}}$")
    axes.set(xlabel="size of a gradient's number", ylabel="per cent of the numbers")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure
