"""The style of all pictures: kit.mplstyle, and colours that are told apart with colour blindness.

The colours are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008).
"""

import contextlib
import functools
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import TICKDOWN, TICKLEFT, Line2D
from matplotlib.transforms import ScaledTranslation

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#999999"
STYLE = matplotlib.rc_params_from_file(
    Path(__file__).with_name("kit.mplstyle"), use_default_template=False
)


@contextlib.contextmanager
def style():
    """Inside, pictures are drawn in the kit's style; a learner's own keep theirs.

    `plt.style.context` would also put back whether pyplot is interactive, which Jupyter switches on
    with the first picture: it would show none after that.
    """
    before = {name: matplotlib.rcParams[name] for name in STYLE}
    matplotlib.rcParams.update(STYLE)
    try:
        yield
    finally:
        matplotlib.rcParams.update(before)


def styled(draw):
    """A function that returns a Figure, in the kit's style."""

    @functools.wraps(draw)
    def in_style(*arguments, **keywords):
        with style():
            return draw(*arguments, **keywords)

    return in_style


def canvas(width, height):
    """A Figure for a slider, in inches: laid out by hand, which halves the time of a redraw."""
    return Figure(figsize=(width, height), layout="none")


def frame(figure, place, xlim, ylim, xticks, yticks, xlabel, ylabel=""):
    """Axes for a slider's picture, at `place`: left, bottom, width and height from 0 to 1.

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
