"""How sure a figure is: an estimate with its 95 % interval."""

import math
import random
from typing import NamedTuple

from scipy.stats import binomtest

Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations


class Estimate(NamedTuple):
    """A figure measured on some rows, and the ends of its 95 % interval.

    The interval covers the choice of the rows, not that of the seed.
    """

    value: float
    low: float
    high: float

    def __str__(self):
        value, low, high = map(three_digits, self)
        return f"{value} [{low}, {high}]"


class Proportion(Estimate):
    """An Estimate between 0 and 1, printed in per cent: 28 % [22, 35]."""

    def __str__(self):
        value, low, high = map(per_cent, self)
        return f"{value} % [{low}, {high}]"


def three_digits(number):
    """13.0 for 13, and 1234 for 1234.4."""
    return f"{number:.0f}" if number >= 99.95 else f"{number:#.3g}"


def per_cent(number):
    """A proportion in whole per cent, half of one away from zero: with 200 rows, every other
    proportion ends in a half, and Python would round it now up, now down."""
    return round(math.copysign(math.floor(abs(number) * 100 + 0.5 + 1e-9), number))


def proportion(right):
    """The proportion of True in a list, with the interval of Wilson (1927, JASA 22, page 209)."""
    test = binomtest(sum(right), len(right))
    return Proportion(test.statistic, *test.proportion_ci(method="wilson"))


def clustered(pairs):
    """The sum of the first over the sum of the second numbers: (right, total) for each row.

    What is asked of one row belongs together, so that 51 facts of 40 rows are worth less than 51
    answers. Wilson's interval is taken at the effective number of facts: that of single answers
    which would be as sure, the total over Kish's design effect (Korn & Graubard 1998, Survey
    Methodology 24, page 193, who do so with another interval). The design effect is measured from
    row to row, and is never below 1. Where no fact is right, or every one, it cannot be measured:
    then those of a row count as one.
    """
    totals = [total for _, total in pairs]
    rows, facts = len(pairs), sum(totals)
    value = sum(right for right, _ in pairs) / facts
    squares = sum((right - value * total) ** 2 for right, total in pairs)
    if squares == 0 or rows == 1:
        effective = facts**2 / sum(total**2 for total in totals)
    else:
        variance = squares / facts**2 * rows / (rows - 1)
        effective = value * (1 - value) / variance
    return Proportion(value, *wilson(value, min(effective, facts)))


def wilson(value, rows):
    """The ends of Wilson's interval for a proportion; `rows` need not be a whole number."""
    middle = (value + Z * Z / (2 * rows)) / (1 + Z * Z / rows)
    margin = Z / (1 + Z * Z / rows) * math.sqrt(value * (1 - value) / rows + (Z / (2 * rows)) ** 2)
    return middle - margin if value > 0 else 0.0, middle + margin if value < 1 else 1.0


def ratio(pairs, draws=2000):
    """The sum of the first over the sum of the second numbers, a pair for each row.

    The interval is the bootstrap's (Efron 1979, Annals of Statistics 7): whole rows are drawn
    again, since the tokens of one row belong together. The draws are seeded. It is for sums that
    are not counts: of 0 in 51 it would say that there is nothing to be found (see `clustered`).
    """

    def value(rows):
        return sum(first for first, _ in rows) / sum(second for _, second in rows)

    rng = random.Random(0)
    drawn = sorted(value(rng.choices(pairs, k=len(pairs))) for _ in range(draws))
    return Estimate(value(pairs), drawn[int(0.025 * draws)], drawn[int(0.975 * draws)])
