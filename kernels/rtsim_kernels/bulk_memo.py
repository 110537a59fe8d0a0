"""Times of operators that systems of one call share, in a table that threads use without locks.

Systems with as many GPUs to a layer but other pipelines, replicas, links, prices or numbers of
layers time the same products. What an operator's time depends on is its *class* (sizes, formats and
fitted rows, numbered by `rtsim.system_rows`), the memory bandwidth, and two counts of the step:
units alone (`step.by_units`), or sequences with new tokens, and context. All of them are the key.

A place holds the key's words and the seconds, as bits; each word of the key is stored XOR the
seconds (Hyatt and Mann, A lockless transposition table implementation for parallel search, ICGA
Journal 25, 2002). Threads that write to one place at once may leave words of both, and such a place
answers to neither key. One place per hash, and a later product takes it: memory is flat, and what
is found is bit for bit what was timed. Threads that come to a product at the same moment both time
it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._jit import inner
from .step import by_units, operator_units

PLACES = 1 << 15  # 1 MB: more would not stay in the cache of a core
WORDS = 4  # class, two counts; seconds: half a cache line

TOKENS = 2.0**27  # more than the new tokens of a sequence; times 10^6 sequences a double is exact


@inner
def counts_of(
    operator: Any, n_sequences: float, new_tokens: float, context: float
) -> tuple[float, float]:
    """The two counts of a step that the time of an operator depends on."""
    if by_units(operator):
        return operator_units(operator, n_sequences, new_tokens, context), 0.0
    return n_sequences * TOKENS + new_tokens, context


@inner
def memo_place(number: float, count: float, context: float) -> int:
    """Where the time of an operator is kept: counts that follow on each other lie together.

    Rows come in the order of their counts, so that most places are in the cache. High bits are
    added to low ones for counts that are all multiples of a power of two.
    """
    low = int(count) + int(context)
    kind = int(number)
    low += (low >> 9) + (low >> 27) * 40503 + (kind + (kind >> 26) * 611) * 10007
    return low & (PLACES - 1)


@inner
def recalled_s(memo: Any, place: int, number: float, count: float, context: float) -> float:
    """Seconds kept at a place under this key; -1 where there are none."""
    bits = memo[place, 3]
    if (
        memo[place, 0] ^ bits == np.float64(number).view(np.int64)
        and memo[place, 1] ^ bits == np.float64(count).view(np.int64)
        and memo[place, 2] ^ bits == np.float64(context).view(np.int64)
    ):
        return float(np.int64(bits).view(np.float64))
    return -1.0


@inner
def keep_s(
    memo: Any, place: int, number: float, count: float, context: float,
    seconds: float,
) -> None:  # fmt: skip
    """Keep seconds at a place under this key."""
    bits = np.float64(seconds).view(np.int64)
    memo[place, 0] = np.float64(number).view(np.int64) ^ bits
    memo[place, 1] = np.float64(count).view(np.int64) ^ bits
    memo[place, 2] = np.float64(context).view(np.int64) ^ bits
    memo[place, 3] = bits
