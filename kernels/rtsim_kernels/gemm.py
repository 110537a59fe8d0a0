"""Time of a (batched) matrix product [m, k] x [k, n] on one GPU.

Formula. The kernel library picks the fastest of a list of output tiles (tm, tn) and split-K
factors s; the model does the same:

    tiles  = ceil(m/tm) ceil(n/tn) batch s
    waves  = tiles/SMs rounded up by the share `wave_round`, at least 1
    steps  = ceil(k / s / (128 bytes of elements))
    math   = waves (2 tm tn step_k steps (1 + edge/tm + edge/tn) / (peak/SMs compute_frac) slowed
             by power + tile_s/2)
    chain  = steps step_s                                  one tile's loop over k, latency-bound
    pull   = waves tile_bytes / (sm_bytes_per_clock clock)          what one SM can pull
    l2     = tiles tile_bytes / (l2_bytes_per_clock SMs clock)      what the L2 can serve
    dram   = bytes that miss the L2 / (hbm_frac bandwidth)
    t      = launch_s + tile_s + (math^p + chain^p + pull^p + l2^p + dram^p)^(1/p)
             + split_s when s > 1

and takes the smallest t. tile_bytes = (min(m,tm) a_bytes + min(n,tn) b_bytes) step_k steps
+ store_cost min(m,tm) min(n,tn) out_bytes: the operands of the loop and the result.

Cache residency. Cyclic re-use of W bytes in a cache of C bytes with random replacement misses
the share y that solves 1 - y = exp(-y W/C) (0 for W <= C); C = l2_use l2_bytes. Weights come
round after `weight_copies` copies of themselves (infinity: a whole model passes in between,
every byte comes from DRAM), activations and results after one call.

Run-time activation quantisation (gemm.quantize_bytes > 0) is a kernel before the product: its
own launch and one pass over the activations.

Monotone: no size may grow and time fall. Every candidate (tile, split) is monotone in m, n, k
and batch, so their minimum is. The smallest time is never below max(flops/peak, missing
bytes/bandwidth), since compute_frac and hbm_frac are at most 1.

Ignored: which kernel a library really picks (single shapes move by tens of per cent), rows and
columns that are not a multiple of 16 bytes (see fitting.gemm), clock differences between cards.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._jit import jit
from .tables import (
    BOUND_COMPUTE,
    BOUND_LATENCY,
    BOUND_MEMORY,
    Coefficient,
    coefficient_dtype,
)

GEMM_COEFFICIENTS = (
    Coefficient("launch_s", 2.0e-6, 0.3, 2e-7, 1e-4, "s", "start and end of a kernel"),
    Coefficient("compute_frac", 0.93, 0.08, 0.3, 1.0, "1", "share of peak in an endless tile"),
    Coefficient("hbm_frac", 0.82, 0.08, 0.3, 1.0, "1", "share of DRAM bandwidth when streaming"),
    Coefficient("l2_bytes_per_clock", 45.0, 0.5, 5.0, 250.0, "B/clock/SM", "what L2 can serve"),
    Coefficient("sm_bytes_per_clock", 60.0, 0.5, 5.0, 300.0, "B/clock/SM", "what an SM can pull"),
    Coefficient("tile_s", 0.6e-6, 0.5, 1e-8, 5e-6, "s", "fill and drain of one tile"),
    Coefficient("step_s", 9e-8, 0.5, 5e-9, 1e-6, "s", "latency of one 128-byte step along k"),
    Coefficient("edge", 4.0, 0.6, 0.2, 64.0, "elements", "loss of a tile on each of its edges"),
    Coefficient("power", 0.12, 0.5, 0.005, 0.8, "1", "slow-down of long compute-bound kernels"),
    Coefficient("l2_use", 0.7, 0.2, 0.1, 1.0, "1", "share of the L2 that holds re-used data"),
    Coefficient("overlap", 3.2, 0.3, 1.0, 12.0, "1", "p of the smooth maximum of the tracks"),
    Coefficient("split_s", 2.5e-6, 0.4, 1e-7, 1e-5, "s", "reduction after a split along k"),
    Coefficient("wave_round", 0.6, 0.5, 0.05, 1.0, "1", "how far a partial wave costs a full one"),
    Coefficient("store_cost", 3.0, 0.4, 0.3, 8.0, "1", "cost of a result byte to a read byte"),
    Coefficient("quantize_s", 2.0e-6, 0.4, 2e-7, 3e-5, "s", "start of the quantisation kernel"),
)

# The resolved row: number-format facts, then the coefficients.
GEMM = np.dtype(
    [
        ("peak_flops_per_s", np.float64),  # dense, of the math used
        ("a_bytes", np.float64),  # per activation element read by the product, scales included
        ("b_bytes", np.float64),  # per weight element, scales included
        ("out_bytes", np.float64),  # per result element
        ("quantize_bytes", np.float64),  # per activation element before quantisation; 0: none
        ("activation_copies", np.float64),  # sets of activations cycled through; 1 in a model
        *coefficient_dtype(GEMM_COEFFICIENTS).descr,
    ]
)

# Output tiles (rows of m, columns of n) and split factors that kernel libraries offer.
TILE_M = (16.0, 16.0, 32.0, 32.0, 64.0, 64.0, 64.0, 128.0, 128.0, 128.0, 256.0, 256.0)
TILE_N = (64.0, 128.0, 64.0, 128.0, 64.0, 128.0, 256.0, 64.0, 128.0, 256.0, 64.0, 128.0)
SPLITS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 48.0, 64.0)

STEP_BYTES = 128.0  # one step along k: a shared-memory row of every tensor-core kernel
PARTIAL_BYTES = 8.0  # a split-K partial result in fp32, written and read once
POWER_RISE_S = 3e-4  # a kernel of this length meets half of the power slow-down
ENDLESS_COPIES = 1e6  # from here on every weight comes from DRAM


@jit
def miss_frac(ratio: float) -> float:
    """Share of cyclically re-used bytes that miss a cache: y of 1 - y = exp(-ratio y).

    ratio: bytes cycled through over cache bytes. 0 up to 1, tends to 1 beyond. Newton from
    1 - 1/ratio^2, three steps: within 1e-4 for every ratio.
    """
    if ratio <= 1.0:
        return 0.0
    y = 1.0 - 1.0 / (ratio * ratio)
    for _ in range(3):
        kept = math.exp(-ratio * y)
        y -= (1.0 - y - kept) / (ratio * kept - 1.0)
    return max(y, 0.0)


@jit
def gemm_flops(m: float, n: float, k: float, batch: float) -> float:
    """Floating-point operations, a multiply-add counted as two: 2 m n k batch."""
    return 2.0 * m * n * k * batch


@jit
def gemm_bytes(m: float, n: float, k: float, batch: float, gemm: Any) -> float:
    """Bytes that must move once: activations, weights and result of every factor."""
    return batch * (m * k * gemm.a_bytes + n * k * gemm.b_bytes + m * n * gemm.out_bytes)


@jit
def gemm_dram_bytes(
    m: float, n: float, k: float, batch: float, weight_copies: float, gemm: Any, device: Any
) -> float:
    """Bytes of a call that the L2 does not hold (see `Cache residency` above)."""
    weights = batch * n * k * gemm.b_bytes
    activations = batch * m * k * gemm.a_bytes
    results = batch * m * n * gemm.out_bytes
    cache = gemm.l2_use * device.l2_bytes
    once = (weights + activations + results) / cache
    if weight_copies < ENDLESS_COPIES:
        cycled = weight_copies * weights + gemm.activation_copies * activations + results
        weight_miss = miss_frac(cycled / cache)
    else:
        weight_miss = 1.0
    result_miss = miss_frac(once)
    if gemm.activation_copies > 1.0:
        activation_miss = weight_miss
    else:
        activation_miss = result_miss
    return weights * weight_miss + activations * activation_miss + results * result_miss


@jit
def gemm_roofline_s(
    m: float, n: float, k: float, batch: float, weight_copies: float, gemm: Any, device: Any
) -> float:
    """No kernel is faster: max(flops / peak, bytes missing the L2 / DRAM bandwidth)."""
    return max(
        gemm_flops(m, n, k, batch) / gemm.peak_flops_per_s,
        gemm_dram_bytes(m, n, k, batch, weight_copies, gemm, device) / device.hbm_bytes_per_s,
    )


@jit
def quantize_s(m: float, k: float, batch: float, gemm: Any, device: Any) -> float:
    """The kernel that turns activations into the product's format; 0 where there is none."""
    if gemm.quantize_bytes <= 0.0:
        return 0.0
    elements = batch * m * k
    moved = elements * (gemm.quantize_bytes + gemm.a_bytes)
    missing = moved * miss_frac(moved / (gemm.l2_use * device.l2_bytes))
    return gemm.quantize_s + max(
        missing / (gemm.hbm_frac * device.hbm_bytes_per_s),
        moved / (gemm.l2_bytes_per_clock * device.sm_count * device.clock_hz),
    )


