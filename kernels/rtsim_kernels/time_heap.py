"""Times to come: a binary heap in the first `n` places of an array, the earliest on top.

Push and pop take O(log n) (Williams, Algorithm 232: Heapsort, CACM 7, 1964).
"""

from __future__ import annotations

from typing import Any

from ._jit import inner


@inner
def add_time(time_s: float, times: Any, n: int) -> None:
    """Put a time into a heap of `n`; it has n + 1 of them then."""
    place = n
    while place > 0:
        above = (place - 1) // 2
        if times[above] <= time_s:
            break
        times[place] = times[above]
        place = above
    times[place] = time_s


@inner
def drop_first(times: Any, n: int) -> None:
    """Take the earliest of `n` times away; n - 1 are left."""
    last = times[n - 1]
    place = 0
    while True:
        below = 2 * place + 1
        if below >= n - 1:
            break
        if below + 1 < n - 1 and times[below + 1] < times[below]:
            below += 1
        if last <= times[below]:
            break
        times[place] = times[below]
        place = below
    times[place] = last
