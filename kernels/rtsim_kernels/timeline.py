"""Figures over time and distributions, in memory that does not grow with the simulation.

**Over time.** A fixed number of buckets of equal length; when time runs past the last one, pairs
are joined and the length doubles. Areas (value x seconds) are exact for steps of a value, so that
means over all of the time are too: mean number in the system x time = sum of times in the system
(Little, Oper. Res. 9, 1961), whatever the buckets.

**Distributions.** Histograms over the logarithm of a time, bins a factor `1 + 5e-4` wide from
0.1 us to 10^7 s; a percentile is within half a bin (0.025 %) of that of the times themselves.
Number, sum and largest are exact.
"""

from __future__ import annotations

import math
from typing import Any

from ._jit import inner
from .serving_state import CACHE, N_SERIES, RUNNING, WAITING

LOWEST_S = 1e-7
BIN = 5e-4  # of the natural logarithm
N_BINS = 64_472  # up to 10^7 s
N_BUCKETS = 1024
FIRST_BUCKET_S = 0.01


@inner
def advance(start_s: float, end_s: float, series: Any, totals: Any) -> None:
    """Account for the time from one event to the next, in which nothing changes.

    Joins buckets until one holds `end_s`, and adds the areas under what waits, runs and is cached.
    """
    n = series.shape[1]
    while end_s >= n * totals[0].bucket_s:
        for row in range(N_SERIES):
            for i in range(n // 2):
                series[row, i] = series[row, 2 * i] + series[row, 2 * i + 1]
            for i in range(n // 2, n):
                series[row, i] = 0.0
        totals[0].bucket_s *= 2.0
    width_s = totals[0].bucket_s
    last = int(end_s / width_s)
    for i in range(int(start_s / width_s), last + 1):
        inside_s = min(end_s, (i + 1) * width_s) - max(start_s, i * width_s)
        series[WAITING, i] += inside_s * totals[0].waiting
        series[RUNNING, i] += inside_s * totals[0].running
        series[CACHE, i] += inside_s * totals[0].used_bytes


@inner
def count(row: int, number: float, series: Any, totals: Any) -> None:
    """Count something that happens now."""
    series[row, int(totals[0].now_s / totals[0].bucket_s)] += number


@inner
def bin_of(seconds: float) -> int:
    """Bin of a time in a histogram."""
    if seconds <= LOWEST_S:
        return 0
    return min(N_BINS - 1, int(math.log(seconds / LOWEST_S) / BIN))


@inner
def observe(distribution: int, seconds: float, place: int, counts: Any, sums: Any) -> None:
    """Add a time to a distribution; `place` is its bin."""
    counts[distribution, place] += 1
    sums[distribution, 0] += 1.0
    sums[distribution, 1] += seconds
    sums[distribution, 2] = max(sums[distribution, 2], seconds)
