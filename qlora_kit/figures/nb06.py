"""The pictures of notebook 06. Each function returns a Figure."""

import math
import textwrap

import matplotlib.pyplot as plt

from qlora_kit.data.tickets import PRIORITIES
from qlora_kit.figures.style import BLUE, GREY, ORANGE, styled


@styled
def label_counts(tickets):
    """How many tickets there are of each category, with their priorities stacked."""
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


@styled
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
            token(axes, x, -row, shown, learnt)
    axes.set(xlim=(0, width + 2), ylim=(-len(lines) + 0.4, 0.9))
    axes.axis("off")
    axes.set_title("blue: learnt        grey: read only", fontsize=10, loc="left")
    return figure


def token(axes, x, y, shown, learnt):
    """Write a token at a place, in a box: blue if it is learnt."""
    box = {"facecolor": BLUE if learnt else "#EEEEEE", "boxstyle": "square,pad=0.12"}
    colour = "white" if learnt else "black"
    axes.text(
        x, y, shown, family="monospace", fontsize=9, color=colour, bbox=box | {"edgecolor": "none"}
    )


@styled
def loss_curve(history):
    """Training loss and dev loss against optimizer steps, from a trainer's `state.log_history`."""
    figure, axes = plt.subplots(figsize=(8, 3.2))
    for key, name, colour, marker in (
        ("loss", "training rows", BLUE, "o"),
        ("eval_loss", "dev rows, never trained on", ORANGE, "s"),
    ):
        points = [(entry["step"], float(entry[key])) for entry in history if key in entry]
        axes.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=4, label=name)
    axes.set(xlabel="optimizer step", ylabel="loss (nats a token)", ylim=(0, None))
    axes.legend(frameon=False)
    return figure


@styled
def minutes_and_scores(trainings, classifier, this):
    """What more tickets and more time buy: scores against minutes of training, on a log axis.

    `trainings` are reports of `stored.trainings`, a dot each, and `this` is one of the run at hand;
    both need "rows", "train_seconds" and "after". `classifier` maps numbers of rows to pairs of
    seconds and label scores (see `scoring.label_scores`). The numbers of rows stand at the points.
    """
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    names = {"category_accuracy": "category right", "exact_match": "category and priority right"}
    for axes, (key, name) in zip(panels, names.items(), strict=True):
        points = [(s / 60, scores[key].value, rows) for rows, (s, scores) in classifier.items()]
        axes.plot(*zip(*((x, y) for x, y, _ in points), strict=True), "s-", color=GREY, ms=4)
        axes.plot([], [], "s-", color=GREY, ms=4, label="classifier")
        for report, marker, colour, size in (
            *((report, "o", BLUE, 6) for report in trainings),
            (this, "*", ORANGE, 13),
        ):
            x, y = report["train_seconds"] / 60, report["after"][key]
            axes.plot(x, y, marker, color=colour, ms=size, alpha=0.8)
            points.append((x, y, report["rows"]))
        axes.plot([], [], "o", color=BLUE, label="QLoRA, a dot a seed")
        axes.plot([], [], "*", color=ORANGE, ms=11, label="this run")
        written = {}  # dots of several seeds lie close together: their number is written once
        for x, y, rows in points:
            written.setdefault((rows, round(math.log10(x))), (x, y))
        for (rows, _), place in written.items():
            axes.annotate(
                f"{rows:,}", place, (9, -4), textcoords="offset points", size=8, color=GREY
            )
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set(title=name, xlabel="minutes of training", ylim=(0, 1))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:.0%}")
    panels[0].legend(frameon=False, loc="lower right")
    return figure


@styled
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
    axes.set(xlabel="proportion of held-out tickets, with 95 % intervals", xlim=(-0.02, 1.02))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure


@styled
def differences(against):
    """How far QLoRA is ahead of each rival in per cent of the tickets, with 95 % intervals.

    `against` maps a rival's name to the result of `scoring.compare`. What is settled is in colour.
    """
    figure, axes = plt.subplots(figsize=(8, 0.4 * len(against) + 1.1))
    for row, paired in enumerate(against.values()):
        value, low, high = paired.difference
        settled = paired.verdict in ("better", "worse")
        axes.errorbar(
            [value],
            [row],
            xerr=[[value - low], [high - value]],
            fmt="o",
            color=BLUE if settled else GREY,
            capsize=3,
        )
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(against)), [textwrap.fill(name, 26) for name in against])
    axes.set_ylim(len(against) - 0.5, -0.5)
    axes.set(xlabel="QLoRA less the rival, category right; blue: settled, grey: not")
    axes.xaxis.set_major_formatter("{x:+.0%}")
    return figure


@styled
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
