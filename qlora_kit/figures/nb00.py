"""The pictures of notebook 00. Each function returns a Figure."""

import textwrap

import matplotlib.pyplot as plt
import torch
from matplotlib import cbook
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

from qlora_kit.figures.style import BLUE, GREY, ORANGE, styled

QUANTISED, AS_IT_IS, PLAIN = "#CCE3F0", "#E4E4E4", "white"


def portrait():
    """A photograph as a matrix [600, 512] of numbers from -1 (black) to 1 (white).

    It shows Grace Hopper, was taken by the US Navy, is in the public domain, and comes with
    matplotlib.
    """
    pixels = torch.tensor(plt.imread(cbook.get_sample_data("grace_hopper.jpg")))
    return pixels.float().mean(dim=-1) / 127.5 - 1


@styled
def photos(pictures):
    """Matrices as photographs, side by side; `pictures` maps a title to a matrix."""
    greys = plt.get_cmap("gray", 40)  # more of them would make the stored page too large
    figure, row = plt.subplots(1, len(pictures), figsize=(6.2, 2.25))
    for axes, (title, matrix) in zip(row, pictures.items(), strict=True):
        axes.imshow(matrix, cmap=greys, vmin=-1, vmax=1)
        axes.set_title(title, fontsize=8)
        axes.axis("off")
    return figure


@styled
def path(stages):
    """The notebooks as stations of a road, with what each leads to; `stages` are course.STAGES."""
    figure, axes = plt.subplots(figsize=(9, 0.6 * len(stages) + 0.3))
    road = sum(stage.number.isdigit() for stage in stages)  # an appendix lies beside it
    axes.plot([0, 0], [0, road - 1], color=GREY, linewidth=6, solid_capstyle="round")
    for place, stage in enumerate(stages):
        axes.plot(0, place, "o", color="white", markeredgecolor=BLUE, markersize=25)
        axes.text(0, place, stage.number, ha="center", va="center_baseline", weight="bold")
        axes.text(0.5, place - 0.05, stage.title, va="bottom", weight="bold")
        outcome = textwrap.fill(stage.outcome, 110)
        axes.text(0.5, place + 0.02, outcome, va="top", fontsize=9, linespacing=1.1)
        takes = f"{stage.minutes:g} min, {stage.gigabytes:g} GB"
        axes.text(10, place - 0.05, takes, va="bottom", ha="right", fontsize=10)
    axes.set(xlim=(-0.5, 10), ylim=(len(stages) - 0.35, -0.55))
    axes.axis("off")
    return figure


@styled
def transformer(architecture):
    """A language model, and one of its layers opened: where the seven matrices sit.

    The sizes are those of a memory.Architecture. Blue matrices are what QLoRA keeps in 4 bits.
    """
    figure, axes = plt.subplots(figsize=(9, 5.2))
    axes.set(xlim=(0, 18), ylim=(-1.3, 9.4))
    axes.axis("off")
    whole_model(axes, architecture)
    one_layer(axes, architecture)
    for x, colour, text, edge in (
        (0.2, QUANTISED, "a matrix (linear layer): 4 bits, never changed", BLUE),
        (8.1, ORANGE, "its adapter", ORANGE),
        (10.9, AS_IT_IS, "weights never quantised", GREY),
        (15.6, PLAIN, "no weights", "black"),
    ):
        axes.add_patch(Rectangle((x, -1.2), 0.35, 0.35, facecolor=colour, edgecolor=edge))
        axes.text(x + 0.5, -1.03, text, va="center", fontsize=9)
    return figure


