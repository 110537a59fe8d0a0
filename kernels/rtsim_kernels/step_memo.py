"""Step times of a simulation: what repeats is computed once.

Only attention and what depends on the cache see the contexts of a step. The other operators depend
on how many sequences decode, how many prompts have how many tokens, and how many of them end: their
times are kept under exactly these numbers and, of groups that step together, the tokens that
meet at the experts, in a table with one place per hash (a later one
takes the place of an earlier). The result is that of `mixed.engine_step_s`, bit for bit.
"""

from __future__ import annotations

from typing import Any

from ._jit import inner
from .mixed import engine_step_s

PLACES = 8192  # a power of two
_SPREAD = 2654435761  # Knuth's multiplicative hash


@inner
def place_of(batch: Any) -> int:
    """Where the times of batches with these counts are kept."""
    prompts = int(batch.n_prompts * 64.0) * 31 + int(batch.chunk * 64.0) * 7
    mixed = (int(batch.n_decodes) + (prompts + int(batch.n_finished)) * _SPREAD) % 2**32
    return (mixed ^ (mixed >> 15)) & (PLACES - 1)


@inner
def remembered_step_s(batch: Any, pool: Any) -> float:
    """`mixed.engine_step_s` of a batch on the GPUs of a `serving_state.Pool`."""
    place = place_of(batch)
    keys = pool.keys
    times = pool.times
    known = (
        keys[place, 0] == batch.n_decodes
        and keys[place, 1] == batch.n_prompts
        and keys[place, 2] == batch.chunk
        and keys[place, 3] == batch.n_finished
        and keys[place, 4] == batch.pooled
    )
    if known:
        for i in range(len(times)):
            times[i, 0] = pool.kept[place, i]
    seconds = engine_step_s(
        batch, known, pool.operators, pool.segments, pool.machine, pool.engine, times
    )
    if not known:
        keys[place, 0] = batch.n_decodes
        keys[place, 1] = batch.n_prompts
        keys[place, 2] = batch.chunk
        keys[place, 3] = batch.n_finished
        keys[place, 4] = batch.pooled
        for i in range(len(times)):
            pool.kept[place, i] = times[i, 0]
    return float(seconds)
