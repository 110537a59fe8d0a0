"""Time of a (batched) matrix product [m, k] x [k, n] on one GPU.

Formula. A kernel library picks one of several output tiles (tm, tn) and split-K factors s; the
model takes the fastest:

    tiles   = round_up(m/tm) round_up(n/tn) batch s            round_up(x) = x + tile_round
    waves   = tiles/SMs + wave_round (ceil(tiles/SMs) - tiles/SMs)          (ceil(x) - x), >= 1
    steps   = ceil(k / s / (128 bytes of elements))                       loop of one tile over k,
                                                     in halves before Hopper (`least_step`)
    area    = max(tm, min(least_rows, m)) max(tn, least_columns)
    math    = 2 area step_k steps (1 + EDGE/tm + EDGE/tn) / (compute_frac peak/SMs)
    power   = 1 + power_drop log10(1 + waves math / 100 us)             clocks fall in long kernels
    body    = waves math power + (1 + (waves - 1) wave_round) (fill/2 + store)
    chain   = steps step_s sqrt(2.9e12 / 16-bit FLOPs per s and SM)      latency of one loop over k
    traffic = max(waves tile_bytes SMs sm_edge, tiles tile_bytes l2_edge) / (a_bytes peak)
    dram    = d + ramp_s d / (d + ramp_s),   d = bytes missing the L2 / (hbm_frac bandwidth)
    t       = launch + start min(1, tiles/SMs) + fill
              + (body^3 + chain^3 + traffic^3 + dram^3)^(1/3) + split_s if s > 1
    answer  = (t^6 + (2 m n k batch / (power_frac peak))^6)^(1/6)        of the fastest candidate

with tile_bytes = (min(m,tm) a_bytes + min(n,tn) b_bytes) step_k steps + store_cost min(m,tm)
min(n,tn) out_bytes, store the last term at the rate of one SM, fill = fill_clocks/clock (less
for loops shorter than four steps), launch = launch_clocks/clock, start = start_clocks/clock: a
kernel on one SM starts and ends sooner than one on all of them (1.9 against 2.2 us on B200).

Persistent kernels (Hopper and later) hide the store of one tile behind the loop of the next
and spread the last wave: their `wave_round` is near 0.15, that of classic ones near 0.8.
l2_edge is the edge of a square tile at which the L2 just keeps the tensor cores of the whole GPU
busy; sm_edge the same for the path of one SM. As lengths they hold on
SMs of 1,024 to 8,192 FLOPs per clock, where bytes per clock do not.

A library runs no tile below `least_rows` by `least_columns`: smaller candidates cost as much
math. Narrow formats run tiles of 64-200 rows unless m is less, which the min in `area` says;
batched fp32 products one of 128 x 128 or 64 x 128 whatever their size, so there is no min there.

A heuristic rather than a trial may pick the kernel: for more than 64 rows and `largest_waves` waves
of the largest tile, no smaller one is tried. cuBLAS on A100 (1 wave) takes two waves of 128 x 256
where three of 128 x 128 would end 20 % sooner. Libraries that try their kernels never do so.

Ordinary cores (4-byte activations) have tiles and a depth of their own (CORE_*). Their math is
slower by 1 + long_row_cost log2(1 + row bytes / 32 KiB), rows being k long (P100: by half at
64 KiB; others by a few per cent). Where a board sustains less than the datasheet's rate
(gemm.peak_flops_per_s < device.vector_flops_per_s), a product starts at the latter and
approaches the former: busy *= 1 + (ratio - 1) busy / (busy + 0.6 ms). T4 falls to half within 3 ms.

Cache residency. An L2 that evicts the oldest keeps all of W bytes that come round and round while
they fit its C bytes, and none of them once they do not: missing = r^e / (1 + r^e), r = W/C. One L2
for all SMs turns over at once (L40S: weights of 96 MiB in all run at 1.2-2 TB/s, of 105 MiB at
the 0.65 of DRAM; e = 24), two partitions slowly (e = 4), and those keep KEPT_TWICE of the data on
both sides: A100, H100 and B200 hold 66-70 % of their L2, as the same weights cycled five times by
one benchmark and six times by another tell. C = l2_use l2_bytes / (1 + KEPT_TWICE (parts - 1)).
Weights come round after `weight_copies` copies of themselves (infinity: a whole model passes in
between, every byte comes from DRAM), activations and results after one call. Operands that outgrow
the cache are read again by every block of tiles that is in flight together.

Power. A board that multiplies in one replay after another draws what its limit allows: B200 and
L40S sustain 0.7-0.8 of their peak, H100 0.85, A100 at 400 W all of it. Products that keep part of
the SMs busy, or wait for memory, stay below the limit and run at a higher clock, so this bounds the
whole product and not the rate of a tile. The boards of two tables may differ in it: large products
on L40S take 0.50-0.75 of the peak in one table and another.

Run-time activation quantisation (gemm.quantize_bytes > 0) is a kernel before the product: its
own launch and one pass over the activations.

Monotone (aligned sizes): no size grows and time falls, since every candidate grows with m, n, k
and batch, and so does their minimum. Never below `gemm_roofline_s`: rates are at most the peaks,
except that compute_frac may pass 1 (short kernels run above the clock at which tensor rates are
stated), and there the bound itself is the answer.

Misaligned rows (n or k not a multiple of 16 bytes) fall off the tensor cores' fast path: the work
is slower by misaligned_cost per halving of the alignment (8, 4, 2 bytes). So time does not fall
as sizes grow among aligned sizes, or among sizes of one alignment, but padding up to the next
aligned size may be faster, as it is on the hardware. Products of a single
row (m = 1) stream and do not care. Evidence: prompt passes of unfused attention at 428 tokens
(rows of 8-byte alignment) against 384 and 472; the tables of plain products hold no misaligned
16-bit row, so fits leave the coefficient at its prior.

Not modelled: TF32 (4-byte activations count as ordinary cores); the kernel that a library really
picks, where more work then takes less time. On L40S a product of less than 2^21 multiply-adds is
never split along k (31 us at 8 x 32 x 7,168, 5 us at 10 x 32 x 7,168), nor is one of 1,536 columns
and more with k below 3 n. vLLM's fp8 kernel of 4,096 < n <= 8,192 there is 20-30 % slower than that
of 12,288, and those of 16 < m <= 64 20 % slower than its others. On A100 k = 128 takes as long as
k = 256, and k = 768 longer than 1,024. In sarathi-serve's table of H100 products of 257-384 rows
take 30-80 % longer in some waves. Single shapes move by tens of per cent.

What limits 16-bit predictions (mean over GPUs, unseen rows): 7.7 % with 64 rows of each stack,
7.1 % with 1,000. Boosted trees over the residuals of thousands of rows, which need not rise with
the sizes, leave 3-6 % on A100, A40, H100 and B200 and 8 % on L40S, where tables of two releases of
one stack differ by 7-12 %. Which rows are fitted matters little (twelve choices of 64 by four
designs: 0.3 points), other tile lists, exponents of the overlap or limits to the splits nothing.

Sources: tiles, waves and split-K as in CUTLASS; constants and priors from measured bf16 GEMMs on
A100, H100, B200, L40S and A40. Known error: docs/accuracy.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ._jit import inner, jit
from .tables import (
    BOUND_COMPUTE,
    BOUND_LATENCY,
    BOUND_MEMORY,
    Coefficient,
    coefficient_dtype,
)

GEMM_COEFFICIENTS = (
    Coefficient("launch_clocks", 4300.0, 0.22, 200.0, 2e5, "clocks",
                "start and end of a kernel, also of an empty one"),
    Coefficient("start_clocks", 700.0, 0.6, 1.0, 2e4, "clocks",
                "longer start and end of a kernel on all SMs than on one"),
    Coefficient("compute_frac", 0.93, 0.08, 0.2, 1.12, "1",
                "math rate of an endless tile in a short kernel, share of the peak"),
    Coefficient("power_drop", 0.10, 0.5, 0.005, 1.5, "1",
                "slow-down per tenfold length of a kernel beyond 0.1 ms (power limit)"),
    Coefficient("power_frac", 100.0, 0.1, 0.1, 1000.0, "1",
                "math rate that the power limit lets through, share of the peak (100: all)"),
    Coefficient("hbm_frac", 0.82, 0.06, 0.2, 1.0, "1", "share of the DRAM bandwidth reached"),
    Coefficient("ramp_s", 1.15e-6, 0.4, 1e-8, 1e-5, "s", "time until DRAM streams at full rate"),
    Coefficient("l2_use", 1.0, 0.1, 0.1, 1.2, "1",
                "share of the L2, or of one of its partitions, that keeps re-used data"),
    Coefficient("l2_edge", 107.0, 0.22, 2.0, 1000.0, "elements",
                "square tile at which the L2 keeps up with the math of the GPU"),
    Coefficient("sm_edge", 60.0, 0.15, 2.0, 1000.0, "elements",
                "square tile at which one SM's path to the L2 keeps up with its math"),
    Coefficient("store_cost", 4.4, 0.45, 0.1, 20.0, "1", "read bytes that a result byte costs"),
    Coefficient("fill_clocks", 480.0, 0.7, 10.0, 1e4, "clocks", "first loads and drain of a tile"),
    Coefficient("step_s", 1.6e-7, 0.27, 5e-9, 2e-6, "s",
                "latency of a 128-byte step along k on an SM of 2.9e12 FLOPs per s"),
    Coefficient("split_s", 2.45e-6, 0.2, 1e-7, 1e-3, "s",
                "reduction after a split along k (very long: no split is offered)"),
    Coefficient("wave_round", 0.4, 0.9, 0.05, 1.0, "1",
                "share of a full wave that a partial one costs beyond its work"),
    Coefficient("tile_round", 0.66, 0.3, 0.05, 1.0, "1",
                "share of a full tile that a partial one costs beyond its work"),
    Coefficient("least_rows", 16.0, 0.5, 4.0, 280.0, "elements",
                "rows of the smallest tile the library runs: a smaller one costs as much"),
    Coefficient("least_columns", 64.0, 0.5, 4.0, 280.0, "elements", "columns of it"),
    Coefficient("largest_waves", 1000.0, 7.0, 0.5, 1e6, "waves",
                "waves of the largest tile from which a library tries no smaller one"),
    Coefficient("long_row_cost", 0.03, 1.2, 0.001, 1.5, "1",
                "slow-down per doubling of rows beyond 32 KiB, ordinary cores"),
    Coefficient("misaligned_cost", 1.0, 0.5, 0.05, 5.0, "1",
                "slow-down per halving of the alignment of rows below 16 bytes"),
    Coefficient("quantize_s", 2.5e-6, 0.4, 1e-7, 5e-5, "s", "start of the quantisation kernel"),
    Coefficient("quantize_row_s", 3e-10, 1.5, 1e-12, 1e-7, "s",
                "quantisation per row: blocks that update one scale take turns"),
    Coefficient("quantize_reads", 1.5, 0.4, 1.0, 4.0, "1",
                "times that quantisation reads the activations (twice to find a scale first)"),
)  # fmt: skip

# The resolved row: number-format facts, then the coefficients.
GEMM = np.dtype(
    [
        ("peak_flops_per_s", np.float64),  # dense, of the math used
        ("a_bytes", np.float64),  # per activation element read by the product, scales included
        ("b_bytes", np.float64),  # per weight element, scales included
        ("out_bytes", np.float64),  # per result element
        ("quantize_bytes", np.float64),  # per activation element before quantisation; 0: none
        ("activation_copies", np.float64),  # sets of activations cycled through; 1 in a model
        ("least_step", np.float64),  # part of a step along k in which loops are whole: 1, 0.5
        ("l2_partitions", np.float64),  # 2: data that SMs of both sides read are kept twice
        *coefficient_dtype(GEMM_COEFFICIENTS).descr,
    ]
)

# Output tiles (rows of m, columns of n) and split factors. Six tiles predict held-out rows as
# well as twelve, half of them without the corners (measured on six GPUs).
TILE_M = (16.0, 32.0, 64.0, 64.0, 128.0, 128.0)
TILE_N = (64.0, 64.0, 64.0, 128.0, 128.0, 256.0)
SPLITS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0)

# Ordinary cores (fp32): tiles of cuBLAS' sgemm kernels, by their names; 8 elements of k a step.
CORE_TILE_M = (32.0, 32.0, 128.0, 64.0, 64.0, 128.0, 128.0)
CORE_TILE_N = (32.0, 128.0, 32.0, 64.0, 128.0, 64.0, 128.0)
CORE_STEP_BYTES = 32.0
CORE_EDGE = 7.5  # 6-14 from the rates of single kernels on V100 and A100

EDGE = 3.2  # elements lost on each edge of a tile; 2.7-3.6 when fitted on each of six GPUs
STEP_BYTES = 128.0  # one step along k: a shared-memory row of every tensor-core kernel
FILL_STEPS = 4.0  # depth of the load pipeline: shorter loops fill less of it
LEAST_FILL = 0.5 / FILL_STEPS  # half a fill of a loop of one step, which every kernel pays
STEP_SM_FLOPS_PER_S = 2.9e12  # 16-bit rate of the SM at which step_s is stated (A100)
STEP_ELEMENT_BYTES = 2.0
PARTIAL_BYTES = 4.0  # a split-K partial result in fp32; reading it back is part of split_s
THROTTLE_S = 6e-4  # half of the way to the clock that the board's power carries (T4)
LONG_ROW_BYTES = 32768.0  # slow from here on, on P100: rows lie in pages of their own
LONG_KERNEL_S = 1e-4  # clocks begin to fall at about this length
BLOCK_ELEMENTS = 128.0 * 256.0  # the largest tile: elements per SM of tiles in flight together
CUDA_CORE_BYTES = 4.0  # fp32 activations: no tensor cores, which want rows of whole 16 bytes
RESIDENCY_EDGE = 24.0  # how suddenly re-used data leave an L2 that all SMs share (L40S)
PARTITION_EDGE = 4.0  # the same of two partitions
NONE_MISS = 0.2  # times the cache: below, what misses rounds to nothing
KEPT_TWICE = 0.47  # of the data in an L2 of two partitions, there twice (A100, H100, B200)
ENDLESS_COPIES = 1e6  # from here on every weight comes from DRAM


@inner
def miss_frac(ratio: float, edge: float) -> float:
    """Share of cyclically re-used bytes that miss a cache, of which they fill `ratio`; rising.

    edge: how suddenly, RESIDENCY_EDGE or PARTITION_EDGE. See `Cache residency` above.
    """
    if ratio < NONE_MISS:
        return 0.0
    missing: float = 1.0 / (1.0 + ratio**-edge)
    return missing


@inner
def gemm_flops(m: float, n: float, k: float, batch: float) -> float:
    """Floating-point operations, a multiply-add counted as two: 2 m n k batch."""
    return 2.0 * m * n * k * batch


@inner
def gemm_bytes(m: float, n: float, k: float, batch: float, gemm: Any) -> float:
    """Bytes that must move once: activations, weights and result of every factor."""
    return batch * (m * k * gemm.a_bytes + n * k * gemm.b_bytes + m * n * gemm.out_bytes)


@inner
def turnover_edge(l2_partitions: float) -> float:
    """How suddenly an L2 of so many partitions turns over: the `edge` of `miss_frac`."""
    return RESIDENCY_EDGE if l2_partitions <= 1.0 else PARTITION_EDGE


@inner
def kept_bytes(gemm: Any, device: Any) -> float:
    """Bytes of re-used data that the L2 keeps. gemm: a row with `l2_use` and `l2_partitions`."""
    copies = 1.0 + KEPT_TWICE * (gemm.l2_partitions - 1.0)
    cache: float = gemm.l2_use * device.l2_bytes / copies
    return cache


@inner
def missing_bytes(
    m: float, n: float, k: float, batch: float, weight_copies: float, gemm: Any, device: Any
) -> tuple[float, float]:
    """Bytes of a call that the L2 does not hold: (each operand once, read again by tile blocks).

    See `Cache residency` above.
    """
    weights = batch * n * k * gemm.b_bytes
    activations = batch * m * k * gemm.a_bytes
    results = batch * m * n * gemm.out_bytes
    cache = kept_bytes(gemm, device)
    edge = turnover_edge(gemm.l2_partitions)
    once_miss = miss_frac((weights + activations + results) / cache, edge)
    weight_miss = 1.0
    if weight_copies < ENDLESS_COPIES:
        cycled = weight_copies * weights + gemm.activation_copies * activations + results
        weight_miss = max(once_miss, miss_frac(cycled / cache, edge))
    activation_miss = weight_miss if gemm.activation_copies > 1.0 else once_miss
    # A block of tiles in flight reads its rows and columns of both operands.
    block_edge = math.sqrt(device.sm_count * BLOCK_ELEMENTS)
    block_bytes = batch * m * n * k * (gemm.a_bytes + gemm.b_bytes) / block_edge
    again = max(0.0, block_bytes - weights - activations) * once_miss
    return weights * weight_miss + activations * activation_miss + results * once_miss, again


@inner
def gemm_roofline_s(
    m: float, n: float, k: float, batch: float, weight_copies: float, gemm: Any, device: Any
) -> float:
    """No kernel is faster: max(flops / peak, bytes missing the L2 once / DRAM bandwidth)."""
    once, _ = missing_bytes(m, n, k, batch, weight_copies, gemm, device)
    math_s = gemm_flops(m, n, k, batch) / short_flops_per_s(gemm, device)
    return max(math_s, once / device.hbm_bytes_per_s)


@inner
def quantize_s(m: float, k: float, batch: float, gemm: Any, device: Any) -> float:
    """The kernel that turns activations into the product's format; 0 where there is none.

    start + the longer of rows taking turns, and bytes read and written: at the DRAM rate where
    they miss the L2, else at the rate at which the L2 feeds a GEMM.
    """
    if gemm.quantize_bytes <= 0.0:
        return 0.0
    elements = batch * m * k
    moved = elements * (gemm.quantize_reads * gemm.quantize_bytes + gemm.a_bytes)
    once = elements * (gemm.quantize_bytes + gemm.a_bytes)
    missing = moved * miss_frac(once / kept_bytes(gemm, device), PARTITION_EDGE)
    dram = missing / (gemm.hbm_frac * device.hbm_bytes_per_s)
    l2 = moved * gemm.l2_edge / (gemm.a_bytes * gemm.peak_flops_per_s)
    return gemm.quantize_s + max(max(dram, l2), batch * m * gemm.quantize_row_s)


@inner
def dram_s(once_bytes: float, again_bytes: float, gemm: Any, device: Any) -> float:
    """Seconds of DRAM traffic, start of the stream included."""
    seconds = (once_bytes + again_bytes) / (gemm.hbm_frac * device.hbm_bytes_per_s)
    return seconds + gemm.ramp_s * seconds / (seconds + gemm.ramp_s)


@inner
def round_up(parts: float, share: float) -> float:
    """`parts` moved by `share` of the way to the next whole number, at least 1."""
    return max(1.0, parts + share * (math.ceil(parts) - parts))


@inner
def short_flops_per_s(gemm: Any, device: Any) -> float:
    """Peak rate before the power limit of the board acts: on the ordinary cores, the datasheet's.

    gemm.peak_flops_per_s may be less there: what the board sustains.
    """
    peak: float = gemm.peak_flops_per_s
    if gemm.a_bytes >= CUDA_CORE_BYTES:
        peak = max(peak, device.vector_flops_per_s)
    return peak


class Rates(NamedTuple):
    """What the candidates of one product share: seconds per unit of work, and its DRAM time."""

    flop_s: float  # per FLOP of one SM
    sm_byte_s: float  # per byte over one SM's path
    l2_byte_s: float  # per byte out of the L2
    step_s: float  # latency of a step along k
    fill_s: float  # of a tile with a loop of FILL_STEPS or more
    dram_s: float  # of the whole product
    start_s: float  # on all SMs rather than on one
    throttle: float  # what a long product takes longer than a short one for want of power, share


@inner
def rates_of(dram: float, gemm: Any, device: Any) -> Rates:
    """Rates of a GEMM row on a device; `dram`: seconds of DRAM traffic."""
    short = short_flops_per_s(gemm, device)
    byte_s = 1.0 / (gemm.a_bytes * gemm.peak_flops_per_s)
    reference = STEP_SM_FLOPS_PER_S * device.sm_count * STEP_ELEMENT_BYTES
    return Rates(
        device.sm_count / (gemm.compute_frac * short),
        device.sm_count * gemm.sm_edge * byte_s,
        gemm.l2_edge * byte_s,
        gemm.step_s * math.sqrt(reference * byte_s),
        gemm.fill_clocks / device.clock_hz,
        dram,
        gemm.start_clocks / device.clock_hz,
        short / gemm.peak_flops_per_s - 1.0,
    )


@inner
def slowed_s(busy: float, rates: Any, gemm: Any) -> float:
    """Seconds that the power limit adds to `busy` seconds of math; more for longer ones."""
    slow_s = busy * gemm.power_drop * math.log10(1.0 + busy / LONG_KERNEL_S)
    return slow_s + busy * rates.throttle * busy / (busy + THROTTLE_S)


@inner
def candidate_s(
    steps: float,
    tiles: float,
    split: float,
    rows: float,
    columns: float,
    step_flops: float,
    step_bytes: float,
    sm_count: float,
    best: float,
    least_slow_s: float,
    rates: Any,
    gemm: Any,
) -> tuple[float, float, float]:
    """One tile and split: (seconds without launch, body, memory), or (inf, 0, 0) if not < best.

    steps: of one tile's loop over k; tiles: in all, splits counted; rows, columns: of a tile that
    are not padding; step_flops: of a tile in one step, losses at its edges counted. least_slow_s:
    at most what `slowed_s` adds. The early way out compares lower bounds, so the answer of a search
    does not depend on it.
    """
    waves = round_up(tiles / sm_count, gemm.wave_round)
    stored = gemm.store_cost * rows * columns * (gemm.out_bytes if split == 1.0 else PARTIAL_BYTES)
    moved = (rows * gemm.a_bytes + columns * gemm.b_bytes) * step_bytes / gemm.a_bytes
    traffic = (moved * steps + stored) * max(waves * rates.sm_byte_s, tiles * rates.l2_byte_s)
    chain = steps * rates.step_s
    fill = rates.fill_s * min(1.0, steps / FILL_STEPS)
    extra = fill if split == 1.0 else fill + gemm.split_s
    extra += rates.start_s * min(1.0, tiles / sm_count)
    busy = waves * steps * step_flops * rates.flop_s
    body = busy + (1.0 + (waves - 1.0) * gemm.wave_round) * (0.5 * fill + stored * rates.sm_byte_s)
    others = chain * chain * chain + traffic * traffic * traffic
    others += rates.dram_s * rates.dram_s * rates.dram_s
    left = best - extra
    least = body + least_slow_s
    if left <= 0.0 or least * least * least + others >= left * left * left:
        return math.inf, 0.0, 0.0
    body += slowed_s(busy, rates, gemm)
    total = extra + (body * body * body + others) ** (1.0 / 3.0)
    return total, body, max(traffic, rates.dram_s)


@inner
def halvings(row_bytes: float) -> float:
    """How often 16 bytes have to be halved until rows of this many bytes are a multiple."""
    units = row_bytes / 16.0
    lost = 0.0
    while lost < 3.0 and units != math.floor(units):
        units *= 2.0
        lost += 1.0
    return lost


@inner
def gemm_s(
    m: float, n: float, k: float, batch: float, weight_copies: float, gemm: Any, device: Any
) -> tuple[float, int]:
    """Seconds and what bounds them (a BOUND_* code) of `batch` products [m, k] x [k, n].

    weight_copies: sets of weights that the caller cycles through before re-use: about 5.5 in
    micro-benchmarks, infinity in a model. gemm: a GEMM row; device: a DEVICE row. Factors of a
    batch have weights and activations of their own.
    """
    once, again = missing_bytes(m, n, k, batch, weight_copies, gemm, device)
    rates = rates_of(dram_s(once, again, gemm, device), gemm, device)
    sm_count = device.sm_count
    cores = gemm.a_bytes >= CUDA_CORE_BYTES
    step_bytes = CORE_STEP_BYTES if cores else STEP_BYTES
    edge = CORE_EDGE if cores else EDGE
    # Kernels for tensor cores come in heights down to 16 rows, chosen by m.
    least_rows = gemm.least_rows if cores else min(m, gemm.least_rows)
    slow = 1.0
    if cores:
        slow += gemm.long_row_cost * math.log2(1.0 + k * gemm.a_bytes / LONG_ROW_BYTES)
    step_k = step_bytes / gemm.a_bytes
    k_steps = k / step_k
    best = math.inf
    best_body = 0.0
    best_memory = 0.0
    n_tiles = len(CORE_TILE_M) if cores else len(TILE_M)
    largest = batch * math.ceil(m / TILE_M[-1]) * math.ceil(n / TILE_N[-1])
    largest_only = not cores and m > TILE_M[2] and largest >= gemm.largest_waves * sm_count
    for i in range(n_tiles):
        # The likely winner first: small tiles for few rows. It only speeds up the search.
        at = i if m <= TILE_M[2] else n_tiles - 1 - i
        tm = CORE_TILE_M[at] if cores else TILE_M[at]
        tn = CORE_TILE_N[at] if cores else TILE_N[at]
        if largest_only and at < n_tiles - 1:
            continue  # the library's heuristic does not try it
        if not cores and at > 0 and TILE_N[at - 1] == tn and TILE_M[at - 1] >= m:
            continue  # the lower tile holds all rows too, at less math and the same of the rest
        tiles = round_up(m / tm, gemm.tile_round) * round_up(n / tn, gemm.tile_round) * batch
        step_flops = 2.0 * max(tm, least_rows) * max(tn, gemm.least_columns) * step_k
        step_flops *= (1.0 + edge / tm + edge / tn) * slow
        rows = min(m, tm)
        columns = min(n, tn)
        # Every split does this much math, reads and writes as much through the L2, waits for the
        # same DRAM; finer ones store more results and start on more SMs.
        math_s = tiles / sm_count * k_steps * step_flops * rates.flop_s
        stored = gemm.store_cost * rows * columns * min(gemm.out_bytes, PARTIAL_BYTES)
        moved = (rows * gemm.a_bytes + columns * gemm.b_bytes) * k + stored
        l2_s = moved * tiles * rates.l2_byte_s
        others = l2_s * l2_s * l2_s + rates.dram_s * rates.dram_s * rates.dram_s
        left = best - rates.start_s * min(1.0, tiles / sm_count)
        if left <= 0.0 or math_s * math_s * math_s + others >= left * left * left:
            continue
        least_slow_s = slowed_s(math_s, rates, gemm)
        least_s = math_s + least_slow_s
        stored_s = LEAST_FILL * gemm.least_step * rates.fill_s + stored * rates.sm_byte_s
        for split in SPLITS:
            waves = max(1.0, tiles * split / sm_count)
            least = least_s + (1.0 + (waves - 1.0) * gemm.wave_round) * stored_s
            left = best - rates.start_s * min(1.0, tiles * split / sm_count)
            if split > 1.0:
                left -= gemm.split_s
            if left <= 0.0 or least * least * least + others >= left * left * left:
                break
            total, body, memory = candidate_s(
                gemm.least_step * math.ceil(k_steps / split / gemm.least_step),
                tiles * split, split, rows, columns, step_flops, step_bytes, sm_count, best,
                least_slow_s, rates, gemm,
            )  # fmt: skip
            if total < best:
                best = total
                best_body = body
                best_memory = memory
            if k_steps <= split * gemm.least_step:
                break  # one step is left: a finer split only adds tiles
    fixed = gemm.launch_clocks / device.clock_hz + quantize_s(m, k, batch, gemm, device)
    if gemm.a_bytes < CUDA_CORE_BYTES and m > 1.0:
        element = math.floor(gemm.a_bytes) if gemm.a_bytes >= 1.0 else 0.5  # scales lie apart
        lost = max(halvings(k * element), halvings(n * gemm.out_bytes))
        longer = 1.0 + gemm.misaligned_cost * lost
        best *= longer  # each load takes so many more, and math and traffic with them
        best_body *= longer
        best_memory *= longer
    flops = gemm_flops(m, n, k, batch)
    limited = flops / (gemm.power_frac * gemm.peak_flops_per_s)
    ratio = limited / (fixed + best)
    seconds = (fixed + best) * (1.0 + ratio * ratio * ratio * ratio * ratio * ratio) ** (1.0 / 6.0)
    seconds = max(seconds, flops / short_flops_per_s(gemm, device))
    best_body = max(best_body, limited)
    bound = BOUND_MEMORY
    if best_body > best_memory:
        bound = BOUND_COMPUTE
    if seconds > 2.0 * max(best_body, best_memory):
        bound = BOUND_LATENCY
    return seconds, bound


@jit
def gemm_many(
    m: Any, n: Any, k: Any, batch: Any, weight_copies: Any, gemm: Any, device: Any
) -> Any:
    """`gemm_s` over sizes, shape (rows,) each, by GEMM rows (sets,) -> seconds (sets, rows)."""
    seconds = np.empty((len(gemm), len(m)))
    for s in range(len(gemm)):
        for i in range(len(m)):
            seconds[s, i] = gemm_s(m[i], n[i], k[i], batch[i], weight_copies[i], gemm[s], device)[0]
    return seconds
