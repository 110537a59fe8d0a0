"""Requests that wait: a skew heap over the slots of the requests, by priority and arrival.

The links are fields of the requests, so that any number of queues needs no memory of its own.
Push and pop take O(log n) on average over any sequence of them (Sleator and Tarjan,
Self-adjusting heaps, SIAM J. Comput. 15, 1986).
"""

from __future__ import annotations

from typing import Any

from ._jit import inner
from .serving_state import NONE


@inner
def goes_before(a: int, b: int, requests: Any) -> bool:
    """Whether slot a is served before slot b: lower priority number, then earlier arrival."""
    first = requests[a]
    second = requests[b]
    if first.priority != second.priority:
        return bool(first.priority < second.priority)
    return bool(first.index < second.index)


@inner
def merged(a: int, b: int, requests: Any) -> int:
    """First slot of the queue that holds those of two queues (NONE: empty)."""
    if a == NONE:
        return b
    if b == NONE:
        return a
    if goes_before(b, a, requests):
        a, b = b, a
    top = a
    while True:
        rest = requests[a].right
        requests[a].right = requests[a].left
        if rest == NONE:
            requests[a].left = b
            return top
        if goes_before(b, rest, requests):
            rest, b = b, rest
        requests[a].left = rest
        a = rest


@inner
def pushed(queue: int, slot: int, requests: Any) -> int:
    """First slot of a queue after `slot` has joined it."""
    requests[slot].left = NONE
    requests[slot].right = NONE
    return int(merged(queue, slot, requests))


@inner
def popped(queue: int, requests: Any) -> int:
    """First slot of a queue after its first has left."""
    return int(merged(requests[queue].left, requests[queue].right, requests))
