"""Fused attention of one layer on one GPU: flash-style prefill and split-KV decode.

One formula for every GPU and stack; what the kernels of a stack do differently (packing of
heads, tile height, helper kernels) is in the coefficients. Times are GPU times of the whole
operator: kernels that write new keys and values into the cache, and quantise where the format
asks for it, are in it; the host is not.

**Prefill.** Query rows are cut into tiles of `tile_rows`. A tile meets all keys visible to its
last row (masked ones at the diagonal are computed too) plus `fill_keys` of pipeline fill. A key
costs a row two products on the tensor cores and one exponential, which overlap in part:

    products = 2 (d_qk + d_v) SMs / (peak tensor_frac)
    pair     = hypot(products, softmax_clocks / clock), longer for head sizes other than 128
    tile     = TILE_CLOCKS / clock + tile_rows * (keys + fill_keys) * pair
    rounds   = tiles / SMs
    lone     = the longest tile, LONE_TILE slower alone, shorter where idle SMs share its keys
    work     = max(lone,
                   rounds * mean tile + part of the unfilled round + tail_frac * (longest - mean))
    memory   = (queries, outputs, keys, values) / (HBM, or L2 where they fit and are warm)
    helpers  = query_passes, kv_passes over new tokens, token_clocks per token; one more launch
    t        = launch + helpers + p-norm(work, memory) + power slow-down of long tensor work

Heads of a group share a tile to the extent `pack_frac` (FlashAttention 3 and FlashInfer pack,
TensorRT-LLM does not); single-token queries have their own `single_pack_frac` since some stacks
send them to a decode kernel, which packs fully. Encoders (not causal) keep no cache and run no
helpers.

**Decode.** One new token per sequence. A thread block (CTA) takes one sequence, one KV head and
one of `splits` parts of its context; an SM works on one after the other:

    fixed    = (cta_clocks, by head size, + group_clocks + row_clocks per query) / clock
    key      = max(bytes / SM intake, rows * (products + exponential))
    cta      = fixed + (keys - first_keys) * key, at least products and L2 time of all keys
    grid     = CTAs / SMs, mostly rounded up, at least 1, times cta
    t        = launch + p-norm(grid, cold bytes / HBM + fixed of one CTA)
               + combine if split; the smallest over splits up to SPLIT_FILL CTAs per SM

A CTA's fixed time is filling and draining its pipeline, in which the first block of keys passes
already. Starts and ends of kernels are in clocks, too: over four generations of GPUs that unit
differs less than seconds, for like kernels.

Stacks differ in which layers their kernel handles well: `max_group` heads per KV head at most
(TensorRT-LLM: 32), larger groups read the keys once per query head. `split_rule` says which heads
split their contexts: all; only grouped heads without a window, where others also share no keys
(FlashAttention 2); or only heads that share no keys (TensorRT-LLM with an 8-bit cache on Ada).
A window straddles blocks: STRADDLE_KEYS more are read.

**Residency.** warm_frac says how much of the operands was touched just before: 1 in
micro-benchmarks that repeat one buffer, and for what the kernel before wrote; 0 for the caches of a
model whose other layers pass in between. Warm bytes come from L2 as far as they fit.

Monotone in sequences, heads (at a fixed group size), context, and new tokens (at a fixed earlier
context); never below max(FLOPs/peak, cold bytes/bandwidth). Not modelled: the clumsier kernels
that stacks fall back to for head sizes they lack (generic Triton kernels, up to 20 times slower).

Sources: FlashAttention-2 (Dao 2023, arXiv:2307.08691), FlashAttention-3 (Shah et al. 2024,
arXiv:2407.08608), Flash-Decoding (Dao et al. 2023), FlashInfer (Ye et al. 2025, arXiv:2501.01005).
Constants and priors: aiconfigurator tables of vLLM, TensorRT-LLM and SGLang on A100, H100, B200
and L40S, head sizes 64 to 256; they were set on the tables as a whole.

Known error on rows outside the fit, 64 fitted per GPU, stack and format, own kernels of the newest
stack version (mean absolute, mean over sets; median row in brackets): prefill 9.1 % (6.2 %): A100
6, B200 and H100 9, L40S 11; decode 10.5 % (6.7 %): A100 and B200 8, H100 and L40S 12. A GPU left
out of the fit (16 bits): prefill 18 % (A100 13, B200 17, H100 18, L40S 24), decode 18 % (A100 19,
B200 and H100 16, L40S 23; fitting/attention_kernels.py); with 8-bit caches 25 %. On L40S FlashInfer
starts faster than all others (by half), on A100 SGLang reads at half speed. Worst: decode of
TensorRT-LLM on Hopper and Ada (14 to 15 %: its splits and kernels change with context and are not
even monotone), FlashInfer splitting short prefills and decoding groups of 2 and 3 on L40S, head
size 192 of SGLang on H100.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._jit import inner, jit
from .tables import BOUND_COMPUTE, BOUND_LATENCY, BOUND_MEMORY, Coefficient, coefficient_dtype

# Constants that differ little between GPUs and stacks: means over fits to the tables named above.
HEAD_PAD = 32.0  # head sizes are padded to a multiple of this
HEAD_USUAL = 128.0  # the size that kernels are tuned for
TILE_CLOCKS = 4500.0  # fixed cost of a query tile
LONE_TILE = 1.1  # a tile alone on the GPU against its share of a busy SM
UNFILLED = 0.55  # part of the last, partly filled round of tiles that is lost
PREFILL_HBM_FRAC = 0.83
L2_FRAC = 0.3  # of L2_BYTES_PER_CLOCK
HELPER_CLOCKS = 3800.0  # launch of the helper kernels
THREADS_PER_CTA = 512.0  # of the kernel that writes one token into the cache
POWER_SLOWDOWN = 0.07  # full tensor load, long enough for the clock to fall
POWER_DELAY_S = 3e-3
PREFILL_NORM = 4.0  # exponent of the p-norm: overlap of work and memory

BLOCK_KEYS = 128.0  # smallest part of a context that is split off
STRADDLE_KEYS = 64.0  # keys beyond a window that its blocks hold
MAX_SPLITS = 32.0
SPLIT_FILL = 1.6  # CTAs per SM up to which contexts are split
INTAKE_CLOCK = 10.0  # bytes per clock that an SM takes from L2 beyond its share of HBM
UNFILLED_DECODE = 0.85  # part of an unfilled round of decode CTAs that is lost
NARROW_EXPONENT, WIDE_EXPONENT = 0.25, 0.5  # a CTA's fixed part over head size, from 128 on
ROW_PAD = 16.0  # rows of the smallest tensor-core tile
DECODE_TENSOR_FRAC = 0.6
DECODE_SOFTMAX_CLOCKS = 0.06  # exponential of one score: an SM does 16 a clock
DECODE_NORM = 8.0
L2_FULL, L2_SPILLED = 0.7, 1.3  # bytes over usable L2 where hits begin to fall, and are gone
# Values of split_rule are 0.5, 1 and 2; the fit moves on logarithms, so these lie between.
SPLITS_GROUPED, SPLITS_UNGROUPED = 0.7, 1.4

L2_BYTES_PER_CLOCK = 64.0  # what an SM can take from L2, NVIDIA GPUs since Volta

FIXED = 1e-4  # spread of discrete facts: chosen among a few values by the fit recipe

# fmt: off
ATTENTION_PREFILL_COEFFICIENTS = (
    Coefficient("launch_clocks", 13000.0, 0.4, 1000.0, 2e5, "clocks",
                "start and end of the attention kernel"),
    Coefficient("tile_rows", 128.0, FIXED, 16.0, 512.0, "rows", "height of a query tile"),
    Coefficient("tensor_frac", 0.75, 0.2, 0.2, 1.0, "1", "share of tensor peak inside a tile"),
    Coefficient("softmax_clocks", 0.09, 0.3, 0.005, 0.8, "clocks",
                "exponential and scaling of one score on an SM"),
    Coefficient("fill_keys", 50.0, 0.5, 2.0, 1500.0, "keys",
                "keys' worth of pipeline fill of a tile"),
    Coefficient("key_split", 0.15, 0.5, 0.005, 0.9, "1",
                "speed-up of a lone tile by idle SMs, as an exponent: some kernels split keys"),
    Coefficient("pack_frac", 0.25, 1.0, 0.02, 1.0, "1",
                "how far the heads of a group share a tile: 0 not, 1 fully"),
    Coefficient("single_pack_frac", 1.0, FIXED, 0.01, 2.0, "1",
                "the same for sequences of one new token, if more: 1 where they go to a kernel "
                "that packs, as decode does"),
    Coefficient("tail_frac", 0.78, 0.4, 0.02, 1.0, "1",
                "part of the difference between longest and mean tile that is waited for"),
    Coefficient("l2_fit_frac", 0.75, 0.35, 0.1, 3.0, "1", "share of the L2 that keeps operands"),
    Coefficient("query_passes", 0.8, 1.5, 0.001, 8.0, "1",
                "reads and writes of all queries by helper kernels (rotate, quantise)"),
    Coefficient("kv_passes", 1.7, 0.6, 0.01, 8.0, "1",
                "reads and writes of new keys and values by helper kernels (into the cache)"),
    Coefficient("token_clocks", 150.0, 1.1, 1.0, 20000.0, "clocks",
                "an SM's time to write one token of full width into the cache"),
    Coefficient("wide_slowdown", 0.1, 0.9, 0.005, 2.0, "1",
                "extra time of head size 256 over 128: registers, smaller key blocks"),
    Coefficient("narrow_loss", 0.15, 0.8, 0.005, 1.0, "1",
                "products of small heads: time falls with head size to the power 1 - this"),
)
ATTENTION_DECODE_COEFFICIENTS = (
    Coefficient("launch_clocks", 13000.0, 0.35, 1000.0, 2e5, "clocks",
                "start and end of the kernels"),
    Coefficient("cta_clocks", 4200.0, 0.55, 100.0, 1e5, "clocks",
                "fixed cost of a thread block at head size 128: its pipeline fills and drains"),
    Coefficient("row_clocks", 60.0, 0.7, 1.0, 4000.0, "clocks", "query and output row of a head"),
    Coefficient("group_clocks", 330.0, 1.4, 2.0, 5e4, "clocks",
                "further fixed cost where heads share keys"),
    Coefficient("intake_frac", 1.0, 0.4, 0.1, 4.0, "1",
                "keys and values that an SM takes in, over its share of HBM plus INTAKE_CLOCK"),
    Coefficient("first_keys", 32.0, 1.0, 1.0, 512.0, "keys",
                "keys that a thread block takes in within its fixed time"),
    Coefficient("hbm_frac", 0.83, 0.12, 0.3, 1.0, "1", "share of HBM bandwidth reached"),
    Coefficient("l2_fit_frac", 1.0, 0.15, 0.1, 3.0, "1", "share of the L2 that keeps a cache"),
    Coefficient("combine_clocks", 3800.0, 0.7, 100.0, 1e5, "clocks",
                "merging the parts of a split context"),
    Coefficient("regroup_clocks", 500.0, 1.2, 10.0, 1e5, "clocks",
                "helpers that reorder queries and outputs of several groups"),
    Coefficient("ungrouped_clocks", 1000.0, 1.1, 10.0, 1e5, "clocks",
                "extra time of the kernel for heads that share no keys"),
    Coefficient("max_group", 1024.0, FIXED, 1.0, 1e6, "heads",
                "largest group whose heads share keys"),
    Coefficient("split_rule", 1.0, FIXED, 0.1, 10.0, "code",
                "1: all heads split; 0.5: only grouped ones without a window, and only those "
                "share keys; 2: only ungrouped ones"),
)
# fmt: on

_FORMAT_FIELDS: list[tuple[str, Any]] = [
    ("peak_flops_per_s", np.float64),  # dense peak of the format the products run in
    ("query_element_bytes", np.float64),  # queries, outputs, new keys and values as they arrive
    ("kv_element_bytes", np.float64),  # keys and values in the cache
]


def _row_dtype(coefficients: tuple[Coefficient, ...]) -> np.dtype[np.void]:
    names = coefficient_dtype(coefficients).names or ()
    return np.dtype(_FORMAT_FIELDS + [(name, np.float64) for name in names])


# Facts of the number format, then the coefficients.
ATTENTION_PREFILL = _row_dtype(ATTENTION_PREFILL_COEFFICIENTS)
ATTENTION_DECODE = _row_dtype(ATTENTION_DECODE_COEFFICIENTS)


@inner
def _blend(a: float, b: float, exponent: float) -> float:
    """p-norm of two overlapping times: at least the longer one."""
    high = max(a, b)
    if high <= 0.0:
        return 0.0
    low = min(a, b) / high
    return float(high * (1.0 + low**exponent) ** (1.0 / exponent))


@inner
def _cold_frac(n_bytes: float, warm_frac: float, l2_bytes: float) -> float:
    """Part of `n_bytes` that comes from HBM although `warm_frac` of it was touched before."""
    spilled = (n_bytes / l2_bytes - L2_FULL) / (L2_SPILLED - L2_FULL)
    return 1.0 - warm_frac * (1.0 - min(1.0, max(0.0, spilled)))


@inner
def visible_pairs(new_tokens: float, context: float, window: float, causal: float) -> float:
    """Query-key pairs of one sequence and head that the mask lets through.

    Query i of 1..new_tokens stands at position context - new_tokens + i and sees its last
    `window` keys (0: all of them up to itself). Without a causal mask it sees all `context`
    keys, or the 2 window - 1 around it.
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


