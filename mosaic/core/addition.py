"""Sums and means of floats that are the same in every Python version, to the last bit.

The built-in ``sum`` and the weighted ``statistics.fmean`` round differently since Python 3.12. The last digit of a
price can decide between two plans that are equally good.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from math import fsum
from operator import add, mul


def add_in_order(values: Iterable[float]) -> float:
    """Add numbers one after the other.

    Examples
    --------
    >>> add_in_order([0.1] * 10)
    0.9999999999999999
    """
    return reduce(add, values, 0.0)


def weighted_mean(values: Sequence[float], weights: Sequence[float]) -> float:
    """Divide the sum of the weighted values by that of the weights.

    Examples
    --------
    >>> weighted_mean([1.0, 3.0], [1.0, 3.0])
    2.5
    """
    return fsum(map(mul, values, weights)) / fsum(weights)
