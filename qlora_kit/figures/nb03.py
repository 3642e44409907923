"""The pictures of notebook 03. Each function returns a Figure."""

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyBboxPatch

from qlora_kit.figures.style import BLUE, GREY, ORANGE, styled

# The boxes of `layer`: centre, half of the width, what stands in it, colour, whether it stays.
BOXES = {
    "codes": (4.8, 3.9, 1.3, "4-bit codes, frozen", BLUE, True),
    "weight": (4.8, 2.2, 1.3, r"$\hat{W}$", BLUE, False),
    "A": (2.9, 0.5, 0.6, "A", ORANGE, True),
    "B": (4.8, 0.5, 0.6, "B", ORANGE, True),
    "scale": (6.7, 0.5, 0.6, r"$\alpha / r$", GREY, True),
}
# The arrows of the way forward; the way back has the same, turned round.
ARROWS = (
    ((0.9, 2.2), (3.45, 2.2)),
    ((6.15, 2.2), (7.95, 2.2)),
    ((0.9, 2.05), (2.25, 0.65)),
    ((3.55, 0.5), (4.15, 0.5)),
    ((5.45, 0.5), (6.05, 0.5)),
    ((7.35, 0.6), (8.05, 2.0)),
    ((8.4, 2.2), (9.0, 2.2)),
)


@styled
def layer():
    """A QLoRA layer: the way forward, the way back, and where each of them dequantises."""
    figure, both = plt.subplots(2, 1, figsize=(8, 6.4))
    for axes, back in zip(both, (False, True), strict=True):
        axes.axis("off")
        axes.set(xlim=(0, 10), ylim=(-0.7, 4.4))
        for x, y, half, words, colour, stays in BOXES.values():
            look = {"boxstyle": "round,pad=0.02", "edgecolor": colour, "linewidth": 2}
            look |= {"facecolor": "white", "linestyle": "-" if stays else "--"}
            axes.add_patch(FancyBboxPatch((x - half, y - 0.4), 2 * half, 0.8, **look))
            axes.text(x, y, words, ha="center", va="center", fontsize=12)
        _arrow(axes, (4.8, 3.45), (4.8, 2.68), BLUE)
        again = "dequantised a second time,\n" if back else "dequantised,\n"
        axes.text(4.95, 3.07, f"{again}thrown away after use", va="center", fontsize=10)
        for start, end in ARROWS:
            _arrow(axes, *((end, start) if back else (start, end)), "black")
        axes.text(8.18, 2.2, "+", ha="center", va="center", fontsize=16)
        ends = ("gradient\nof x", "gradient\nof y") if back else ("x", "y")
        for x, words in zip((0.4, 9.5), ends, strict=True):
            axes.text(x, 2.2, words, ha="center", va="center", fontsize=12)
        if back:
            for name in "AB":
                words = f"gradient of {name}"
                axes.text(BOXES[name][0], -0.2, words, ha="center", va="top", fontsize=10)
        axes.set_title("Backward" if back else "Forward", loc="left", fontsize=12)
    return figure


def _arrow(axes, start, end, colour):
    look = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=look)


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
        axes.plot(*smooth(values), color=colour, linestyle=line, label=name)
    axes.set(xlabel="step", ylabel="loss (nats a character)", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


def smooth(values, window=20):
    """Steps, and the mean of the last `window` values at each."""
    means = torch.as_tensor(values).unfold(0, window, 1).mean(dim=1)
    return range(window, window + len(means)), means


@styled
def error_by_rank(ranks, curves):
    """What the best correction of each rank leaves of an error: `curves` by name, at `ranks`."""
    figure, axes = plt.subplots(figsize=(7, 3.2))
    styles = zip(curves.items(), (GREY, BLUE, ORANGE), (":", "-", "-"), strict=True)
    for (name, shares), colour, line in styles:
        axes.plot(ranks, shares, color=colour, linestyle=line, linewidth=2, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, ranks)
    axes.set(xlabel="rank of the correction", ylabel="error left", ylim=(0, 1.03))
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(frameon=False, loc="lower left", fontsize=10)
    return figure


@styled
def layers_left(left):
    """Bars of the error that is left in each layer: `left` is (in weights, in outputs) by name."""
    figure, axes = plt.subplots(figsize=(7.2, 3.8))
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
