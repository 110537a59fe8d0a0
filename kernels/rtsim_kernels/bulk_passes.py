"""Which prompt passes of a system's rows are of as many tokens: a hash table of numbers.

Batch 8 with prompt 1,024 and batch 16 with prompt 512 enter products with weights alike. Linear
probing with Fibonacci hashing; at least half of the places stay free.
"""

from __future__ import annotations

import math
from typing import Any

from ._jit import inner
from .row_figures import whole_parts

GOLDEN = 0.6180339887498949  # multiples of it spread evenly over [0, 1)


@inner
def table_size(n_rows: int) -> int:
    """Places of a hash table for this many numbers, half of them free: a power of two."""
    size = 2
    while size < 2 * n_rows:
        size *= 2
    return size


@inner
def place_of(tokens: float, passes: Any) -> int:
    """Place of a number of tokens in a hash table, or the free one (-1) where it belongs.

    passes: (places, 2): tokens, and what is kept of them.
    """
    part = tokens * GOLDEN
    place = int((part - math.floor(part)) * len(passes))
    while passes[place, 0] >= 0.0 and passes[place, 0] != tokens:
        place += 1
        if place == len(passes):
            place = 0
    return place


@inner
def number_passes(
    system: Any, plan: Any, first: int, last: int, batch_sizes: Any, input_lens: Any,
    passes: Any,
) -> int:  # fmt: skip
    """Number the prompt passes of a system's rows by their tokens; how many differ.

    Writes a hash table (`place_of`) of tokens and their numbers.
    """
    for place in range(len(passes)):
        passes[place, 0] = -1.0
    n_passes = 0
    before = -1.0
    for row in range(first, last):
        sequences = whole_parts(batch_sizes[row], system.groups)
        tokens = whole_parts(sequences, plan.micro_batches)
        tokens *= whole_parts(input_lens[row], plan.prompt_ranks)
        if tokens == before or not tokens >= 0.0:
            continue
        before = tokens
        place = place_of(tokens, passes)
        if passes[place, 0] < 0.0:
            passes[place, 0] = tokens
            passes[place, 1] = n_passes
            n_passes += 1
    return n_passes
