"""Tickets, labels and replies as cards: HTML in a notebook, text elsewhere, and a stored picture.

The HTML holds only what GitHub and nbconvert let through, and reads without its styles, which
GitHub takes away. Its colours are seen on white and on black, and each has a sign and a word.
"""

import html
import textwrap
from collections import Counter
from typing import NamedTuple

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib import font_manager

from qlora_kit.figures.style import BLUE, GREY, ORANGE, styled

SIGNS = {"right": "✓", "wrong": "✗", "false": "✗", "evasive": "~", "silent": "-"}
COLOURS = dict.fromkeys(SIGNS, GREY) | {"right": BLUE, "wrong": ORANGE, "false": ORANGE}
TABLE = (
    "width:100%;max-width:820px;margin:0 0 14px 0;border-collapse:collapse;font-size:14px;"
    f"border:1px solid {GREY}"
)
CELL = (
    "padding:6px 10px;text-align:left;vertical-align:top;line-height:1.4;overflow-wrap:break-word"
)


class Reading(NamedTuple):
    """What a model makes of a ticket: how it files it, what it replies, and `chances`, which maps
    each category to its probability."""

    filed: str
    reply: str
    chances: dict


class Cards:
    """Cards that a notebook shows as HTML and a terminal as text; see `show`."""

    def __init__(self, *cards):
        self.cards = [rows(card) for card in cards]

    def _repr_html_(self):
        return "\n".join(html_card(card) for card in self.cards)

    def __repr__(self):
        return "\n\n".join(text_card(card) for card in self.cards)


def show(*cards):
    """Show cards. A card is a dict from what stands at its left to a text, or (text, verdict).

    A verdict is one of SIGNS, or a list of them, such as a reply's facts have. A text of None
    leaves its row out.

    >>> show({"customer": ticket.ticket, "tuned": (reply, "false"), "policy": sentence})
    """
    display(Cards(*cards))


def rows(card):
    """A card as a list of (name, lines of text, verdicts)."""
    pairs = {name: row if isinstance(row, tuple) else (row, ()) for name, row in card.items()}
    return [
        (name, lines(text), [verdict] if isinstance(verdict, str) else list(verdict or ()))
        for name, (text, verdict) in pairs.items()
        if text is not None
    ]


def lines(text):
    """The lines of a text without empty ones; a model may well have said nothing."""
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()] or ["(nothing)"]


def judged(verdicts):
    """Verdicts in words with their signs, each once, with its number where there are more."""
    return [
        f"{SIGNS[verdict]} {f'{count} ' if len(verdicts) > 1 else ''}{verdict}"
        for verdict, count in Counter(sorted(verdicts, key=list(SIGNS).index)).items()
    ]


def html_card(card):
    """The rows of a card as an HTML table; all that comes from tickets and models is escaped."""
    body = []
    for name, words, verdicts in card:
        seen = {COLOURS[verdict] for verdict in verdicts}
        edge = [
            f";border-left:6px solid {worst}" for worst in (ORANGE, BLUE, GREY) if worst in seen
        ]
        beside = "<br>".join([f"<b>{html.escape(name)}</b>", *judged(verdicts)])
        line = f"border-top:1px solid {GREY}" if body else "border:0"
        body.append(
            f'<tr style="background:none;{line}">'
            f'<td width="110" align="left" valign="top" style="{CELL}">'
            f'<div align="left">{beside}</div></td>'
            f'<td align="left" valign="top" style="{CELL}{"".join(edge[:1])}">'
            f'<div align="left">{"<br>".join(map(html.escape, words))}</div></td></tr>'
        )
    return f'<table style="{TABLE}">{"".join(body)}</table>'


