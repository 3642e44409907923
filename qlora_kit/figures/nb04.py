"""The pictures of notebook 04. Each function returns a Figure.

Bytes are drawn as stacks of the terms of `memory`, always in its order and in the same colours.
"""

import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from qlora_kit import memory
from qlora_kit.figures.style import BLUE, GREEN, GREY, ORANGE, styled
from qlora_kit.memory import GIB, MIB

GAPS = "gaps and CUDA context"
SCRATCH = "Adam's scratch space"
COLOURS = {
    "quantised weights": BLUE,
    "quantisation constants": "#56B4E9",
    "unquantised weights": "#00314A",
    "adapter": "#F0E442",
    "optimizer": GREEN,
    "workspace": "#444444",
    "gradients": ORANGE,
    SCRATCH: "#F5D08A",
    "checkpoints": "#CC79A7",
    "layer activations": "#D55E00",
    "logits and loss": GREY,
    "dequantised weights": "#88CCEE",
    GAPS: "#E5E5E5",
}


@styled
def bars(stacks, sizes=()):
    """One bar of bytes for each of `stacks`, {name: {term: bytes}}, drawn in GiB.

    `sizes` are sizes of GPUs in GiB, each a dashed line with its size above it.
    """
    totals = {name: sum(terms.values()) / GIB for name, terms in stacks.items()}
    shown = [term for term in COLOURS if any(terms.get(term) for terms in stacks.values())]
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(stacks) + 1.9), layout="none")
    for row, (name, terms) in enumerate(stacks.items()):
        left = 0
        for term in shown:
            width = terms.get(term, 0) / GIB
            axes.barh(row, width, left=left, color=COLOURS[term], height=0.7)
            left += width
        axes.annotate(
            f"{totals[name]:.1f}",
            (left, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},  # over the dashed lines
        )
    for size in sizes:
        axes.axvline(size, color="black", linestyle="--", linewidth=1)
        place = axes.get_xaxis_transform()
        axes.text(size, 1.01, f"{size:.3g}", transform=place, ha="center", va="bottom", fontsize=9)
    axes.set_yticks(range(len(stacks)), list(stacks))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="GiB", xlim=(0, 1.15 * max([*totals.values(), *sizes])))
    handles = [Patch(color=COLOURS[term], label=term) for term in shown]
    if sizes:
        handles.append(Line2D([], [], color="black", linestyle="--", label="what the GPU has"))
    height = figure.get_figheight()
    widest = max(map(len, stacks))
    figure.subplots_adjust(
        left=0.03 + 0.0115 * widest,
        right=0.94,
        top=1 - (0.25 if sizes else 0.08) / height,
        bottom=1.45 / height,
    )
    figure.legend(handles=handles, loc="lower center", ncols=4, frameon=False, fontsize=9)
    return figure


@styled
def timeline(moments, phases=None, limit=None):
    """The live bytes of a training step, stacked by term, after each allocation and free.

    In GiB, or in MiB where all of it is less than one GiB.

    `moments` is a timeline of the X-ray or the meter, a list of {term: bytes}; `phases` says where
    in it each phase begins; `limit` is what the GPU has, in bytes.
    """
    figure, axes = plt.subplots(figsize=(8, 3.4))
    places, highest = fullest(moments)
    totals = [sum(moment.values()) for moment in highest]
    peak = max(totals)
    unit, name, digits = (GIB, "GiB", 2) if max(peak, limit or 0) >= GIB else (MIB, "MiB", 0)
    shown = [term for term in memory.TERMS if any(moment.get(term) for moment in highest)]
    axes.stackplot(
        places,
        [[moment.get(term, 0) / unit for moment in highest] for term in shown],
        colors=[COLOURS[term] for term in shown],
        labels=shown,
        step="post",
        linewidth=0,
    )
    axes.annotate(
        f"{peak / unit:.{digits}f} {name}",
        (places[totals.index(peak)], peak / unit),
        xytext=(2, 1),
        textcoords="offset points",
        fontsize=9,
    )
    top = 1.12 * peak / unit
    axes.set_ylim(0, top)
    for phase, start in (phases or {}).items():
        axes.axvline(start, color="black", linewidth=0.8, linestyle=":")
        side = "left" if start < 0.85 * len(moments) else "right"  # never over the right edge
        axes.text(start, top, f" {phase} ", ha=side, va="top", fontsize=9)
    if limit:
        axes.axhline(limit / unit, color="black", linestyle="--", linewidth=1)
        axes.text(
            len(moments), limit / unit, "what the GPU has ", ha="right", va="bottom", fontsize=9
        )
    axes.set(xlabel="allocations and frees, in their order", ylabel=name, xlim=(0, len(moments)))
    axes.legend(
        *(part[::-1] for part in axes.get_legend_handles_labels()),
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        frameon=False,
        fontsize=9,
    )
    return figure


