"""The pictures of notebook 06's exercises. Each function returns a Figure."""

import matplotlib.pyplot as plt

from qlora_kit.figures.nb06 import token
from qlora_kit.figures.style import BLUE, ORANGE, styled


@styled
def curves(runs, every=10):
    """Training and dev losses of several runs, side by side and on one scale.

    `runs` maps a letter to two lists: the losses after each `every` steps.
    """
    figure, row = plt.subplots(1, len(runs), figsize=(9.5, 2.9), sharex=True, sharey=True)
    for axes, (letter, (training, dev)) in zip(row, runs.items(), strict=True):
        steps = [every * (place + 1) for place in range(len(training))]
        axes.plot(steps, training, color=BLUE, label="training loss")
        axes.plot(steps, dev, color=ORANGE, linestyle="--", label="dev loss")
        axes.set_title(letter)
        axes.set(xlabel="step")
    row[0].set(ylabel="loss (nats)", ylim=(0, None))  # for all, once all are drawn
    lines, names = row[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


@styled
def masks(rows, ignored=-100):
    """Packed examples in pieces, those that are learnt in colour, one block for each letter.

    `rows` maps a letter to the pieces and their labels; `ignored` marks what is not learnt.
    """
    width = max(sum(len(piece.strip()) + 1.2 for piece in pieces) for pieces, _ in rows.values())
    figure, axes = plt.subplots(figsize=(0.083 * (width + 3), 0.42 * len(rows) + 0.4))
    for row, (letter, (pieces, labels)) in enumerate(rows.items()):
        axes.text(0, -row, letter, fontsize=12, fontweight="bold")
        x = 3
        for piece, label in zip(pieces, labels, strict=True):
            learnt, shown = label != ignored, piece.strip()
            token(axes, x, -row, shown, learnt)
            x += len(shown) + 1.2
    axes.set(xlim=(0, width + 3), ylim=(0.6 - len(rows), 0.7))
    axes.axis("off")
    axes.set_title("blue: learnt        grey: read only", fontsize=10, loc="left")
    return figure
