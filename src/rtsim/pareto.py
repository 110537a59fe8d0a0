"""Who is on the frontier of two metrics, who is dominated by whom, and where orders differ.

The x metric is better the smaller (time, cost, energy), the y metric the larger (a score).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Point = tuple[float, float]


def dominates(a: Point, b: Point) -> bool:
    """`a` is no worse than `b` in both and better in one.

    >>> dominates((1.0, 0.5), (2.0, 0.5)), dominates((1.0, 0.5), (1.0, 0.5))
    (True, False)
    """
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def dominators(points: Mapping[str, Point]) -> dict[str, tuple[str, ...]]:
    """For each point the points that dominate it, largest y first; () on the frontier."""
    by_score = sorted(points, key=lambda name: (-points[name][1], points[name][0], name))
    return {
        name: tuple(other for other in by_score if dominates(points[other], points[name]))
        for name in points
    }


def kendall_tau(
    first: Sequence[float], second: Sequence[float], spread: Sequence[float] | None = None
) -> float:
    """Agreement of two orders, 1 the same to -1 reversed (tau-b: ties count half). NaN: no order.

    spread: of the values of `second`. A pair no further apart than its spreads together has no
    order to agree with, and counts as a tie in both.

    >>> kendall_tau([1.0, 2.0, 3.0], [10.0, 30.0, 20.0])
    0.3333333333333333
    >>> kendall_tau([1.0, 2.0, 3.0], [10.0, 30.0, 20.0], [5.0, 5.0, 5.0])
    1.0
    """
    agree = ties_first = ties_second = pairs = 0
    for i in range(len(first)):
        for j in range(i):
            a = (first[i] > first[j]) - (first[i] < first[j])
            b = (second[i] > second[j]) - (second[i] < second[j])
            if spread is not None and abs(second[i] - second[j]) <= spread[i] + spread[j]:
                a = b = 0
            agree += a * b
            ties_first += a == 0
            ties_second += b == 0
            pairs += 1
    scale = math.sqrt((pairs - ties_first) * (pairs - ties_second))
    return agree / scale if scale else math.nan


def swapped(first: Mapping[str, float], second: Mapping[str, float]) -> list[tuple[str, str]]:
    """Pairs (a, b) with a before b in the first order and after it in the second.

    >>> swapped({"x": 1.0, "y": 2.0}, {"x": 5.0, "y": 4.0})
    [('x', 'y')]
    """
    names = [name for name in first if name in second]
    return [
        (a, b)
        for a in sorted(names, key=first.__getitem__)
        for b in names
        if first[a] < first[b] and second[a] > second[b]
    ]