@jit
def candidate_tracks(
    m: float,
    n: float,
    k: float,
    batch: float,
    tm: float,
    tn: float,
    split: float,
    gemm: Any,
    device: Any,
) -> tuple[float, float, float]:
    """Seconds of (math, chain, traffic) of one tile and split: formulas above."""
    step_k = STEP_BYTES / gemm.a_bytes
    steps = math.ceil(k / (split * step_k))
    tiles = math.ceil(m / tm) * math.ceil(n / tn) * batch * split
    share = tiles / device.sm_count
    waves = max(1.0, share + gemm.wave_round * (math.ceil(share) - share))
    rows = min(m, tm)
    columns = min(n, tn)
    stored = gemm.out_bytes if split == 1.0 else PARTIAL_BYTES
    tile_bytes = (
        rows * gemm.a_bytes + columns * gemm.b_bytes
    ) * steps * step_k + gemm.store_cost * rows * columns * stored
    sm_flops_per_s = gemm.compute_frac * gemm.peak_flops_per_s / device.sm_count
    tile_math = (
        2.0 * tm * tn * steps * step_k * (1.0 + gemm.edge * (1.0 / tm + 1.0 / tn)) / sm_flops_per_s
    )
    busy = waves * tile_math
    compute = busy * (1.0 + gemm.power * busy / (busy + POWER_RISE_S)) + waves * 0.5 * gemm.tile_s
    chain = steps * gemm.step_s
    traffic = (
        tile_bytes
        / device.clock_hz
        * max(waves / gemm.sm_bytes_per_clock, share / gemm.l2_bytes_per_clock)
    )
    return compute, chain, traffic