@inner
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
    """(FLOPs over visible pairs, compulsory bytes) of one prefill attention.

    Bytes: queries in, outputs out, visible keys and values once.
    """
    width = head_dim + v_head_dim
    if v_head_dim == 0.0:
        width = 2.0 * head_dim
    pairs = visible_pairs(new_tokens, context, window, causal)
    flops = 2.0 * n_sequences * n_heads * pairs * width
    keys = context
    if window > 0.0 and causal != 0.0:
        keys = min(context, new_tokens + window - 1.0)
    queries = n_heads * new_tokens * attention.query_element_bytes
    moved = n_sequences * width * (queries + n_kv_heads * keys * attention.kv_element_bytes)
    return flops, moved


@inner
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
    warm_frac: float = 0.0,
) -> tuple[float, int]:
    """Seconds and bound code of fused prefill attention, heads being one GPU's share.

    new_tokens: queries per sequence. context: keys per sequence, the new ones counted. window:
    last keys that a query sees, 0 for all. causal: 0 for encoders. v_head_dim: size of a value
    head, 0 for head_dim. warm_frac: see the module.
    """
    v_dim = v_head_dim
    if v_head_dim == 0.0:
        v_dim = head_dim
    group = n_heads / n_kv_heads
    rows = attention.tile_rows
    pack = attention.pack_frac
    if new_tokens <= 1.0:
        pack = max(pack, attention.single_pack_frac)
    packed = n_sequences * n_kv_heads * math.ceil(new_tokens * group / rows)
    unpacked = n_sequences * n_heads * math.ceil(new_tokens / rows)
    tiles = packed**pack * unpacked ** (1.0 - pack)
    rounds = tiles / device.sm_count

    # Keys of a tile: those of its rows on average, and the masked ones up to its last row.
    span = rows / group**pack
    mean_keys = visible_pairs(new_tokens, context, 0.0, causal) / new_tokens + 0.5 * span
    longest_keys = context
    if window > 0.0:  # its far edge cuts a tile too
        windowed = visible_pairs(new_tokens, context, window, causal) / new_tokens + span
        mean_keys = min(mean_keys, windowed)
        reach = window if causal != 0.0 else 2.0 * window
        longest_keys = min(context, reach + span)
    mean_keys = min(mean_keys, longest_keys)

    width = math.ceil(head_dim / HEAD_PAD) * HEAD_PAD + math.ceil(v_dim / HEAD_PAD) * HEAD_PAD
    size = 0.5 * width / HEAD_USUAL
    wide = 1.0 + attention.wide_slowdown * max(0.0, size - 1.0)
    narrow = min(1.0, size) ** -attention.narrow_loss
    tensor_flops_per_s = attention.tensor_frac * attention.peak_flops_per_s / device.sm_count
    products_s = narrow * 2.0 * width / tensor_flops_per_s
    pair_s = wide * math.hypot(products_s, attention.softmax_clocks / device.clock_hz)
    fixed_s = TILE_CLOCKS / device.clock_hz
    mean_s = fixed_s + rows * pair_s * (mean_keys + attention.fill_keys)
    longest_s = fixed_s + rows * pair_s * (longest_keys + attention.fill_keys)
    sharing = max(1.0, 1.0 / rounds) ** attention.key_split
    lone_s = fixed_s + (longest_s - fixed_s) * LONE_TILE / sharing
    filled_s = rounds * mean_s
    uneven_s = UNFILLED * (math.ceil(rounds) - rounds) * mean_s
    uneven_s += attention.tail_frac * (longest_s - mean_s)
    work_s = max(lone_s, filled_s + min(1.0, rounds) * uneven_s)

    moved = attention_prefill_work(
        n_sequences,
        new_tokens,
        context,
        n_heads,
        n_kv_heads,
        head_dim,
        window,
        causal,
        attention,
        v_head_dim,
    )[1]
    arriving = n_sequences * new_tokens * attention.query_element_bytes
    touched = moved + arriving * n_kv_heads * (head_dim + v_dim)
    cold_frac = _cold_frac(touched, warm_frac, attention.l2_fit_frac * device.l2_bytes)
    l2_bytes_per_s = L2_FRAC * L2_BYTES_PER_CLOCK * device.sm_count * device.clock_hz
    byte_s = max(cold_frac / (PREFILL_HBM_FRAC * device.hbm_bytes_per_s), 1.0 / l2_bytes_per_s)
    memory_s = moved * byte_s
    helpers_s = 0.0
    if causal != 0.0:
        passed = attention.query_passes * n_heads * head_dim
        passed += attention.kv_passes * n_kv_heads * (head_dim + v_dim)
        token_s = attention.token_clocks / (device.clock_hz * device.sm_count)
        token_s *= min(1.0, n_kv_heads * head_dim / THREADS_PER_CTA)
        helpers_s = HELPER_CLOCKS / device.clock_hz + arriving * passed * byte_s
        helpers_s += n_sequences * new_tokens * token_s

    slow_s = POWER_SLOWDOWN * filled_s * filled_s / (filled_s + POWER_DELAY_S)
    busy_s = _blend(work_s, memory_s, PREFILL_NORM) + slow_s
    launch_s = attention.launch_clocks / device.clock_hz
    total_s = launch_s + helpers_s + busy_s
    bound = BOUND_COMPUTE
    if launch_s >= 0.5 * total_s:
        bound = BOUND_LATENCY
    elif memory_s + helpers_s > work_s:
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
    warm_frac: Any,
    attention: Any,
    device: Any,
) -> Any:
    """Seconds of `attention_prefill_s` for each element of equally long arrays.

    attention, device: arrays of records, one per element.
    """
    seconds = np.empty(len(n_sequences))
    for i in range(len(n_sequences)):
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
            warm_frac[i],
        )[0]
    return seconds


