"""Whether one system is better than another on the same rows, compared row by row."""

import math
from typing import NamedTuple

from scipy.optimize import brentq
from scipy.stats import binomtest

from qlora_kit.scoring.intervals import Estimate, Z, per_cent

NOT_SETTLED = "not settled on these rows"


class Difference(Estimate):
    """An Estimate of one proportion less another: +5 points [-3, +13]."""

    def __str__(self):
        value, low, high = map(per_cent, self)
        return f"{value:+} points [{low:+}, {high:+}]"


class Paired(NamedTuple):
    """On how many rows both systems were right, ours alone, theirs alone, neither; the difference
    of their proportions, ours less theirs; the p-value of the exact test that there is none.
    """

    both: int
    ours: int
    theirs: int
    neither: int
    difference: Difference
    p: float

    @property
    def verdict(self):
        """'better' or 'worse', from p < 0.05, or 'not settled on these rows'."""
        if self.p >= 0.05:
            return NOT_SETTLED
        return "better" if self.ours > self.theirs else "worse"

    @property
    def record(self):
        """All of it and the verdict, as a dictionary that JSON can hold."""
        return self._asdict() | {"verdict": self.verdict}

    def __str__(self):
        p = f"p = {self.p:.2g}" if self.p >= 0.001 else "p < 0.001"
        return f"{self.difference}, {p}: {self.verdict}"


def compare(ours, theirs):
    """Two lists of what two systems got right, True or False for the same rows, as a Paired.

    The rows on which they agree say nothing of which is better. The test asks whether a fair coin
    would have divided the others as unevenly (McNemar 1947, Psychometrika 12, in its exact form).
    The interval of the difference is the score interval of Tango (1998, Statistics in Medicine 17,
    page 891), as Wilson's is that of one proportion. Neither covers the choice of the seed.
    ValueError if the lists are of different lengths.
    """
    rows = list(zip(map(bool, ours), map(bool, theirs), strict=True))
    alone = rows.count((True, False)), rows.count((False, True))
    p = binomtest(alone[0], sum(alone)).pvalue if sum(alone) else 1.0
    return Paired(
        rows.count((True, True)), *alone, rows.count((False, False)), tango(*alone, len(rows)), p
    )


def tango(ours, theirs, rows):
    """The difference of two paired proportions with its score interval (Tango 1998).

    Its ends are the differences that are just not refused: the score, which falls from the one to
    the other, is Z there and -Z.
    """
    value = (ours - theirs) / rows

    def score(difference):
        # how often theirs alone is right, at its likeliest if that were the difference
        half = ((2 * rows - ours + theirs) * difference - ours - theirs) / 2
        root = math.sqrt(half**2 + 2 * rows * theirs * difference * (1 - difference))
        only_theirs = (root - half) / (2 * rows)
        variance = rows * (2 * only_theirs + difference * (1 - difference))
        surplus = ours - theirs - rows * difference
        return surplus / math.sqrt(variance) if surplus else 0.0  # 0 / 0 where all rows agree

    edge = 1 - 1e-9
    low = -1.0 if value == -1 else brentq(lambda d: score(d) - Z, -edge, value)
    high = 1.0 if value == 1 else brentq(lambda d: score(d) + Z, value, edge)
    return Difference(value, low, high)
