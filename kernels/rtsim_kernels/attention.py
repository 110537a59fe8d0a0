"""Fused attention: flash-style prefill and split-KV decode of one layer on one GPU.

One formula for every GPU and stack; what the stacks' kernels do differently (tile shapes, head
packing, helper kernels) is in the coefficients. All times are GPU time of the whole operator:
the kernels that write the new keys and values into the cache, and quantise where the format asks
for it, are in it; the host is not.

**Prefill.** The query rows are cut into tiles of `TILE_ROWS`. A tile meets the keys visible to
its last row, plus a fill of some keys (pipeline, masked blocks), plus a fixed cost. A key costs a
row two products on the tensor cores and one exponential on the special-function units.

    pair     = 2 (d_qk + d_v) / (peak/SMs * tensor_frac) + softmax_clocks / clock
    tile     = tile_clocks / clock + TILE_ROWS * (keys + fill_keys) * pair
    work     = makespan of the tiles over the SMs, longest first, plus a part of the last tile
    hbm      = (query + output + keys + values) / (hbm_frac * bandwidth)
    helpers  = passes over new queries and keys by other kernels / (hbm_frac * bandwidth)
    t        = launch + helpers + p-norm(work, hbm) + power slow-down

**Decode.** One new token per sequence. A thread block (CTA) takes one sequence, one KV head and
one of `splits` parts of its context:

    cta      = cta_clocks / clock + keys/split * key bytes / SM bandwidth
    t        = launch + p-norm(makespan of the CTAs, cold bytes / HBM, padded tensor work)
               + combine when split; smallest over splits

Sources: FlashAttention 2 and 3 (Dao 2023; Shah et al. 2024), FlashDecoding (Dao et al. 2023).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._jit import jit
from .tables import BOUND_COMPUTE, BOUND_LATENCY, BOUND_MEMORY, Coefficient, coefficient_dtype

TILE_ROWS = 128.0  # query rows of a prefill tile (64 to 256 in the kernels that stacks ship)
BLOCK_KEYS = 128.0  # keys that a decode CTA handles at least
HEAD_PAD = 32.0  # head sizes are padded to a multiple of this
NORM = 4.0  # exponent that blends overlapping resources: softer than a maximum
L2_BYTES_PER_CLOCK_PER_SM = 64.0  # what an SM can take from L2, all NVIDIA GPUs since Volta

ATTENTION_PREFILL_COEFFICIENTS = (
    Coefficient("launch_s", 8e-6, 0.5, 1e-6, 60e-6, "s", "floor: launches of all kernels"),
    Coefficient("tensor_frac", 0.75, 0.2, 0.2, 1.0, "1", "tensor-core rate reached inside a tile"),
    Coefficient(
        "softmax_clocks",
        0.06,
        0.6,
        0.002,
        0.6,
        "clocks/score/SM",
        "exponential and scaling of one score, where not hidden behind products",
    ),
    Coefficient(
        "fill_keys", 64.0, 0.7, 2.0, 600.0, "keys", "pipeline fill and masked keys per tile"
    ),
    Coefficient("tile_clocks", 2000.0, 0.7, 50.0, 40000.0, "clocks", "fixed cost of a query tile"),
    Coefficient(
        "pack_frac",
        0.5,
        0.7,
        0.02,
        1.0,
        "1",
        "how far heads of a group share a query tile (0 never, 1 always)",
    ),
    Coefficient("tail_frac", 0.3, 0.7, 0.01, 1.0, "1", "part of the longest tile that runs alone"),
    Coefficient("hbm_frac", 0.8, 0.15, 0.3, 1.0, "1", "HBM bandwidth reached"),
    Coefficient(
        "query_passes",
        0.1,
        1.5,
        0.001,
        8.0,
        "passes",
        "reads or writes of the queries by helper kernels",
    ),
    Coefficient(
        "kv_passes",
        2.0,
        0.5,
        0.01,
        8.0,
        "passes",
        "reads or writes of new keys and values by helper kernels",
    ),
    Coefficient(
        "wide_head_slowdown",
        0.15,
        0.8,
        0.005,
        2.0,
        "1",
        "extra tile time at head size 256 over 128, registers and smaller blocks",
    ),
    Coefficient(
        "power_slowdown",
        0.1,
        0.7,
        0.002,
        0.6,
        "1",
        "extra time of sustained full tensor work as the clock falls",
    ),
)
ATTENTION_DECODE_COEFFICIENTS = (
    Coefficient("launch_s", 6e-6, 0.5, 1e-6, 60e-6, "s", "floor: launches of all kernels"),
    Coefficient(
        "cta_clocks", 4000.0, 0.6, 200.0, 40000.0, "clocks", "fixed cost of a thread block"
    ),
    Coefficient(
        "sm_bytes_per_clock",
        24.0,
        0.5,
        2.0,
        64.0,
        "bytes/clock/SM",
        "keys and values that one SM takes in",
    ),
    Coefficient("hbm_frac", 0.85, 0.15, 0.3, 1.0, "1", "HBM bandwidth reached"),
    Coefficient(
        "l2_fit_frac",
        0.8,
        0.3,
        0.1,
        2.0,
        "1",
        "cache size over L2 size at which half of a reused KV cache still hits",
    ),
    Coefficient("row_clocks", 100.0, 1.0, 1.0, 4000.0, "clocks", "query, output row of one head"),
    Coefficient("tensor_frac", 0.3, 0.5, 0.02, 1.0, "1", "tensor-core rate on padded head groups"),
    Coefficient("combine_s", 2e-6, 0.7, 1e-7, 30e-6, "s", "merging the splits: fixed part"),
    Coefficient("group_pad", 16.0, 0.7, 8.0, 128.0, "rows", "rows that a head group is padded to"),
    Coefficient("occupancy", 2.0, 0.4, 1.0, 8.0, "CTAs/SM", "thread blocks resident on an SM"),
)

_FORMAT_FIELDS: list[tuple[str, Any]] = [
    ("peak_flops_per_s", np.float64),  # dense peak of the format the products run in
    ("query_element_bytes", np.float64),  # queries, outputs, new keys and values as they arrive
    ("kv_element_bytes", np.float64),  # keys and values in the cache
]


def _row_dtype(coefficients: tuple[Coefficient, ...]) -> np.dtype[np.void]:
    return np.dtype(
        _FORMAT_FIELDS
        + [(name, np.float64) for name in coefficient_dtype(coefficients).names or ()]
    )


ATTENTION_PREFILL = _row_dtype(ATTENTION_PREFILL_COEFFICIENTS)
ATTENTION_DECODE = _row_dtype(ATTENTION_DECODE_COEFFICIENTS)


@jit
def _blend(a: float, b: float) -> float:
    """p-norm of two overlapping times: at least the longer one."""
    high = max(a, b)
    if high <= 0.0:
        return 0.0
    low = min(a, b) / high
    return float(high * (1.0 + low**NORM) ** (1.0 / NORM))


@jit
def visible_pairs(new_tokens: float, context: float, window: float, causal: float) -> float:
    """Query-key pairs of one sequence and head that the mask lets through.

    Query i of 1..new_tokens stands at position context - new_tokens + i and sees its last
    `window` keys (0: all of them up to itself); without a causal mask it sees all `context`
    keys, or the 2*window - 1 around it.
    """
    if causal == 0.0:
        if window > 0.0:
            return new_tokens * min(context, 2.0 * window - 1.0)
        return new_tokens * context
    first = context - new_tokens + 1.0
    if window <= 0.0 or window >= context:
        return new_tokens * (first + context) / 2.0
    if first >= window:
        return new_tokens * window
    rising = window - first  # queries that see less than a full window
    return rising * (first + window - 1.0) / 2.0 + (new_tokens - rising) * window


@jit
def prefill_flops(
    n_sequences: float,
    new_tokens: float,
    context: float,
    n_heads: float,
    head_dim: float,
    v_head_dim: float,
    window: float,
    causal: float,
) -> float:
    """FLOPs of the two products over visible pairs only."""
    pairs = visible_pairs(new_tokens, context, window, causal)
    return 2.0 * n_sequences * n_heads * pairs * (head_dim + v_head_dim)


@jit
def prefill_bytes(
    n_sequences: float,
    new_tokens: float,
    context: float,
    n_heads: float,
    n_kv_heads: float,
    head_dim: float,
    v_head_dim: float,
    window: float,
    causal: float,
    attention: Any,
) -> float:
    """Compulsory bytes: queries in, outputs out, visible keys and values once."""
    keys = context
    if window > 0.0 and causal != 0.0:
        keys = min(context, new_tokens + window - 1.0)
    width = head_dim + v_head_dim
    rows = n_sequences * n_heads * new_tokens * width * attention.query_element_bytes
    return float(rows + n_sequences * n_kv_heads * keys * width * attention.kv_element_bytes)


@jit
def _padded(head_dim: float) -> float:
    return math.ceil(head_dim / HEAD_PAD) * HEAD_PAD


@jit
def attention_prefill_s(
    n_sequences: float,
    new_tokens: float,
    context: float,
    n_heads: float,
    n_kv_heads: float,
    head_dim: float,
    window: float,
    causal: float,
    attention: Any,
    device: Any,
    v_head_dim: float = 0.0,
) -> tuple[float, int]:
    """Seconds and bound code of fused prefill attention on one GPU's share of the heads.

    new_tokens: queries per sequence; context: keys per sequence, the new ones counted; window:
    0 or the number of last keys that a query sees; causal: 0 for encoders; v_head_dim: size of
    a value head, 0 for the same as head_dim.
    """
    if v_head_dim == 0.0:
        v_head_dim = head_dim
    group = n_heads / n_kv_heads
    # Rows of one head per tile row: with packing, a tile holds the same token of several heads.
    packed = n_sequences * n_kv_heads * math.ceil(new_tokens * group / TILE_ROWS)
    unpacked = n_sequences * n_heads * math.ceil(new_tokens / TILE_ROWS)
    tiles = packed**attention.pack_frac * unpacked ** (1.0 - attention.pack_frac)
    # Tokens that a tile spans, and the keys that its tiles meet on average and at most.
    span = min(new_tokens, n_sequences * n_heads * new_tokens / tiles)
    if causal == 0.0:
        longest = context
        mean = context
        if window > 0.0:
            longest = min(context, 2.0 * window + span)
            mean = longest
    else:
        longest = context
        if window > 0.0:
            longest = min(context, window + span)
        mean = visible_pairs(new_tokens, context, window, causal) / new_tokens
        mean = min(longest, mean + 0.5 * span)
        if window > 0.0:
            mean = min(longest, mean + 0.5 * span)
    width = _padded(head_dim) + _padded(v_head_dim)
    wide = max(0.0, 0.5 * width - 128.0) / 128.0
    pair_s = (1.0 + attention.wide_head_slowdown * wide) * (
        2.0 * width * device.sm_count / (attention.peak_flops_per_s * attention.tensor_frac)
        + attention.softmax_clocks / device.clock_hz
    )
    fixed_s = attention.tile_clocks / device.clock_hz
    row_s = TILE_ROWS * pair_s
    mean_s = fixed_s + row_s * (mean + attention.fill_keys)
    longest_s = fixed_s + row_s * (longest + attention.fill_keys)
    balanced_s = tiles * mean_s / device.sm_count
    waves_s = math.ceil(tiles / device.sm_count) * mean_s
    work_s = max(longest_s, balanced_s + attention.tail_frac * min(longest_s, waves_s - balanced_s))

    hbm_rate = attention.hbm_frac * device.hbm_bytes_per_s
    hbm_s = (
        prefill_bytes(
            n_sequences,
            new_tokens,
            context,
            n_heads,
            n_kv_heads,
            head_dim,
            v_head_dim,
            window,
            causal,
            attention,
        )
        / hbm_rate
    )
    tokens = n_sequences * new_tokens * attention.query_element_bytes
    helpers_s = (
        tokens
        * (
            attention.query_passes * n_heads * head_dim
            + attention.kv_passes * n_kv_heads * (head_dim + v_head_dim)
        )
        / hbm_rate
    )
    busy_s = _blend(work_s, hbm_s)
    slow_s = attention.power_slowdown * balanced_s * balanced_s / (balanced_s + 3e-3)
    total_s = attention.launch_s + helpers_s + busy_s + slow_s
    bound = BOUND_COMPUTE
    if attention.launch_s >= 0.5 * total_s:
        bound = BOUND_LATENCY
    elif hbm_s + helpers_s > work_s:
        bound = BOUND_MEMORY
    return total_s, bound


@jit
def attention_prefill_many(
    n_sequences: Any,
    new_tokens: Any,
    context: Any,
    n_heads: Any,
    n_kv_heads: Any,
    head_dim: Any,
    v_head_dim: Any,
    window: Any,
    causal: Any,
    attention: Any,
    device: Any,
    seconds: Any,
) -> None:
    """Fill `seconds` with `attention_prefill_s` of each element of the equally long arrays.

    attention and device are arrays of rows, one per element.
    """
    for i in range(len(seconds)):
        seconds[i] = attention_prefill_s(
            n_sequences[i],
            new_tokens[i],
            context[i],
            n_heads[i],
            n_kv_heads[i],
            head_dim[i],
            window[i],
            causal[i],
            attention[i],
            device[i],
            v_head_dim[i],
        )[0]


@jit
def attention_prefill_work(
    n_sequences: float,
    new_tokens: float,
    context: float,
    n_heads: float,
    n_kv_heads: float,
    head_dim: float,
    window: float,
    causal: float,
    attention: Any,
    v_head_dim: float = 0.0,
) -> tuple[float, float]:
    """(FLOPs over visible pairs, compulsory bytes) of one prefill attention."""
    if v_head_dim == 0.0:
        v_head_dim = head_dim
    flops = prefill_flops(
        n_sequences, new_tokens, context, n_heads, head_dim, v_head_dim, window, causal
    )
    moved = prefill_bytes(
        n_sequences,
        new_tokens,
        context,
        n_heads,
        n_kv_heads,
        head_dim,
        v_head_dim,
        window,
        causal,
        attention,
    )
    return flops, moved


@jit
def decode_keys(context: float, window: float) -> float:
    """Keys that the one new token of a sequence sees, itself counted."""
    if window > 0.0:
        return min(context, window)
    return context


@jit
def decode_bytes(
    n_sequences: float,
    context: float,
    n_heads: float,
    n_kv_heads: float,
    head_dim: float,
    v_head_dim: float,
    window: float,
    attention: Any,
) -> float:
    """Compulsory bytes: visible keys and values once, queries in, outputs out."""
    width = head_dim + v_head_dim
    keys = decode_keys(context, window) * n_kv_heads * attention.kv_element_bytes
    return float(n_sequences * width * (keys + n_heads * attention.query_element_bytes))


@jit
def decode_flops(
    n_sequences: float,
    context: float,
    n_heads: float,
    head_dim: float,
    v_head_dim: float,
    window: float,
) -> float:
    """FLOPs of the two products over visible keys."""
    return 2.0 * n_sequences * n_heads * decode_keys(context, window) * (head_dim + v_head_dim)


@jit
def attention_decode_s(
    n_sequences: float,
    context: float,
    n_heads: float,
    n_kv_heads: float,
    head_dim: float,
    window: float,
    attention: Any,
    device: Any,
    v_head_dim: float = 0.0,
    warm_frac: float = 0.0,
) -> tuple[float, int]:
    """Seconds and bound code of fused decode attention, one new token per sequence.

    context: keys per sequence, the new one counted; warm_frac: 1 where the same cache was read
    just before (micro-benchmarks that reuse one buffer), 0 where other layers evict it;
    v_head_dim: size of a value head, 0 for the same as head_dim.
    """
    if v_head_dim == 0.0:
        v_head_dim = head_dim
    keys = decode_keys(context, window)
    group = n_heads / n_kv_heads
    width = head_dim + v_head_dim
    key_bytes = width * attention.kv_element_bytes
    heads = n_sequences * n_kv_heads
    all_bytes = decode_bytes(
        n_sequences, context, n_heads, n_kv_heads, head_dim, v_head_dim, window, attention
    )
    fill = all_bytes / (attention.l2_fit_frac * device.l2_bytes)
    miss = min(1.0, max(0.0, fill - 0.5))
    cold_bytes = all_bytes * (1.0 - warm_frac * (1.0 - miss))
    hbm_s = cold_bytes / (attention.hbm_frac * device.hbm_bytes_per_s)
    padded = math.ceil(group / attention.group_pad) * attention.group_pad
    tensor_s = (
        2.0
        * width
        * padded
        / (attention.tensor_frac * attention.peak_flops_per_s / device.sm_count)
    )
    blocks = math.ceil(keys / BLOCK_KEYS)
    slots = device.sm_count * attention.occupancy
    fixed_s = (attention.cta_clocks + attention.row_clocks * group) / device.clock_hz
    # Several CTAs share an SM's intake.
    key_s = max(key_bytes / (attention.sm_bytes_per_clock * device.clock_hz), tensor_s)
    best_s = 1e30
    splits = 1.0
    while splits <= 128.0 and (splits == 1.0 or splits <= blocks):
        cta_keys = math.ceil(blocks / splits) * BLOCK_KEYS
        if splits == 1.0:
            cta_keys = keys
        ctas = heads * splits
        waves = math.ceil(ctas / slots)
        resident = min(attention.occupancy, ctas / device.sm_count)
        cta_s = fixed_s + cta_keys * key_s * max(1.0, resident)
        grid_s = waves * cta_s
        time_s = _blend(grid_s, hbm_s)
        if splits > 1.0:
            time_s += attention.combine_s
        best_s = min(best_s, time_s)
        splits *= 2.0
    total_s = attention.launch_s + best_s
    bound = BOUND_MEMORY
    if attention.launch_s >= 0.5 * total_s:
        bound = BOUND_LATENCY
    elif heads * keys * tensor_s / device.sm_count > 0.5 * best_s:
        bound = BOUND_COMPUTE
    return total_s, bound


@jit
def attention_decode_many(
    n_sequences: Any,
    context: Any,
    n_heads: Any,
    n_kv_heads: Any,
    head_dim: Any,
    v_head_dim: Any,
    window: Any,
    warm_frac: Any,
    attention: Any,
    device: Any,
    seconds: Any,
) -> None:
    """Fill `seconds` with `attention_decode_s` of each element of the equally long arrays."""
    for i in range(len(seconds)):
        seconds[i] = attention_decode_s(
            n_sequences[i],
            context[i],
            n_heads[i],
            n_kv_heads[i],
            head_dim[i],
            window[i],
            attention[i],
            device[i],
            v_head_dim[i],
            warm_frac[i],
        )[0]


@jit
def attention_decode_work(
    n_sequences: float,
    context: float,
    n_heads: float,
    n_kv_heads: float,
    head_dim: float,
    window: float,
    attention: Any,
    v_head_dim: float = 0.0,
) -> tuple[float, float]:
    """(FLOPs, compulsory bytes) of one decode attention."""
    if v_head_dim == 0.0:
        v_head_dim = head_dim
    flops = decode_flops(n_sequences, context, n_heads, head_dim, v_head_dim, window)
    moved = decode_bytes(
        n_sequences, context, n_heads, n_kv_heads, head_dim, v_head_dim, window, attention
    )
    return flops, moved
