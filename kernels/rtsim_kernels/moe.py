"""Time of a fused mixture-of-experts (MoE) layer on one GPU.

Routing, sorting of tokens by expert, a grouped matrix product up (and gate), the activation, a
grouped product down, and the weighted sum of each token's experts; no communication. `top_k`
experts see each token, `n_local_experts` of `n_experts` are kept on this GPU, each `expert_width`
wide there (its width over the tensor-parallel degree), with `matrices` 3 (gated) or 2.

**Load.** A token goes to one expert at most once, so an expert gets top_k/n_experts of them on
average. `skew` is the exponent a of a power law, density x^-a on [1, R], that relative loads follow
(0: all alike), with R = 0.8 tokens, or 200 where there are fewer visits than experts: how
benchmarks of skewed routing draw it. Loads y are its quantiles scaled to the mean. An expert
whose share is less than a token is visited with that probability, so

    visited = local experts * mean min(1, y)

which for evenly dealt tokens is min(experts, tokens top_k). Of several GPUs (n_local_experts <
n_experts) the fullest is timed, since all wait for it: its load is above the mean by
sqrt(2 ln(GPUs) var(y) / n_local_experts), the expected largest of that many sums.

**Grouped product**, rows of an expert against its own weights [n, k], n and k being the two
widths. Tiles of tile_rows x tile_columns, the fastest of a list:

    tiles  = sum over experts of (min(1, y), or y / tile_rows half rounded up) * n / tile_columns
    waves  = tiles / SMs, partly rounded up, at least 1
    body   = waves * tile FLOPs / (compute_frac peak / SMs) * power + fill
    stream = (weights of visited experts, rows in and out that miss the L2) / (hbm_frac HBM) * slow
    t      = p-norm(body, stream), exponent `overlap`

Re-used data are in the L2 as far as it holds them (l2_use, l2_partitions; `Cache residency` in
gemm.py). Which experts come round changes from call to call, so even an L2 that all SMs share turns
over slowly.

slow = 1 + drag r^2 / (r^2 + 64), r rows per visited expert: from about eight rows on kernels
with wider tiles take over, which keep fewer loads in flight. power = 1 + power_drop log10(1 +
busy / 0.1 ms): clocks fall in long kernels.

**The rest**: launch_s for all launches, row_s per routed row (sorting), and `passes` over the
rows outside the products (permute, quantise, activate, sum), from HBM or from L2 where they fit.
Some stacks run these passes over rows that belong to other GPUs too, to the extent `remote_frac`.

Narrow formats: weights move as stored, the product runs at the peak of its math format; the cost
of unpacking 4-bit weights is in compute_frac.

Monotone in tokens, sizes, experts per token and experts kept; never below `moe_roofline_s`.

Not modelled: backends chosen by shape within a stack (sections of their own), tuned tile tables
(single shapes move by half), group-limited routing (fewer experts are visited), shared experts
(plain products).

Sources: grouped products as in MegaBlocks (Gale et al. 2022, arXiv:2211.15841) and vLLM's
fused_moe; loads as aiconfigurator's benchmarks state them (`power_law_a`); constants and priors
from its tables of vLLM, SGLang and TensorRT-LLM on A100, H100, B200, L40S. Known error on rows
outside the fit, 64 fitted per stack, GPU and format: 11 % with all experts on one GPU, 17 % with
fewer, 13 % over both; 16 bits on a GPU left out of a joint fit: 18 %. Worst: weight-only formats
(Marlin) on a GPU left out, experts of SGLang's Marlin kernels over several GPUs (30 %).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ._jit import inner, jit
from .gemm import ENDLESS_COPIES, PARTITION_EDGE, kept_bytes, miss_frac
from .tables import (
    BOUND_COMPUTE,
    BOUND_LATENCY,
    BOUND_MEMORY,
    Coefficient,
    coefficient_dtype,
)

MOE_COEFFICIENTS = (
    Coefficient("launch_s", 2.7e-5, 0.5, 2e-6, 2e-4, "s",
                "start and end of all kernels of a layer"),
    Coefficient("row_s", 3e-10, 1.4, 1e-12, 1e-7, "s", "sorting one token's visit to one expert"),
    Coefficient("compute_frac", 0.72, 0.3, 0.05, 1.0, "1",
                "math rate of a tile, unpacking of weights in, share of the peak"),
    Coefficient("power_drop", 0.11, 0.6, 0.002, 1.5, "1",
                "slow-down per tenfold length of a kernel beyond 0.1 ms (power limit)"),
    Coefficient("hbm_frac", 0.86, 0.12, 0.1, 1.0, "1", "share of the DRAM bandwidth reached"),
    Coefficient("l2_use", 0.7, 0.4, 0.05, 2.0, "1",
                "share of a part of the L2 that keeps re-used data"),
    Coefficient("tile_s", 1.7e-6, 0.7, 1e-8, 5e-5, "s", "fill and drain of a wave of tiles"),
    Coefficient("wave_round", 0.6, 0.6, 0.05, 1.0, "1",
                "share of a full wave that a partial one costs beyond its work"),
    Coefficient("passes", 1.7, 0.75, 0.05, 20.0, "1",
                "passes over the routed rows outside the products"),
    Coefficient("overlap", 2.5, 0.4, 1.0, 12.0, "1", "exponent that joins math and streaming"),
    Coefficient("drag", 0.12, 1.0, 0.001, 3.0, "1",
                "slower streaming of weights with many rows per expert than with few"),
    Coefficient("remote_frac", 0.5, 1.5, 0.001, 1.0, "1",
                "part of the rows of other GPUs' experts that the passes touch"),
    Coefficient("least_rows", 16.0, 0.8, 4.0, 280.0, "rows",
                "rows of the smallest tile: a smaller one costs as much math"),
)  # fmt: skip

# The resolved row: number-format facts, then the coefficients.
MOE = np.dtype(
    [
        ("peak_flops_per_s", np.float64),  # dense, of the math used
        ("a_bytes", np.float64),  # per activation element read by a product, scales included
        ("b_bytes", np.float64),  # per weight element, scales included
        ("out_bytes", np.float64),  # per element before and after the layer
        ("weight_copies", np.float64),  # layers cycled through before re-use; endless in a model
        ("l2_partitions", np.float64),  # parts of the L2 that each keep what all SMs read
        *coefficient_dtype(MOE_COEFFICIENTS).descr,
    ]
)

TILE_M = (8.0, 16.0, 32.0, 64.0, 128.0, 128.0)
TILE_N = (128.0, 128.0, 128.0, 128.0, 128.0, 256.0)
EDGE = 3.2  # elements lost on each edge of a tile, as in gemm.py
HALF = 0.5  # part of a partly filled tile of rows that is waste, on average over experts
POINTS = 24.0  # quantiles of the loads
RANGE_FEW = 200.0  # largest over smallest load with fewer visits than experts
RANGE_PER_TOKEN = 0.8  # the same, per token, with more
DRAG_ROWS = 8.0  # rows per expert at which half of the drag is there
LONG_KERNEL_S = 1e-4
L2_SPEED = 0.3  # time of a byte out of the L2 over that of one out of DRAM


class Load(NamedTuple):
    """What the experts of one GPU have to do in one layer."""

    rows: float  # visits of tokens to local experts
    visited: float  # local experts with at least one of them
    blocks: tuple[float, float, float, float, float]  # tiles of 8, 16, 32, 64, 128 rows


@inner
def quantile(u: float, spread: float, skew: float) -> float:
    """Relative load below which a share u of the experts lies: density x^-skew on [1, spread]."""
    power = 1.0 - skew
    if abs(power) < 1e-6:
        return float(spread**u)
    return float((1.0 + u * (spread**power - 1.0)) ** (1.0 / power))


@inner
def spread_of(n_tokens: float, n_experts: float, top_k: float) -> float:
    """Largest over smallest load of a skewed routing."""
    if n_tokens * top_k > n_experts:
        return max(1.0, RANGE_PER_TOKEN * n_tokens)
    return max(RANGE_FEW, RANGE_PER_TOKEN * n_experts / top_k)


@inner
def _mean_quantile(spread: float, skew: float, n_points: float) -> float:
    total = 0.0
    for i in range(int(n_points)):
        total += quantile((i + 0.5) / n_points, spread, skew)
    return total / n_points


@inner
def fullest_over_mean(n_experts: float, n_local_experts: float, skew: float) -> float:
    """Load of the GPU with most of it over the mean of all GPUs; 1 for one GPU or even loads."""
    n_ranks = n_experts / n_local_experts
    if skew <= 0.0 or n_ranks <= 1.0:
        return 1.0
    mean = _mean_quantile(RANGE_FEW, skew, POINTS)
    square = 0.0
    for i in range(int(POINTS)):
        share = quantile((i + 0.5) / POINTS, RANGE_FEW, skew) / mean
        square += share * share
    variance = square / POINTS - 1.0
    above = math.sqrt(2.0 * math.log(n_ranks) * variance / n_local_experts)
    top = quantile((POINTS - 0.5) / POINTS, RANGE_FEW, skew) / mean
    return min(min(1.0 + above, top), n_ranks)


@inner
def load_of(
    n_tokens: float,
    n_experts: float,
    n_local_experts: float,
    top_k: float,
    skew: float,
    drawn: bool = False,
) -> Load:
    """Rows, visited experts and tiles of rows of one GPU, see `Load` above.

    drawn: without skew, tokens draw their experts at random, as in a model, where benchmarks deal
    them evenly: an expert is then visited with probability 1 - (1 - k/E)^T.
    """
    fullest = fullest_over_mean(n_experts, n_local_experts, skew)
    mean = n_tokens * top_k / n_experts * fullest
    n_points = 1.0
    scale = mean
    spread = 1.0
    if skew > 0.0:
        n_points = min(POINTS, float(math.ceil(n_experts)))
        spread = spread_of(n_tokens, n_experts, top_k)
        scale = mean / _mean_quantile(spread, skew, n_points)
    visited = 0.0
    b8 = 0.0
    b16 = 0.0
    b32 = 0.0
    b64 = 0.0
    b128 = 0.0
    for i in range(int(n_points)):
        y = scale
        if skew > 0.0:
            y *= quantile((i + 0.5) / n_points, spread, skew)
        once = min(1.0, y)
        if drawn and skew <= 0.0 and y > 0.0:
            once = min(once, 1.0 - max(0.0, 1.0 - top_k / n_experts) ** n_tokens)
        visited += once
        share = once if drawn and once > 0.0 else 1.0  # those visited have the more rows each
        b8 += max(once, share * tiles_of(y / share, 8.0))
        b16 += max(once, share * tiles_of(y / share, 16.0))
        b32 += max(once, share * tiles_of(y / share, 32.0))
        b64 += max(once, share * tiles_of(y / share, 64.0))
        b128 += max(once, share * tiles_of(y / share, 128.0))
    each = n_local_experts / n_points
    blocks = (b8 * each, b16 * each, b32 * each, b64 * each, b128 * each)
    return Load(mean * n_local_experts, visited * each, blocks)


@inner
def tiles_of(rows: float, tile_rows: float) -> float:
    """Tiles of one expert, the last one counted as HALF full on average; 0 below one tile."""
    parts = rows / tile_rows
    if parts < 1.0:
        return 0.0
    return parts + HALF * (math.ceil(parts) - parts)


@inner
def moe_work(
    n_tokens: float,
    hidden_size: float,
    expert_width: float,
    n_experts: float,
    n_local_experts: float,
    top_k: float,
    matrices: float,
    skew: float,
    moe: Any,
) -> tuple[float, float]:
    """(FLOPs, bytes) of one layer on one GPU: products of the routed rows; weights of visited
    experts once, tokens in, results out. A multiply-add counts two.
    """
    drawn = moe.weight_copies >= ENDLESS_COPIES
    load = load_of(n_tokens, n_experts, n_local_experts, top_k, skew, drawn)
    weights = matrices * expert_width * hidden_size
    moved = load.visited * weights * moe.b_bytes + 2.0 * n_tokens * hidden_size * moe.out_bytes
    return 2.0 * load.rows * weights, moved


@inner
def _product_s(
    n: float, k: float, load: Any, stream_s: float, moe: Any, sm_count: float
) -> tuple[float, float]:
    """(seconds, of which body) of one grouped product, without launch."""
    flop_s = sm_count / (moe.compute_frac * moe.peak_flops_per_s)
    best = math.inf
    best_body = 0.0
    for t in range(len(TILE_M)):
        tile_m = TILE_M[t]
        tile_n = TILE_N[t]
        tiles = load.blocks[t if t < len(TILE_M) - 2 else len(TILE_M) - 2] * max(1.0, n / tile_n)
        waves = tiles / sm_count
        waves = max(1.0, waves + moe.wave_round * (math.ceil(waves) - waves))
        area = max(tile_m, moe.least_rows) * tile_n
        busy = waves * 2.0 * area * k * (1.0 + EDGE / tile_m + EDGE / tile_n) * flop_s
        body = busy * (1.0 + moe.power_drop * math.log10(1.0 + busy / LONG_KERNEL_S))
        body += (1.0 + (waves - 1.0) * moe.wave_round) * moe.tile_s
        high = max(body, stream_s)
        low = min(body, stream_s) / high
        seconds = high * (1.0 + low**moe.overlap) ** (1.0 / moe.overlap)
        if seconds < best:
            best = seconds
            best_body = body
    return best, best_body


@inner
def moe_s(
    n_tokens: float,
    hidden_size: float,
    expert_width: float,
    n_experts: float,
    n_local_experts: float,
    top_k: float,
    matrices: float,
    skew: float,
    moe: Any,
    device: Any,
) -> tuple[float, int]:
    """Seconds and bound code of one MoE layer on one GPU.

    n_tokens: tokens that enter the layer, on all GPUs that share its experts. expert_width: this
    GPU's share of an expert's width. skew: exponent of the power law of loads, 0 for even loads.
    moe: a MOE row; device: a DEVICE row.
    """
    drawn = moe.weight_copies >= ENDLESS_COPIES
    load = load_of(n_tokens, n_experts, n_local_experts, top_k, skew, drawn)
    up = (matrices - 1.0) * expert_width
    weight_bytes = load.visited * (up + expert_width) * hidden_size * moe.b_bytes
    remote = moe.remote_frac * max(0.0, n_tokens * top_k - load.rows)
    touched = load.rows + remote
    row_bytes = n_tokens * hidden_size + touched * (up + expert_width + hidden_size)
    row_bytes *= moe.out_bytes

    cache = kept_bytes(moe, device)
    row_miss = miss_frac((weight_bytes + row_bytes) / cache, PARTITION_EDGE)
    weight_miss = 1.0
    if moe.weight_copies < ENDLESS_COPIES:
        weight_miss = miss_frac(
            (moe.weight_copies * weight_bytes + row_bytes) / cache, PARTITION_EDGE
        )
    hbm = moe.hbm_frac * device.hbm_bytes_per_s
    crowd = load.rows / load.visited / DRAG_ROWS
    slow = 1.0 + moe.drag * crowd * crowd / (1.0 + crowd * crowd)

    up_bytes = load.visited * up * hidden_size * moe.b_bytes * weight_miss
    up_bytes += (n_tokens * hidden_size * moe.a_bytes + load.rows * up * moe.out_bytes) * row_miss
    down_bytes = load.visited * expert_width * hidden_size * moe.b_bytes * weight_miss
    moved = expert_width * moe.a_bytes + hidden_size * moe.out_bytes
    down_bytes += load.rows * moved * row_miss
    up_s, up_body = _product_s(up, hidden_size, load, up_bytes * slow / hbm, moe, device.sm_count)
    down_s, down_body = _product_s(
        hidden_size, expert_width, load, down_bytes * slow / hbm, moe, device.sm_count
    )
    passes_s = moe.passes * row_bytes
    passes_s *= row_miss / hbm + (1.0 - row_miss) * L2_SPEED / device.hbm_bytes_per_s
    total = moe.launch_s + touched * moe.row_s + passes_s + up_s + down_s

    flops = 2.0 * load.rows * (up + expert_width) * hidden_size
    math_s = flops / moe.peak_flops_per_s
    bound_s = max(math_s, weight_bytes * weight_miss / device.hbm_bytes_per_s)
    seconds = max(total, bound_s)
    body = up_body + down_body
    stream = (up_bytes + down_bytes) / hbm + passes_s
    bound = BOUND_MEMORY
    if body > stream:
        bound = BOUND_COMPUTE
    if seconds > 2.0 * max(body, stream):
        bound = BOUND_LATENCY
    return seconds, bound


@inner
def moe_roofline_s(
    n_tokens: float,
    hidden_size: float,
    expert_width: float,
    n_experts: float,
    n_local_experts: float,
    top_k: float,
    matrices: float,
    skew: float,
    moe: Any,
    device: Any,
) -> float:
    """No layer is faster: max(FLOPs / peak, bytes / HBM bandwidth) with weights out of DRAM."""
    flops, moved = moe_work(
        n_tokens, hidden_size, expert_width, n_experts, n_local_experts, top_k, matrices, skew, moe
    )
    tokens = 2.0 * n_tokens * hidden_size * moe.out_bytes  # may stay in the L2
    return max(flops / moe.peak_flops_per_s, (moved - tokens) / device.hbm_bytes_per_s)


@jit
def moe_many(
    n_tokens: Any,
    hidden_size: Any,
    expert_width: Any,
    n_experts: Any,
    n_local_experts: Any,
    top_k: Any,
    matrices: Any,
    skew: Any,
    moe: Any,
    device: Any,
) -> Any:
    """Seconds of `moe_s` for each element of equally long arrays; one MOE and one DEVICE row."""
    seconds = np.empty(len(n_tokens))
    for i in range(len(n_tokens)):
        seconds[i] = moe_s(
            n_tokens[i], hidden_size[i], expert_width[i], n_experts[i], n_local_experts[i],
            top_k[i], matrices[i], skew[i], moe, device,
        )[0]  # fmt: skip
    return seconds