def text_card(card, width=76):
    """The rows of a card as text, no word of it broken."""
    left = max(len(name) for name, _, _ in card) + 2
    body = []
    for name, words, verdicts in card:
        start = f"[{', '.join(judged(verdicts))}] " if verdicts else ""
        beside = name.ljust(left)
        for line in [start + words[0], *words[1:]]:
            body.append(
                textwrap.fill(
                    line,
                    width,
                    initial_indent=beside,
                    subsequent_indent=" " * left,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
            beside = " " * left
    return "\n".join(body)


def side_by_side(readings):
    """An HTML table of what models make of one ticket: `readings` are Readings by their names.

    Below stands each category with its probability as a bar.
    """
    given, wide = list(readings.values()), f"width:{80 // len(readings)}%"

    def row(name, cells, padding=6):
        look = f"{CELL};padding:{padding}px 10px"
        begin = f'<tr style="background:none;border:0"><td width="110" style="{look}">{name}</td>'
        return begin + "".join(
            f'<td align="left" valign="top" style="{look};{wide}">'
            f'<div align="left">{cell}</div></td>'
            for cell in cells
        )

    body = [row("", [f"<b>{html.escape(name)}</b>" for name in readings])]
    for what in ("filed", "reply"):
        texts = [lines(getattr(reading, what)) for reading in given]
        body.append(
            row(f"<b>{what}</b>", ["<br>".join(map(html.escape, words)) for words in texts])
        )
    for category in given[0].chances:
        bars = [bar(reading.chances[category], reading.chances) for reading in given]
        body.append(row(html.escape(category), bars, padding=2))
    return f'<table style="{TABLE}">{"</tr>".join(body)}</tr></table>'


def bar(chance, chances):
    """One probability as a bar and a number; the highest of them in bold."""
    words = f"<b>{chance:.0%}</b>" if chance == max(chances.values()) else f"{chance:.0%}"
    look = f"display:inline-block;height:10px;background:{BLUE};margin-right:6px"
    return f'<span style="{look};width:{max(1, 130 * chance):.0f}px"></span>{words}'


@styled
def picture(tickets, answers):
    """What models make of some tickets, for those who have no kernel: texts, and bars beside them.

    `answers` holds for each ticket a dict of Readings by the models' names.
    """
    blocks = [block(*pair) for pair in zip(tickets, answers, strict=True)]
    heights = [max(0.19 * len(words) + 0.3, 2.6) for words in blocks]
    figure, axes = plt.subplots(
        len(blocks),
        2,
        figsize=(8.2, sum(heights)),
        width_ratios=(1.75, 1),
        height_ratios=heights,
        squeeze=False,
    )
    for (left, right), words, readings in zip(axes, blocks, answers, strict=True):
        left.axis("off")
        for i, (line, colour, weight) in enumerate(words):
            left.annotate(
                line,
                (0, 1),
                (0, -13.5 * i),
                textcoords="offset points",
                xycoords="axes fraction",
                va="top",
                fontsize=9.5,
                color=colour,
                weight=weight,
                parse_math=False,
            ).set_in_layout(False)
        draw_chances(right, readings)
    axes[0, 1].legend(
        frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize=9, borderpad=0
    )
    return figure


def block(ticket, readings):
    """The texts of one ticket as lines of the picture: (text, colour, weight)."""
    texts = [("customer", lines(ticket), "black")]
    for (name, reading), colour in zip(readings.items(), ("#555555", BLUE), strict=True):
        label, *more = lines(reading.filed)
        texts.append((f"{name}: {label}", [*more, *lines(reading.reply)], colour))
    result = []
    for head, words, colour in texts:
        result += [(line, colour, "bold") for line in wrapped(head, 52)]
        result += [(line, "black", "normal") for text in words for line in wrapped(text)]
        result.append(("", colour, "normal"))
    return result


def wrapped(text, width=60):
    """A text in lines for a picture, with a box for each character that its font does not have."""
    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    text = "".join(sign if ord(sign) in known else "□" for sign in text)
    return textwrap.wrap(text, width, break_on_hyphens=False)


def draw_chances(axes, readings):
    """Bars of the probability of each category, one of each colour for each model."""
    for offset, (name, reading), colour in zip(
        (-0.2, 0.2), readings.items(), (GREY, BLUE), strict=True
    ):
        values = list(reading.chances.values())
        places = [place + offset for place in range(len(values))]
        bars = axes.barh(places, values, 0.36, color=colour, label=name)
        axes.bar_label(bars, [f"{value:.0%}" for value in values], padding=2, fontsize=7)
    axes.set_yticks(range(len(values)), list(reading.chances), fontsize=9)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set(xlim=(0, 1.12), xticks=[])
    axes.spines["bottom"].set_visible(False)
