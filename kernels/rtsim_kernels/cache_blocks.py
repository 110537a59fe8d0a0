"""Blocks of the cache: what a sequence takes, within what its group of GPUs has.

Bytes by number of blocks come from a table, so that windows and states of recurrent layers count as
they are. A group's memory is whole bytes: what is taken and given back adds up exactly.
"""

from __future__ import annotations

from typing import Any

from ._jit import inner


@inner
def cache_bytes(pool: int, blocks: int, state: Any) -> int:
    """Bytes of a sequence with this many blocks."""
    return int(state.block_bytes[pool, blocks])


@inner
def take_blocks(g: int, slot: int, tokens: int, state: Any) -> bool:
    """Give a request the blocks of `tokens` tokens; False, and none, where they are not free."""
    group = state.groups[g]
    request = state.requests[slot]
    blocks = -(-tokens // state.rules[group.pool].block_tokens)
    if blocks <= request.blocks:
        return True
    more = cache_bytes(group.pool, blocks, state) - cache_bytes(group.pool, request.blocks, state)
    if group.used_bytes + more > group.capacity_bytes:
        return False
    group.used_bytes += more
    state.totals[0].used_bytes += more
    request.blocks = blocks
    group.most_used_bytes = max(group.most_used_bytes, group.used_bytes)
    return True


@inner
def give_blocks(g: int, slot: int, state: Any) -> None:
    """Take back all blocks of a request."""
    group = state.groups[g]
    request = state.requests[slot]
    held = cache_bytes(group.pool, request.blocks, state)
    group.used_bytes -= held
    state.totals[0].used_bytes -= held
    request.blocks = 0
