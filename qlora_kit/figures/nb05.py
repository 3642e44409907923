"""The pictures of notebook 05. Each function returns a Figure."""

import matplotlib.pyplot as plt

from qlora_kit.figures.style import BLUE, GREEN, GREY, ORANGE, styled

MONOSPACED = {"family": "monospace", "size": 9}


@styled
def parts(models):
    """What a model's bytes are spent on, a bar for each: `models` are bytes by part, by name."""
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(models) + 1.3))
    _stack(axes, models, (GREY, BLUE, ORANGE, GREEN))
    for row, sizes in enumerate(models.values()):
        total = sum(sizes.values())
        axes.text(total / 1e6 + 3, row, f"{total / 1e6:.0f} MB", va="center")
    axes.set(
        xlabel="megabytes", xlim=(0, 1.12 * max(sum(s.values()) for s in models.values()) / 1e6)
    )
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    return figure


@styled
def options(rows):
    """Bytes, error, loss and seconds of one model, loaded with one option after another.

    `rows` by name are dicts: "bytes" by term (see `meter.static_bytes`), "error", "loss" and
    "seconds". The axis of the loss begins just below the smallest: a dot has no length to misread.
    """
    figure, (size, error, loss, time) = plt.subplots(
        1, 4, sharey=True, figsize=(11, 0.38 * len(rows) + 1.2), width_ratios=(1.5, 1, 1, 1)
    )
    terms = {"quantised weights": "weights", "quantisation constants": "scales and code books"}
    terms["unquantised weights"] = "not quantised"
    shown = {
        name: {label: row["bytes"][term] for term, label in terms.items()}
        for name, row in rows.items()
    }
    _stack(size, shown, (BLUE, ORANGE, GREY))
    figure.legend(
        *size.get_legend_handles_labels(), frameon=False, loc="outside upper center", ncols=3
    )
    size.set(xlabel="megabytes")
    for axes, key, style, label in (
        (error, "error", "{:.4f}", "error of the weights"),
        (time, "seconds", "{:.1f}", "seconds, here"),
    ):
        bars = axes.barh(list(rows), [row[key] for row in rows.values()], 0.6, color=GREEN)
        axes.bar_label(bars, fmt=style, padding=3, fontsize=9)
        axes.set(xlabel=label)
        axes.margins(x=0.25)
    losses = [row["loss"] for row in rows.values()]
    loss.axvline(losses[0], color="black", linestyle="--", linewidth=1)
    for place, value in enumerate(losses):
        loss.plot(value, place, "o", color=ORANGE, markersize=7)
        loss.annotate(
            f"{value:.3f}",
            (value, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    loss.set(xlabel="loss, nats a token")
    loss.margins(x=0.3)
    for axes in (size, error, loss, time):
        axes.grid(axis="y", visible=False)
    size.set_yticks(range(len(rows)), list(rows), **MONOSPACED)
    return figure


@styled
def targets(choices, base):
    """Trained parameters of each choice of target modules; `choices` by name are counts by part.

    `base` are the base's parameters. A label says the percentage of both, as PEFT's line does.
    """
    figure, axes = plt.subplots(figsize=(8, 0.45 * len(choices) + 1.3))
    _stack(axes, choices, (BLUE, ORANGE, GREY))
    counts = [sum(parts.values()) for parts in choices.values()]
    for row, count in enumerate(counts):
        axes.text(
            count / 1e6 + 0.06,
            row,
            f"{count:,} ({count / (base + count):.2%})",
            va="center",
            size=9,
        )
    axes.set(xlabel="trained parameters, in millions", xlim=(0, 1.4 * max(counts) / 1e6))
    axes.set_yticks(range(len(choices)), list(choices), **MONOSPACED)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    return figure


def _stack(axes, bars, colours):
    """Horizontal bars, one for each entry of `bars`, stacked from its parts in millions."""
    left = [0.0] * len(bars)
    for part, colour in zip(next(iter(bars.values())), colours, strict=False):
        widths = [sizes[part] / 1e6 for sizes in bars.values()]
        axes.barh(range(len(bars)), widths, 0.6, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(bars)), list(bars))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
