"""The pictures of notebook 05. Each function returns a Figure."""

import math

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
    """Bytes, error and seconds of one model, loaded with one option after another.

    `rows` by name are dicts: "bytes" by term (see `meter.static_bytes`), "error" and "seconds".
    """
    figure, (size, error, time) = plt.subplots(
        1, 3, sharey=True, figsize=(10, 0.38 * len(rows) + 1.2), width_ratios=(1.5, 1, 1)
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
        (error, "error", "{:.3f}", "error of the weights"),
        (time, "seconds", "{:.1f}", "seconds, here"),
    ):
        bars = axes.barh(list(rows), [row[key] for row in rows.values()], 0.6, color=GREEN)
        axes.bar_label(bars, fmt=style, padding=3, fontsize=9)
        axes.set(xlabel=label)
        axes.margins(x=0.25)
    for axes in (size, error, time):
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
