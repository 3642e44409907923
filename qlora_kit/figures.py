"""Pictures in one style, which importing this module sets. Each is a function, returning a Figure.

Colours are Okabe and Ito's, which people with any common colour blindness can tell apart
(jfly.uni-koeln.de/color, 2008).
"""

import textwrap

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import TICKDOWN, TICKLEFT, Line2D
from matplotlib.transforms import ScaledTranslation

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
plt.rcParams.update(
    {
        "figure.dpi": 100,
        "savefig.dpi": 100,
        "figure.constrained_layout.use": True,
        "font.size": 11,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.alpha": 0.3,
    }
)


def canvas(width, height):
    """A Figure for a slider, in inches: laid out by hand, which halves the time of a redraw."""
    return Figure(figsize=(width, height), layout="none")


def frame(figure, place, xlim, ylim, xticks, yticks, xlabel, ylabel=""):
    """Axes for a slider's picture, at `place`: left, bottom, width and height as shares.

    Ticks map a number to what stands there. Marks and words are lines and texts of the figure,
    because one of matplotlib's own ticks takes three times as long.
    """
    axes = figure.add_axes(place, xlim=xlim, ylim=ylim)
    axes.axis("off")

    def line(x, y, transform, marker=None):
        look = {"color": "black", "linewidth": 0.8, "linestyle": "-" if marker is None else "none"}
        figure.add_artist(Line2D(x, y, transform=transform, marker=marker, markersize=4, **look))

    def words(x, y, text, transform, right, up, **align):
        moved = transform + ScaledTranslation(right / 72, up / 72, figure.dpi_scale_trans)
        figure.text(x, y, text, transform=moved, **align)

    whole, below, beside = axes.transAxes, axes.get_xaxis_transform(), axes.get_yaxis_transform()
    line([0, 1], [0, 0], whole)
    line(list(xticks), [0] * len(xticks), below, TICKDOWN)
    for x, text in xticks.items():
        words(x, 0, text, below, 0, -5, ha="center", va="top")
    words(0.5, 0, xlabel, whole, 0, -19, ha="center", va="top")
    if yticks:
        line([0, 0], [0, 1], whole)
        line([0] * len(yticks), list(yticks), beside, TICKLEFT)
        words(0, 1, ylabel, whole, 0, 6, ha="left", va="bottom")
    for y, text in yticks.items():
        words(0, y, text, beside, -6, 0, ha="right", va="center")
    return axes


def label_counts(tickets):
    """How many tickets there are of each category, with their priorities stacked."""
    from qlora_kit.tickets import PRIORITIES

    figure, axes = plt.subplots(figsize=(8, 3.2))
    categories = list(dict.fromkeys(ticket.category for ticket in tickets))
    left = [0] * len(categories)
    for priority, colour in zip(PRIORITIES, (ORANGE, BLUE, GREY), strict=True):
        counts = [
            sum(t.category == category and t.priority == priority for t in tickets)
            for category in categories
        ]
        axes.barh(categories, counts, left=left, color=colour, label=priority)
        left = [a + b for a, b in zip(left, counts, strict=True)]
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="tickets")
    axes.legend(title="priority", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def label_mask(pieces, labels, ignored=-100, width=100):
    """The tokens of one example, those that are learnt in colour.

    `pieces` are the decoded tokens, `labels` the trainer's labels; `ignored` is its mark for a
    token that does not count in the loss.
    """
    lines, column = [[]], 0
    for piece, label in zip(pieces, labels, strict=True):
        shown = piece.replace("\n", "↵")
        if column + len(shown) > width:
            lines.append([])
            column = 0
        lines[-1].append((column, shown, label != ignored))
        column += len(shown) + 1
        if piece.endswith("\n"):
            lines.append([])
            column = 0
    lines = [line for line in lines if line]
    figure, axes = plt.subplots(figsize=(0.083 * width, 0.3 * len(lines) + 0.5))
    for row, line in enumerate(lines):
        for x, shown, learnt in line:
            axes.text(
                x,
                -row,
                shown,
                family="monospace",
                fontsize=9,
                color="white" if learnt else "black",
                bbox={
                    "facecolor": BLUE if learnt else "#EEEEEE",
                    "edgecolor": "none",
                    "boxstyle": "square,pad=0.12",
                },
            )
    axes.set(xlim=(0, width + 2), ylim=(-len(lines) + 0.4, 0.9))
    axes.axis("off")
    axes.set_title("blue: learnt        grey: read only", fontsize=10, loc="left")
    return figure


def loss_curve(history):
    """Training loss against optimizer steps, from a trainer's `state.log_history`."""
    points = [(entry["step"], float(entry["loss"])) for entry in history if "loss" in entry]
    figure, axes = plt.subplots(figsize=(8, 3.2))
    axes.plot(*zip(*points, strict=True), color=BLUE, marker="o", markersize=3)
    axes.set(xlabel="optimizer step", ylabel="training loss (nats a token)", ylim=(0, None))
    return figure


def compare(table):
    """The label scores of several contenders as dots with their 95 % intervals.

    `table` maps a name to the Estimates of `scoring.score` or `scoring.label_scores`.
    """
    names = {"category_accuracy": "category right", "exact_match": "category and priority right"}
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(table) + 1.3))
    for offset, key, colour, marker in (
        (-0.12, "category_accuracy", BLUE, "o"),
        (0.12, "exact_match", ORANGE, "s"),
    ):
        values = [scores[key] for scores in table.values()]
        axes.errorbar(
            [estimate.value for estimate in values],
            [row + offset for row in range(len(table))],
            xerr=[
                [max(0, e.value - e.low) for e in values],
                [max(0, e.high - e.value) for e in values],
            ],
            fmt=marker,
            color=colour,
            label=names[key],
            capsize=3,
        )
    axes.set_yticks(range(len(table)), [textwrap.fill(name, 26) for name in table])
    axes.invert_yaxis()
    axes.set(xlabel="share of held-out tickets, with 95 % intervals", xlim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


def confusion(tickets, answers, categories):
    """Which category was given to the tickets of each: a table of counts, the right ones framed.

    `answers` are the categories that were given; what is none of `categories` is counted as other.
    """
    columns = [*categories, "other"]
    counts = [[0] * len(columns) for _ in categories]
    for ticket, given in zip(tickets, answers, strict=True):
        counts[categories.index(ticket.category)][
            columns.index(given if given in categories else "other")
        ] += 1
    figure, axes = plt.subplots(figsize=(7.2, 4.6))
    axes.imshow(counts, cmap="Blues", vmin=0, vmax=max(map(max, counts)))
    for y, row in enumerate(counts):
        axes.add_patch(plt.Rectangle((y - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=ORANGE, lw=2))
        for x, count in enumerate(row):
            dark = count > max(map(max, counts)) / 2
            axes.text(x, y, count or "", ha="center", va="center", color="w" if dark else "k")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axes.set_yticks(range(len(categories)), categories)
    axes.set(xlabel="the model says", ylabel="the reference says")
    axes.grid(visible=False)
    return figure
