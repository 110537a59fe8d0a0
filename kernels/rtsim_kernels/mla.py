"""Multi-head latent attention (MLA) of one layer on one GPU: prefill, and decode in absorbed form.

The cache holds one latent vector (`latent` wide, 512 in DeepSeek-V3) and one rotated key (`rope`
wide, 64) per token for all heads. Sizes are arguments, so models with other ones are timed alike.
Projections, and the batched products that absorb the up-projections, are GEMMs of their own.

**Decode.** Queries are taken into the latent space, so every head reads the same keys of latent +
rope elements and the same values, their first `latent` ones. A thread block (CTA) takes up to
`tile_rows` heads of a sequence and one of `splits` parts of its context:

    key    = max((latent + rope) bytes / (intake_bytes clock),
                 padded heads 2 (2 latent + rope) / SM products)
    cta    = (cta_clocks + row_clocks heads) / clock + (keys - first_keys) * key
    rounds = CTAs / SMs, half rounded up, at least 1
    stream = (cache + queries + outputs + parts) / HBM, or L2 where they fit and are warm
    t      = launch_s + p-norm(rounds * cta, stream + EXPOSED * fixed part of rounds)
             + combine_s if split; the fastest of least_splits ... most_splits

A split writes one fp32 part of `latent` elements per head and split, which is read once. Stacks
differ in the rule: a context is cut as it pays (1 to 64), never (1 to 1), or always in 8.

**Prefill.** Ordinary multi-head attention, heads of nope + rope for keys and v_head_dim for
values, or, where `absorbed` says so, all heads against the latent cache, as in decode (SGLang's
FlashAttention kernel on Hopper; three times the work):

    pair   = 2 (d_qk + d_v) / SM products + softmax_clocks / clock
    tile   = tile_clocks / clock + tile_rows * (keys + FILL_KEYS) * pair
    work   = rounds * mean tile + tail_frac * (longest - mean tile), at least the longest tile
    t      = launch_s + p-norm(work * power, memory) + passes * memory

memory: queries, outputs, keys and values once, at HBM speed or from L2; passes: helper kernels
(rotate, concatenate, quantise, write into the cache). power = 1 + power_drop log10(1 + work / 1
ms): clocks fall in long kernels. Queries of one sequence stand at the end of its context.

**Residency.** warm_frac as in attention.py: 1 where a buffer is repeated, 0 for a model's cache.

**Conversion.** Kernels that know no cache in fewer bits than the queries have it widened as a whole
first (`converted`; FlashAttention 3 in SGLang): it is read, written in 16 bits at CONVERT_CLOCK per
SM, and attention then runs in 16 bits.

Monotone in sequences, heads, context and new tokens; never below max(FLOPs / peak, cold bytes /
bandwidth). Not modelled: sparse indexers.

Sources: DeepSeek-V2 (arXiv:2405.04434, section 2.1) for the algebra, FlashMLA and FlashAttention-3
for tiles; constants and priors from aiconfigurator tables of TensorRT-LLM and SGLang on A100, H100,
B200, L40S. Known error on rows outside the fit, 64 fitted per GPU, stack and format: prefill 10 %
(L40S 16), decode 11 % (L40S 14). Worst: SGLang's Triton prefill on L40S (21 %). A GPU left out, in
16 bits over all stacks, learning from like kernels (fitting/attention_kernels.py): prefill 22 %
(13 to 15 %, L40S 47: its Triton kernels were measured nowhere else), decode 16 %; with 8-bit caches
25 %, prompts of kernels that convert 43 %. Whole blocks put together from these and GEMMs, none of
them in a fit: TensorRT-LLM prefill 5 %, decode 8 %.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._jit import inner, jit
from .tables import (
    BOUND_COMPUTE,
    BOUND_LATENCY,
    BOUND_MEMORY,
    Coefficient,
    coefficient_dtype,
)

BLOCK_KEYS = 64.0  # smallest part of a context that is split off
SPLIT_FILL = 1.2  # CTAs per SM up to which contexts are split
HALF_ROUND = 0.5  # part of an unfilled round that is lost
EXPOSED = 0.4  # part of a CTA's fixed time in which no other CTA reads on its behalf
ROW_PAD = 16.0  # rows of the smallest tensor-core tile
PART_BYTES = 8.0  # an fp32 element of a part, written and read
L2_FULL, L2_SPILLED = 0.7, 1.3  # bytes over usable L2 where hits begin to fall, and are gone
L2_SPEED = 0.3  # time of a byte out of the L2 over that of one out of DRAM
FILL_KEYS = 50.0  # keys' worth of pipeline fill per query tile
PREFILL_HBM_FRAC = 0.83
PREFILL_NORM = 4.0
LONG_KERNEL_S = 1e-3
CONVERT_S = 5.5e-6  # starts and ends of the kernels that widen a cache
CONVERT_CLOCK = 4.0  # bytes per clock that an SM reads and writes in them
WIDE_RATE = 0.5  # rate of 16-bit products over that of 8-bit ones
SWITCH = 0.75  # coefficients that stand for yes (1) or no (0.5)
FIXED = 1e-4  # spread of discrete facts: chosen among a few values by the fit recipe

# fmt: off
MLA_PREFILL_COEFFICIENTS = (
    Coefficient("launch_s", 1.1e-5, 0.4, 1e-6, 1e-4, "s", "start and end of the kernels"),
    Coefficient("tile_rows", 128.0, FIXED, 16.0, 512.0, "rows", "height of a query tile"),
    Coefficient("absorbed", 0.5, FIXED, 0.1, 2.0, "yes/no",
                "1: all heads read the latent cache; 0.5: each head has keys and values"),
    Coefficient("converted", 0.5, FIXED, 0.1, 2.0, "yes/no",
                "1: a cache in fewer bits is widened as a whole before it is read"),
    Coefficient("tensor_frac", 0.72, 0.25, 0.05, 1.0, "1", "share of tensor peak inside a tile"),
    Coefficient("softmax_clocks", 0.05, 0.5, 0.001, 2.0, "clocks",
                "exponential and scaling of one score on an SM, where products do not hide it"),
    Coefficient("tile_clocks", 4500.0, 0.7, 50.0, 80000.0, "clocks", "fixed cost of a tile"),
    Coefficient("tail_frac", 0.75, 0.5, 0.02, 1.0, "1",
                "part of the difference between longest and mean tile that is waited for"),
    Coefficient("passes", 1.0, 0.8, 0.05, 20.0, "1",
                "reads and writes of all operands by helper kernels"),
    Coefficient("l2_fit_frac", 0.65, 0.35, 0.1, 3.0, "1", "share of the L2 that keeps operands"),
    Coefficient("power_drop", 0.06, 0.7, 0.001, 1.0, "1",
                "slow-down per tenfold length beyond 1 ms (power limit)"),
)
MLA_DECODE_COEFFICIENTS = (
    Coefficient("launch_s", 5.5e-6, 0.4, 1e-6, 1e-4, "s", "start and end of the kernels"),
    Coefficient("cta_clocks", 1.05e4, 0.5, 100.0, 80000.0, "clocks",
                "fixed cost of a thread block"),
    Coefficient("row_clocks", 60.0, 0.8, 1.0, 4000.0, "clocks", "query and output row of a head"),
    Coefficient("tile_rows", 64.0, FIXED, 8.0, 256.0, "rows", "heads that a thread block takes"),
    Coefficient("least_splits", 1.0, FIXED, 0.5, 64.0, "parts", "parts every context is cut into"),
    Coefficient("most_splits", 64.0, FIXED, 0.5, 128.0, "parts", "parts at most"),
    Coefficient("converted", 0.5, FIXED, 0.1, 2.0, "yes/no",
                "1: a cache in fewer bits is widened as a whole before it is read"),
    Coefficient("intake_bytes", 20.0, 0.6, 0.2, 64.0, "bytes per clock",
                "keys that an SM takes in"),
    Coefficient("first_keys", 64.0, 1.0, 1.0, 2048.0, "keys",
                "keys that a thread block takes in within its fixed time"),
    Coefficient("tensor_frac", 0.7, 0.3, 0.05, 1.0, "1", "share of tensor peak reached"),
    Coefficient("hbm_frac", 0.87, 0.1, 0.3, 1.0, "1", "share of HBM bandwidth reached"),
    Coefficient("l2_fit_frac", 0.65, 0.35, 0.1, 3.0, "1", "share of the L2 that keeps a cache"),
    Coefficient("combine_s", 2.5e-6, 0.7, 1e-7, 3e-5, "s", "merging the parts of a context"),
    Coefficient("overlap", 2.8, 0.5, 1.0, 20.0, "1", "exponent that joins SMs and streaming"),
)
# fmt: on

_FORMAT_FIELDS: list[tuple[str, Any]] = [
    ("peak_flops_per_s", np.float64),  # dense peak of the format in which products run
    ("query_element_bytes", np.float64),  # queries and outputs
    ("kv_element_bytes", np.float64),  # of the cache
]


def _row_dtype(coefficients: tuple[Coefficient, ...]) -> np.dtype[np.void]:
    return np.dtype(_FORMAT_FIELDS + list(coefficient_dtype(coefficients).descr))


# Facts of the number format, then the coefficients.
MLA_PREFILL = _row_dtype(MLA_PREFILL_COEFFICIENTS)
MLA_DECODE = _row_dtype(MLA_DECODE_COEFFICIENTS)


@inner
def _blend(a: float, b: float, exponent: float) -> float:
    """p-norm of two overlapping times: at least the longer one."""
    high = max(a, b)
    return float(high * (1.0 + (min(a, b) / high) ** exponent) ** (1.0 / exponent))


@inner
def _cold_frac(n_bytes: float, warm_frac: float, l2_bytes: float) -> float:
    """Part of `n_bytes` that comes from HBM although `warm_frac` of it was touched before."""
    spilled = (n_bytes / l2_bytes - L2_FULL) / (L2_SPILLED - L2_FULL)
    return 1.0 - warm_frac * (1.0 - min(1.0, max(0.0, spilled)))


@inner
def _rounds(parts: float, sm_count: float) -> float:
    """Rounds of `parts` thread blocks over the SMs, at least one."""
    load = parts / sm_count
    return max(1.0, load + HALF_ROUND * (math.ceil(load) - load))


@inner
def _conversion(tokens: float, width: float, mla: Any, device: Any) -> tuple[float, float, float]:
    """(seconds to widen the cache of `tokens`, bytes of an element then read, peak then)."""
    narrow, wide = mla.kv_element_bytes, mla.query_element_bytes
    if mla.converted < SWITCH or narrow >= wide:
        return 0.0, narrow, mla.peak_flops_per_s
    moved = tokens * width * (narrow + wide)
    bytes_per_s = min(
        CONVERT_CLOCK * device.clock_hz * device.sm_count, PREFILL_HBM_FRAC * device.hbm_bytes_per_s
    )
    return CONVERT_S + moved / bytes_per_s, wide, WIDE_RATE * mla.peak_flops_per_s


@inner
def mla_decode_work(
    n_sequences: float, context: float, n_heads: float, latent: float, rope: float, mla: Any
) -> tuple[float, float]:
    """(FLOPs, compulsory bytes) of one absorbed decode attention.

    Per key and head a product of latent + rope and one of latent; the cache once for all heads,
    queries in, outputs out.
    """
    width = latent + rope
    flops = 2.0 * n_sequences * n_heads * context * (width + latent)
    cache = n_sequences * context * width * mla.kv_element_bytes
    return flops, cache + n_sequences * n_heads * (width + latent) * mla.query_element_bytes


@inner
def mla_decode_s(
    n_sequences: float,
    context: float,
    n_heads: float,
    latent: float,
    rope: float,
    mla: Any,
    device: Any,
    warm_frac: float = 0.0,
) -> tuple[float, int]:
    """Seconds and bound code of decode attention in absorbed form, one new token per sequence.

    context: keys per sequence, the new one counted. n_heads: one GPU's share. latent, rope: widths
    of the two parts of the cache. mla: an MLA_DECODE row; device: a DEVICE row.
    """
    flops, moved = mla_decode_work(n_sequences, context, n_heads, latent, rope, mla)
    l2_bytes = mla.l2_fit_frac * device.l2_bytes
    cold_bytes = moved * _cold_frac(moved, warm_frac, l2_bytes)
    width = latent + rope
    convert_s, kv_bytes, peak = _conversion(n_sequences * context, width, mla, device)
    read = moved + n_sequences * context * width * (kv_bytes - mla.kv_element_bytes)
    hbm_s = read * _cold_frac(read, warm_frac, l2_bytes)
    hbm_s /= mla.hbm_frac * device.hbm_bytes_per_s

    rows = min(n_heads, mla.tile_rows)
    intake_bytes_per_s = mla.intake_bytes * device.clock_hz
    key_load_s = width * kv_bytes / intake_bytes_per_s
    products_per_s = mla.tensor_frac * peak / device.sm_count
    padded = math.ceil(rows / ROW_PAD) * ROW_PAD
    key_product_s = 2.0 * padded * (width + latent) / products_per_s
    key_s = max(key_load_s, key_product_s)
    fixed_s = (mla.cta_clocks + mla.row_clocks * rows) / device.clock_hz

    ctas = n_sequences * math.ceil(n_heads / mla.tile_rows)
    blocks = float(math.ceil(context / BLOCK_KEYS))
    limit = min(min(mla.most_splits, SPLIT_FILL * device.sm_count / ctas), blocks)
    limit = max(mla.least_splits, limit)
    best_s = math.inf
    splits = mla.least_splits
    searching = True
    while searching:
        keys = context
        joined_s = 0.0
        stream_s = hbm_s
        if splits > 1.0:
            keys = min(context, math.ceil(blocks / splits) * BLOCK_KEYS)
            joined_s = mla.combine_s
            parts = n_sequences * n_heads * splits * latent * PART_BYTES
            cold = _cold_frac(parts, warm_frac, l2_bytes)
            parts *= cold / mla.hbm_frac + (1.0 - cold) * L2_SPEED
            stream_s += parts / device.hbm_bytes_per_s
        rounds = _rounds(ctas * splits, device.sm_count)
        grid_s = rounds * (fixed_s + max(0.0, keys - mla.first_keys) * key_s)
        stream_s += EXPOSED * rounds * fixed_s
        best_s = min(best_s, _blend(grid_s, stream_s, mla.overlap) + joined_s)
        searching = splits < limit
        splits = min(2.0 * splits, limit)

    bound_s = max(flops / mla.peak_flops_per_s, cold_bytes / device.hbm_bytes_per_s)
    total_s = max(mla.launch_s + convert_s + best_s, bound_s)
    bound = BOUND_MEMORY
    if mla.launch_s + fixed_s >= 0.5 * total_s:
        bound = BOUND_LATENCY
    elif key_product_s > max(key_load_s, hbm_s * device.sm_count / (ctas * context)):
        bound = BOUND_COMPUTE
    return total_s, bound


@inner
def _prefill_widths(
    nope: float, rope: float, v_head_dim: float, latent: float, n_heads: float, mla: Any
) -> tuple[float, float, float]:
    """(width of a key, of a value, elements of a token's keys and values in all heads)."""
    if mla.absorbed > SWITCH:
        return latent + rope, latent, latent + rope
    return nope + rope, v_head_dim, n_heads * (nope + rope + v_head_dim)


@inner
def mla_prefill_work(
    n_sequences: float,
    new_tokens: float,
    context: float,
    n_heads: float,
    nope: float,
    rope: float,
    v_head_dim: float,
    latent: float,
    mla: Any,
) -> tuple[float, float]:
    """(FLOPs over visible pairs, compulsory bytes) of one causal prefill attention."""
    d_qk, d_v, kv = _prefill_widths(nope, rope, v_head_dim, latent, n_heads, mla)
    pairs = new_tokens * (context - 0.5 * (new_tokens - 1.0))
    flops = 2.0 * n_sequences * n_heads * pairs * (d_qk + d_v)
    queries = new_tokens * n_heads * (d_qk + d_v) * mla.query_element_bytes
    return flops, n_sequences * (queries + context * kv * mla.kv_element_bytes)


@inner
def mla_prefill_s(
    n_sequences: float,
    new_tokens: float,
    context: float,
    n_heads: float,
    nope: float,
    rope: float,
    v_head_dim: float,
    latent: float,
    mla: Any,
    device: Any,
    warm_frac: float = 0.0,
) -> tuple[float, int]:
    """Seconds and bound code of causal prefill attention.

    new_tokens: queries per sequence. context: keys per sequence, the new ones counted. n_heads:
    one GPU's share. nope, rope: parts of a key without and with rotation. latent: width of the
    cache without rope. mla: an MLA_PREFILL row; device: a DEVICE row.
    """
    flops, moved = mla_prefill_work(
        n_sequences, new_tokens, context, n_heads, nope, rope, v_head_dim, latent, mla
    )
    d_qk, d_v, _ = _prefill_widths(nope, rope, v_head_dim, latent, n_heads, mla)
    rows = mla.tile_rows
    if mla.absorbed > SWITCH:  # heads share keys, so they share tiles
        tiles = n_sequences * math.ceil(new_tokens * n_heads / rows)
        span = max(1.0, rows / n_heads)
    else:
        tiles = n_sequences * n_heads * math.ceil(new_tokens / rows)
        span = rows
    visible = context - 0.5 * (new_tokens - 1.0)
    mean_keys = min(context, visible + 0.5 * min(span, new_tokens))  # masked ones at the diagonal
    convert_s, _, peak = _conversion(n_sequences * context, latent + rope, mla, device)
    products_per_s = mla.tensor_frac * peak / device.sm_count
    pair_s = 2.0 * (d_qk + d_v) / products_per_s + mla.softmax_clocks / device.clock_hz
    fixed_s = mla.tile_clocks / device.clock_hz
    mean_s = fixed_s + rows * pair_s * (mean_keys + FILL_KEYS)
    longest_s = fixed_s + rows * pair_s * (context + FILL_KEYS)
    rounds = _rounds(tiles, device.sm_count)
    work_s = max(longest_s, rounds * mean_s + mla.tail_frac * (longest_s - mean_s))
    work_s *= 1.0 + mla.power_drop * math.log10(1.0 + work_s / LONG_KERNEL_S)

    cold = _cold_frac(moved, warm_frac, mla.l2_fit_frac * device.l2_bytes)
    hbm_s = moved * cold / device.hbm_bytes_per_s
    memory_s = hbm_s / PREFILL_HBM_FRAC
    memory_s += moved * (1.0 - cold) * L2_SPEED / device.hbm_bytes_per_s
    helpers_s = mla.passes * memory_s
    total_s = mla.launch_s + convert_s + _blend(work_s, memory_s, PREFILL_NORM) + helpers_s
    total_s = max(max(total_s, flops / mla.peak_flops_per_s), hbm_s)
    bound = BOUND_MEMORY
    if work_s > memory_s + helpers_s:
        bound = BOUND_COMPUTE
    if total_s > 2.0 * max(work_s, memory_s + helpers_s):
        bound = BOUND_LATENCY
    return total_s, bound


@jit
def mla_decode_many(
    n_sequences: Any,
    context: Any,
    n_heads: Any,
    latent: Any,
    rope: Any,
    warm_frac: Any,
    mla: Any,
    device: Any,
) -> Any:
    """Seconds of `mla_decode_s` for each element of equally long arrays.

    mla, device: arrays of records, one per element.
    """
    seconds = np.empty(len(n_sequences))
    for i in range(len(n_sequences)):
        seconds[i] = mla_decode_s(
            n_sequences[i], context[i], n_heads[i], latent[i], rope[i], mla[i], device[i],
            warm_frac[i],
        )[0]  # fmt: skip
    return seconds


@jit
def mla_prefill_many(
    n_sequences: Any,
    new_tokens: Any,
    context: Any,
    n_heads: Any,
    nope: Any,
    rope: Any,
    v_head_dim: Any,
    latent: Any,
    warm_frac: Any,
    mla: Any,
    device: Any,
) -> Any:
    """Seconds of `mla_prefill_s` for each element of equally long arrays.

    mla, device: arrays of records, one per element.
    """
    seconds = np.empty(len(n_sequences))
    for i in range(len(n_sequences)):
        seconds[i] = mla_prefill_s(
            n_sequences[i], new_tokens[i], context[i], n_heads[i], nope[i], rope[i],
            v_head_dim[i], latent[i], mla[i], device[i], warm_frac[i],
        )[0]  # fmt: skip
    return seconds
