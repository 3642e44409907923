"""Pictures in one style, which importing this module sets. Each function returns a Figure.

Colours are Okabe and Ito's, which people with any common colour blindness can tell apart
(jfly.uni-koeln.de/color, 2008).
"""

import textwrap

import matplotlib.pyplot as plt

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


def before_after(before, after):
    """The three shares of `scoring.score` before and after training, as bars."""
    names = {
        "category_accuracy": "category right",
        "exact_match": "category and priority right",
        "stops_by_itself": "stops by itself",
    }
    figure, axes = plt.subplots(figsize=(8, 2.8))
    for offset, scores, colour, name in (
        (-0.2, before, GREY, "before"),
        (0.2, after, BLUE, "after"),
    ):
        places = [i + offset for i in range(len(names))]
        bars = axes.barh(places, [scores[key] for key in names], height=0.38, color=colour)
        axes.bar_label(bars, fmt="{:.0%}", padding=3)
        bars.set_label(name)
    axes.set_yticks(range(len(names)), [textwrap.fill(n, 16) for n in names.values()])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel=f"share of {after['rows']} held-out tickets", xlim=(0, 1.08))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