@inner
def decode_keys(context: float, window: float) -> float:
    """Keys that the one new token of a sequence sees, itself counted."""
    if window > 0.0:
        return min(context, window)
    return context


@inner
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
    """(FLOPs, compulsory bytes) of one decode attention.

    Bytes: visible keys and values once, queries in, outputs out.
    """
    width = head_dim + v_head_dim
    if v_head_dim == 0.0:
        width = 2.0 * head_dim
    keys = decode_keys(context, window)
    flops = 2.0 * n_sequences * n_heads * keys * width
    cached = keys * n_kv_heads * attention.kv_element_bytes
    moved = n_sequences * width * (cached + n_heads * attention.query_element_bytes)
    return flops, moved


@inner
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

    Heads are one GPU's share. context: keys per sequence, the new one counted. window: last
    keys that the token sees, 0 for all. v_head_dim: size of a value head, 0 for head_dim.
    warm_frac: see the module.
    """
    width = head_dim + v_head_dim
    if v_head_dim == 0.0:
        width = 2.0 * head_dim
    keys = decode_keys(context, window)
    if window > 0.0:
        keys = min(context, window + STRADDLE_KEYS)
    group = n_heads / n_kv_heads
    grouped_split = attention.split_rule < SPLITS_GROUPED
    heads = n_sequences * n_kv_heads
    rows = group
    if group > attention.max_group or (grouped_split and window > 0.0):
        heads = n_sequences * n_heads
        rows = 1.0

    cached = keys * n_kv_heads * attention.kv_element_bytes
    moved = n_sequences * width * (cached + n_heads * attention.query_element_bytes)
    cold_frac = _cold_frac(moved, warm_frac, attention.l2_fit_frac * device.l2_bytes)
    hbm_s = moved * cold_frac / (attention.hbm_frac * device.hbm_bytes_per_s)
    share_bytes_per_s = device.hbm_bytes_per_s / device.sm_count
    size = 0.5 * width / HEAD_USUAL
    fixed_clocks = attention.cta_clocks * (
        size**WIDE_EXPONENT if size >= 1.0 else size**NARROW_EXPONENT
    )
    if rows > 1.0:
        fixed_clocks += attention.group_clocks
    fixed_s = (fixed_clocks + attention.row_clocks * rows) / device.clock_hz
    l2_bytes_per_s = L2_BYTES_PER_CLOCK * device.clock_hz
    intake_bytes_per_s = min(
        l2_bytes_per_s,
        attention.intake_frac * (share_bytes_per_s + INTAKE_CLOCK * device.clock_hz),
    )
    products_per_s = DECODE_TENSOR_FRAC * attention.peak_flops_per_s / device.sm_count
    key_load_s = width * attention.kv_element_bytes / intake_bytes_per_s
    score_s = 2.0 * width / products_per_s + DECODE_SOFTMAX_CLOCKS / device.clock_hz
    key_product_s = math.ceil(rows / ROW_PAD) * ROW_PAD * score_s
    key_s = max(key_load_s, key_product_s)
    least_key_s = max(key_product_s, width * attention.kv_element_bytes / l2_bytes_per_s)

    blocks = float(math.ceil(keys / BLOCK_KEYS))
    limit = min(MAX_SPLITS, SPLIT_FILL * device.sm_count / heads)
    if grouped_split and (group == 1.0 or window > 0.0):
        limit = 1.0
    if attention.split_rule > SPLITS_UNGROUPED and rows > 1.0:
        limit = 1.0
    limit = max(1.0, min(limit, blocks))
    combine_s = attention.combine_clocks / device.clock_hz
    best_s = math.inf
    splits = 1.0
    searching = True
    while searching:
        cta_keys = keys
        joined_s = 0.0
        if splits > 1.0:
            cta_keys = min(keys, math.ceil(blocks / splits) * BLOCK_KEYS)
            joined_s = combine_s
        load = heads * splits / device.sm_count
        rounds = max(1.0, load + UNFILLED_DECODE * (math.ceil(load) - load))
        cta_s = fixed_s + max(0.0, cta_keys - attention.first_keys) * key_s
        grid_s = rounds * max(cta_s, cta_keys * least_key_s)
        best_s = min(best_s, _blend(grid_s, hbm_s + fixed_s, DECODE_NORM) + joined_s)
        searching = splits < limit
        splits = min(2.0 * splits, limit)

    floor_clocks = attention.launch_clocks
    if rows == 1.0:
        floor_clocks += attention.ungrouped_clocks
    if group > 1.0 and n_kv_heads > 1.0:
        floor_clocks += attention.regroup_clocks
    floor_s = floor_clocks / device.clock_hz
    total_s = floor_s + best_s
    bound = BOUND_MEMORY
    if floor_s >= 0.5 * total_s:
        bound = BOUND_LATENCY
    elif key_product_s > max(key_load_s, hbm_s * device.sm_count / (heads * keys)):
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
) -> Any:
    """Seconds of `attention_decode_s` for each element of equally long arrays.

    attention, device: arrays of records, one per element.
    """
    seconds = np.empty(len(n_sequences))
    for i in range(len(n_sequences)):
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
    return seconds