def fullest(moments, places=240):
    """Where to draw a long timeline, and the fullest moment from each place to the next.

    A peak may last for a few of many thousand moments, too short to be drawn to scale.
    """
    width = -(-len(moments) // places)
    starts = range(0, len(moments), width)
    return starts, [
        max(moments[start : start + width], key=lambda moment: sum(moment.values()))
        for start in starts
    ]


@styled
def paging(moments, limit):
    """What a paged optimizer would move away, over the bytes that stay on the GPU.

    `moments` is a timeline, `limit` in bytes. Whenever the sum is over the limit, as much of the
    optimizer's states as needed goes to the computer's memory. Returns the Figure.
    """
    places, highest = fullest(moments)
    needed = [sum(moment.values()) for moment in highest]
    states = [moment["optimizer"] for moment in highest]
    away = [min(max(total - limit, 0), held) for total, held in zip(needed, states, strict=True)]
    figure, axes = plt.subplots(figsize=(8, 3))
    rest = [total - held for total, held in zip(needed, states, strict=True)]
    stays = [held - gone for held, gone in zip(states, away, strict=True)]
    axes.stackplot(
        places,
        [[value / MIB for value in values] for values in (rest, stays, away)],
        colors=[GREY, GREEN, "#F0E442"],
        labels=["all else", "optimizer, on the GPU", "optimizer, paged out"],
        step="post",
        linewidth=0,
    )
    axes.axhline(limit / MIB, color="black", linestyle="--", linewidth=1, label="what the GPU has")
    axes.set(xlabel="allocations and frees, in their order", ylabel="MiB", xlim=(0, len(moments)))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    return figure


@styled
def said_and_measured(errors, widest=0.05):
    """How far each method is from each measured peak: `errors` is {method: [said / measured]}.

    The axis is as wide as the errors of the methods that are never more than `widest` off; what
    another one is off is written beside an arrow.
    """
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(errors) + 1.1))
    off = {name: [100 * (value - 1) for value in values] for name, values in errors.items()}
    shown = [x for values in off.values() for x in values if abs(x) <= 100 * widest]
    limit = 1.25 * max(map(abs, shown))
    for row, (values, colour) in enumerate(
        zip(off.values(), (BLUE, ORANGE, GREEN, GREY), strict=False)
    ):
        if max(map(abs, values)) <= 100 * widest:
            axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.7, markersize=7)
            continue
        to, side = (-limit, "left") if min(values) < 0 else (limit, "right")
        axes.plot(0.97 * to, row, "<" if to < 0 else ">", color=colour, markersize=9)
        words = f"{min(values):+.0f} % to {max(values):+.0f} %".replace("-", "\N{MINUS SIGN}")
        axes.text(0.93 * to, row, words, ha=side, va="center", fontsize=10)
    axes.axvline(0, color="black", linewidth=1)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:+g} %" if x else "0")
    axes.set_yticks(range(len(errors)), list(errors))
    axes.set(xlabel="said, beside what was measured", ylim=(len(errors) - 0.5, -0.5))
    axes.set_xlim(-limit, limit)
    return figure