def whole_model(axes, architecture):
    height = 8.3
    axes.text(0.1, height, "tokens", va="center", fontsize=10)
    box(axes, 2.9, height, 2.0, 1.0, AS_IT_IS, "embedding")
    for x, text in ((5.2, "layer 0"), (7.3, "layer 1")):
        box(axes, x, height, 1.7, 1.0, PLAIN, text, BLUE)
    axes.text(8.95, height, "...", ha="center", va="center", fontsize=14)
    box(axes, 10.6, height, 1.9, 1.0, PLAIN, f"layer {architecture.layers - 1}", BLUE)
    box(axes, 12.7, height, 1.2, 1.0, AS_IT_IS, "norm")
    box(axes, 14.5, height, 1.2, 1.0, AS_IT_IS, "head")
    axes.text(16.6, height, "a score for\neach next\ntoken", ha="center", va="center", fontsize=9)
    ends = (1.35, 1.9), (3.9, 4.35), (6.05, 6.45), (8.15, 8.6), (9.3, 9.65)
    for start, end in (*ends, (11.55, 12.1), (13.3, 13.9), (15.1, 15.6)):
        arrow(axes, (start, height), (end, height))
    opened = (6.45, 7.75), (8.15, 7.75), (17.8, 6.9), (0.2, 6.9)
    axes.add_patch(Polygon(opened, facecolor=BLUE, alpha=0.08))
    axes.add_patch(Rectangle((0.2, -0.6), 17.6, 7.5, facecolor=BLUE, alpha=0.08))
    axes.text(0.4, 6.5, f"one of the {architecture.layers} layers", va="center", fontsize=10)


def one_layer(axes, architecture):
    road, lane = 0.3, 3.7
    arrow(axes, (0.4, road), (17.6, road), GREY, 3)
    words = f"the road through the model: {architecture.hidden} numbers for each token"
    axes.text(9, road - 0.45, words, ha="center", va="center", fontsize=9)
    width, inner = architecture.hidden, architecture.intermediate
    query, key = architecture.query_width, architecture.key_width
    for left, first, words, last, name in (
        (
            0.5,
            (("q_proj", query, width), ("k_proj", key, width), ("v_proj", key, width)),
            "look back:\nwhich earlier\ntokens\nmatter?",
            ("o_proj", width, query),
            "attention",
        ),
        (
            9.2,
            (("gate_proj", inner, width), ("up_proj", inner, width)),
            "gate times\nup, number\nby number",
            ("down_proj", width, inner),
            "MLP",
        ),
    ):
        axes.text(left + 5.05, 6.5, name, ha="center", va="center", weight="bold")
        box(axes, left + 0.9, lane - 1.55, 1.1, 0.8, AS_IT_IS, "norm")
        arrow(axes, (left + 0.9, road), (left + 0.9, lane - 1.95))
        for place, matrix in enumerate(first):
            height = lane - 0.1 + 1.75 * ((len(first) - 1) / 2 - place)
            linear(axes, left + 2.7, height, matrix)
            arrow(axes, (left + 0.9, lane - 1.15), (left + 1.8, height))
            arrow(axes, (left + 3.65, height), (left + 4.2, lane))
        box(axes, left + 5.05, lane, 1.7, 2.3, PLAIN, words, "black", 8)
        linear(axes, left + 7.35, lane, last)
        arrow(axes, (left + 5.9, lane), (left + 6.4, lane))
        arrow(axes, (left + 7.35, lane - 0.6), (left + 7.35, road + 0.35))
        axes.text(left + 7.35, road, "+", ha="center", va="center", fontsize=16, weight="bold")


def linear(axes, x, y, matrix):
    """One of the seven matrices, with its adapter."""
    name, outputs, inputs = matrix
    box(axes, x, y, 1.9, 1.2, QUANTISED, f"{name}\n{outputs} x {inputs}", BLUE)
    axes.add_patch(Rectangle((x + 0.75, y + 0.4), 0.3, 0.3, facecolor=ORANGE, zorder=3))


def box(axes, x, y, width, height, colour, text, edge=GREY, size=9):
    corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.12"
    patch = FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor=edge)
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", fontsize=size)


def arrow(axes, start, end, colour="black", width=1):
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": width, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)