@jit
def gemm_s(
    m: float, n: float, k: float, batch: float, weight_copies: float, gemm: Any, device: Any
) -> tuple[float, int]:
    """Seconds and what bounds them (a BOUND_* code) of `batch` products [m, k] x [k, n].

    weight_copies: sets of weights that the caller cycles through before re-use: about 5 in
    micro-benchmarks, infinity in a model. gemm: a GEMM row; device: a DEVICE row. Batched
    factors have weights and activations of their own.
    """
    dram = gemm_dram_bytes(m, n, k, batch, weight_copies, gemm, device) / (
        gemm.hbm_frac * device.hbm_bytes_per_s
    )
    p = gemm.overlap
    step_k = STEP_BYTES / gemm.a_bytes
    best = math.inf
    best_compute = 0.0
    best_memory = 0.0
    for i in range(len(TILE_M)):
        for split in SPLITS:
            # A row of one (GEMV kernels) reduces inside the block.
            extra = gemm.split_s if split > 1.0 and m > 1.0 else 0.0
            if dram + extra >= best:
                break
            compute, chain, traffic = candidate_tracks(
                m, n, k, batch, TILE_M[i], TILE_N[i], split, gemm, device
            )
            top = max(compute, chain, traffic, dram)
            if top + extra < best:
                total = extra + top * (
                    (compute / top) ** p
                    + (chain / top) ** p
                    + (traffic / top) ** p
                    + (dram / top) ** p
                ) ** (1.0 / p)
                if total < best:
                    best = total
                    best_compute = compute
                    best_memory = max(dram, traffic)
            if k <= split * step_k:
                break  # one step is left: a finer split only adds tiles
    fixed = gemm.launch_s + gemm.tile_s + quantize_s(m, k, batch, gemm, device)
    bound = BOUND_MEMORY
    if best_compute > best_memory:
        bound = BOUND_COMPUTE
    if fixed + best > 2.0 * max(best_compute, best_memory):
        bound = BOUND_LATENCY
    return fixed + best, bound


@jit
def gemm_many(
    m: Any, n: Any, k: Any, batch: Any, weight_copies: Any, gemm: Any, device: Any
) -> Any:
    """`gemm_s` over arrays of sizes, shape (rows,) each -> seconds, shape (rows,)."""
    seconds = np.empty(len(m))
    for i in range(len(m)):
        seconds[i] = gemm_s(m[i], n[i], k[i], batch[i], weight_copies[i], gemm, device)[0]
    return seconds
