"""How sure a figure is: an estimate with its 95 % interval."""

import math
import random
from typing import NamedTuple


class Estimate(NamedTuple):
    """A figure measured on some rows, and the ends of its 95 % interval.

    The interval covers the choice of the rows, not that of the seed.
    """

    value: float
    low: float
    high: float

    def __str__(self):
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def proportion(right):
    """The proportion of True in a list, with the interval of Wilson (1927, JASA 22, page 209)."""
    rows, z = len(right), 1.96
    value = sum(right) / rows
    middle = (value + z * z / (2 * rows)) / (1 + z * z / rows)
    margin = z / (1 + z * z / rows) * math.sqrt(value * (1 - value) / rows + (z / (2 * rows)) ** 2)
    return Estimate(value, max(0.0, middle - margin), min(1.0, middle + margin))


def ratio(pairs, draws=2000):
    """The sum of the first over the sum of the second numbers, a pair for each row.

    The interval is the bootstrap's (Efron 1979, Annals of Statistics 7): whole rows are drawn
    again, since the tokens or the facts of one row belong together. The draws are seeded.
    """

    def value(rows):
        return sum(first for first, _ in rows) / sum(second for _, second in rows)

    rng = random.Random(0)
    drawn = sorted(value(rng.choices(pairs, k=len(pairs))) for _ in range(draws))
    return Estimate(value(pairs), drawn[int(0.025 * draws)], drawn[int(0.975 * draws)])
