"""GEMM timing: hand-derived cases, a naive twin of the search, both forms, and the fit recipe."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from rtsim_kernels import compiled, gemm, tables

from rtsim import catalog
from rtsim.fitting import gemm as recipe
from rtsim.fitting.gemm_priors import coefficients_for
from rtsim.specs.dtype import OperandFormat, operand_format

# Round numbers: 100 SMs at 1 GHz, 200 TFLOP/s, 1 TB/s, an L2 of 40 MB.
DEVICE = np.array((100.0, 1e9, 1e12, 4e7, 2e13), tables.DEVICE)
FACTS = {
    "peak_flops_per_s": 2e14,
    "a_bytes": 2.0,
    "b_bytes": 2.0,
    "out_bytes": 2.0,
    "quantize_bytes": 0.0,
    "activation_copies": 1.0,
    "l2_partitions": 1.0,
    "least_step": 1.0,
}
FP32 = {"a_bytes": 4.0, "b_bytes": 4.0, "out_bytes": 4.0}
PRIORS = {c.name: c.prior for c in gemm.GEMM_COEFFICIENTS}
COLD = math.inf
SIZES = [
    (1.0, 4096.0, 4096.0, 1.0),
    (7.0, 32.0, 65536.0, 1.0),
    (16.0, 96.0, 128.0, 1.0),
    (100.0, 12288.0, 4096.0, 1.0),
    (513.0, 2048.0, 2048.0, 1.0),
    (4096.0, 64.0, 7168.0, 1.0),
    (8192.0, 8192.0, 8192.0, 1.0),
    (128.0, 128.0, 64.0, 96.0),
    (1.0, 2048.0, 128.0, 32.0),
]


def row(**changed: float) -> np.ndarray:
    values = {**FACTS, **PRIORS, **changed}
    names = gemm.GEMM.names or ()
    assert set(values) == set(names)
    return np.array(tuple(values[name] for name in names), gemm.GEMM)


def timed(
    m: float, n: float, k: float, batch: float = 1.0, copies: float = COLD, **changed: float
) -> tuple[float, int]:
    return gemm.gemm_s(m, n, k, batch, copies, tables.as_row(row(**changed)), tables.as_row(DEVICE))


def naive_s(m: float, n: float, k: float, batch: float, copies: float, g: Any, d: Any) -> float:
    """The formula of the module docstring, over every tile and split, nothing pruned."""

    def miss(cycled: float) -> float:
        copies_kept = 1.47 if g.l2_partitions == 2.0 else 1.0
        edge = 4.0 if g.l2_partitions == 2.0 else 24.0
        ratio = cycled * copies_kept / (g.l2_use * d.l2_bytes)
        return ratio**edge / (1.0 + ratio**edge) if ratio >= 0.2 else 0.0

    w, a, o = batch * n * k * g.b_bytes, batch * m * k * g.a_bytes, batch * m * n * g.out_bytes
    once = miss(w + a + o)
    weight = 1.0 if math.isinf(copies) else miss(copies * w + g.activation_copies * a + o)
    weight = max(once, weight)
    block = batch * m * n * k * (g.a_bytes + g.b_bytes) / math.sqrt(d.sm_count * 128.0 * 256.0)
    missing = w * weight + (a + o) * once + once * max(0.0, block - w - a)
    stream = missing / (g.hbm_frac * d.hbm_bytes_per_s)
    dram = stream + g.ramp_s * stream / (stream + g.ramp_s)

    def up(x: float, share: float) -> float:
        return max(1.0, x + share * (math.ceil(x) - x))

    cores = g.a_bytes == 4.0
    peak = max(g.peak_flops_per_s, d.vector_flops_per_s) if cores else g.peak_flops_per_s
    short = peak / g.peak_flops_per_s - 1.0
    tile_m, tile_n = (gemm.CORE_TILE_M, gemm.CORE_TILE_N) if cores else (gemm.TILE_M, gemm.TILE_N)
    edge = gemm.CORE_EDGE if cores else gemm.EDGE
    long_rows = 1.0 + g.long_row_cost * math.log2(1.0 + k * g.a_bytes / 32768.0) if cores else 1.0
    least_rows = g.least_rows if cores else min(m, g.least_rows)
    step_k = (32.0 if cores else 128.0) / g.a_bytes
    found = []
    largest = batch * math.ceil(m / 128.0) * math.ceil(n / 256.0)
    if not cores and m > 64.0 and largest >= g.largest_waves * d.sm_count:
        tile_m, tile_n = tile_m[-1:], tile_n[-1:]
    for (tm, tn), s in itertools.product(zip(tile_m, tile_n, strict=True), gemm.SPLITS):
        steps = g.least_step * math.ceil(k / s / step_k / g.least_step)
        tiles = up(m / tm, g.tile_round) * up(n / tn, g.tile_round) * batch * s
        waves = up(tiles / d.sm_count, g.wave_round)
        area = min(m, tm) * min(n, tn)
        stored = g.store_cost * area * (g.out_bytes if s == 1.0 else 4.0)
        loaded = (min(m, tm) * g.a_bytes + min(n, tn) * g.b_bytes) * step_k * steps
        flops = 2.0 * max(tm, least_rows) * max(tn, g.least_columns) * step_k * steps
        flops *= long_rows * (1.0 + edge / tm + edge / tn)
        busy = waves * flops / (g.compute_frac * peak / d.sm_count)
        fill = g.fill_clocks / d.clock_hz * min(1.0, steps / 4.0)
        sm_byte_s = d.sm_count * g.sm_edge / (g.a_bytes * g.peak_flops_per_s)
        l2_byte_s = g.l2_edge / (g.a_bytes * g.peak_flops_per_s)
        body = busy * (1.0 + g.power_drop * math.log10(1.0 + busy / 1e-4))
        body += short * busy * busy / (busy + 6e-4)
        body += (1.0 + (waves - 1.0) * g.wave_round) * (fill / 2.0 + stored * sm_byte_s)
        chain = (
            steps
            * g.step_s
            * math.sqrt(2.9e12 * d.sm_count * 2.0 / (g.peak_flops_per_s * g.a_bytes))
        )
        traffic = (loaded + stored) * max(waves * sm_byte_s, tiles * l2_byte_s)
        smooth = (body**3 + chain**3 + traffic**3 + dram**3) ** (1.0 / 3.0)
        start = g.start_clocks / d.clock_hz * min(1.0, tiles / d.sm_count)
        found.append(fill + start + smooth + (g.split_s if s > 1.0 else 0.0))
    seconds = g.launch_clocks / d.clock_hz + min(found)
    limited = 2.0 * m * n * k * batch / (g.power_frac * g.peak_flops_per_s)
    seconds = (seconds**6 + limited**6) ** (1.0 / 6.0)
    return max(seconds, 2.0 * m * n * k * batch / peak)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("copies", [1.0, 5.5, COLD])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"activation_copies": 5.5, "split_s": 1e-7},
        {"l2_partitions": 2.0, "start_clocks": 5000.0},
        {"least_rows": 100.0, "least_columns": 110.0},
        {"least_step": 0.5, "largest_waves": 1.0},
        {"power_frac": 0.6},
        {**FP32, "peak_flops_per_s": 8e12, "long_row_cost": 0.5, "least_rows": 64.0},
    ],
)
def test_search_finds_what_an_exhaustive_one_finds(
    size: tuple[float, float, float, float], copies: float, changed: dict[str, float]
) -> None:
    g, d = tables.as_row(row(**changed)), tables.as_row(DEVICE)
    if copies == 1.0 and changed:
        copies = 2.0
    seconds = gemm.gemm_s(*size, copies, g, d)[0]
    if g.activation_copies == 1.0:
        assert seconds == pytest.approx(naive_s(*size, copies, g, d), rel=1e-9)
    compiled_s, bound = compiled().gemm.gemm_s(*size, copies, row(**changed)[()], DEVICE[()])
    assert compiled_s == pytest.approx(seconds, rel=1e-12)
    assert bound == gemm.gemm_s(*size, copies, g, d)[1]


def test_many_is_one_after_the_other() -> None:
    m, n, k, batch = (np.array(x) for x in zip(*SIZES, strict=True))
    copies = np.full(len(SIZES), 5.5)
    g, d = row(), DEVICE
    expected = [gemm.gemm_s(*size, 5.5, tables.as_row(g), tables.as_row(d))[0] for size in SIZES]
    other = row(compute_frac=0.5)
    got = compiled().gemm.gemm_many(m, n, k, batch, copies, np.stack([g, other]), d[()])
    np.testing.assert_allclose(got[0], expected, rtol=1e-12)
    again = [gemm.gemm_s(*size, 5.5, tables.as_row(other), tables.as_row(d))[0] for size in SIZES]
    np.testing.assert_allclose(got[1], again, rtol=1e-12)


@pytest.mark.parametrize("edge", [gemm.RESIDENCY_EDGE, gemm.PARTITION_EDGE])
def test_what_fits_stays_and_what_does_not_goes(edge: float) -> None:
    assert gemm.miss_frac(0.1, edge) == 0.0
    assert gemm.miss_frac(1.0, edge) == pytest.approx(0.5)
    assert gemm.miss_frac(3.0, edge) > 0.98
    assert gemm.miss_frac(0.5, edge) < 0.07


def test_one_l2_turns_over_at_once_and_two_partitions_slowly() -> None:
    def miss(ratio: float) -> tuple[float, float]:
        return (
            gemm.miss_frac(ratio, gemm.RESIDENCY_EDGE), gemm.miss_frac(ratio, gemm.PARTITION_EDGE)
        )  # fmt: skip

    small, large = miss(0.85), miss(1.18)
    assert small[0] < 0.03
    assert small[1] > 0.3
    assert large[0] > 0.97
    assert large[1] < 0.7


def test_flops_and_bytes() -> None:
    assert gemm.gemm_flops(2.0, 3.0, 5.0, 7.0) == 420.0
    # 7 (2*5*2 + 3*5*1 + 2*3*4)
    g = tables.as_row(row(a_bytes=2.0, b_bytes=1.0, out_bytes=4.0))
    assert gemm.gemm_bytes(2.0, 3.0, 5.0, 7.0, g) == 413.0


def test_a_large_product_runs_near_the_compute_share_of_the_peak() -> None:
    # 8192^3: 1.1 TFLOP at 200 TFLOP/s is 5.5 ms.
    ideal_s = 2 * 8192.0**3 / 2e14
    seconds, bound = timed(
        8192.0, 8192.0, 8192.0, power_drop=1e-9, compute_frac=0.9, l2_edge=20.0, sm_edge=20.0
    )
    assert bound == tables.BOUND_COMPUTE
    # 3.75 % edge losses of the largest tile, and little else.
    assert seconds == pytest.approx(ideal_s / 0.9 * (1 + 3.2 / 128 + 3.2 / 256), rel=0.03)


def test_a_kernel_on_all_sms_starts_and_ends_later_than_on_one() -> None:
    def seconds(n: float, clocks: float) -> float:
        return timed(16.0, n, 64.0, copies=1.0, start_clocks=clocks)[0]

    # One tile of 64 columns on one of 100 SMs, and 128 tiles or more on all; 1000 clocks are 1 us.
    assert seconds(64.0, 2000.0) - seconds(64.0, 1000.0) == pytest.approx(1e-8)
    assert seconds(32768.0, 2000.0) - seconds(32768.0, 1000.0) == pytest.approx(1e-6)


def test_two_partitions_of_the_l2_keep_less() -> None:
    # 5.5 copies of 6 MB fill 33 of 40 MB: in the L2 of one part, hardly in one of two.
    size = (8.0, 3072.0, 1024.0)
    whole, halves = (timed(*size, copies=5.5, l2_partitions=p)[0] for p in (1.0, 2.0))
    assert whole == pytest.approx(timed(*size, copies=1.0)[0], rel=0.02)
    assert 1.05 * whole < halves <= timed(*size)[0]


def test_a_library_by_heuristic_tries_no_smaller_tile_from_a_full_wave_on() -> None:
    # 100 SMs: 104 tiles of 128 x 256 take two waves, 208 of 128 x 128 three shorter ones.
    size = (1024.0, 13.0 * 256.0, 4096.0)
    tried, heuristic = (
        timed(*size, largest_waves=waves, wave_round=1.0)[0] for waves in (1e6, 1.0)
    )
    assert heuristic > 1.05 * tried
    # Short of a wave all are tried.
    size = (1024.0, 12.0 * 256.0, 4096.0)
    tried, heuristic = (
        timed(*size, largest_waves=waves, wave_round=1.0)[0] for waves in (1e6, 1.0)
    )
    assert heuristic == tried


def test_loops_in_half_steps_pay_for_half_a_step() -> None:
    # k = 32 of 16-bit elements is half of 128 bytes; k = 64 a whole step either way.
    def seconds(k: float, least_step: float) -> float:
        return timed(4096.0, 4096.0, k, copies=1.0, least_step=least_step)[0]

    assert seconds(32.0, 0.5) < seconds(32.0, 1.0)
    assert seconds(64.0, 0.5) == seconds(64.0, 1.0)


def test_one_row_streams_the_weights() -> None:
    # 200 MB of cold weights at 0.8 TB/s: 0.25 ms.
    seconds, bound = timed(1.0, 10000.0, 10000.0, hbm_frac=0.8)
    assert bound == tables.BOUND_MEMORY
    assert seconds == pytest.approx(2.5e-4, rel=0.05)


def test_an_empty_kernel_costs_its_launch() -> None:
    seconds, bound = timed(1.0, 32.0, 32.0, launch_clocks=3000.0, fill_clocks=10.0, ramp_s=1e-8)
    assert bound == tables.BOUND_LATENCY
    assert 3e-6 < seconds < 3.5e-6  # 3000 clocks at 1 GHz


def test_misaligned_products_are_bound_by_what_they_were() -> None:
    """A vocabulary that no multiple of 16 bytes divides makes loads dearer, not launches."""
    for size in ((512.0, 30522.0, 1024.0), (2.0, 30522.0, 1024.0)):
        aligned = timed(size[0], 30520.0, size[2], misaligned_cost=1.0)
        odd = timed(*size, misaligned_cost=1.0)
        assert odd[0] > 1.5 * aligned[0]
        assert odd[1] == aligned[1] != tables.BOUND_LATENCY


def test_small_weights_in_few_copies_come_from_the_cache() -> None:
    # 5.5 copies of 2 MB stay in half of 40 MB, 5.5 copies of 8 MB do not.
    def seconds(width: float, copies: float) -> float:
        return timed(8.0, width, width, copies=copies, l2_use=0.5)[0]

    assert seconds(1024.0, 5.5) < seconds(1024.0, COLD)
    warm, cold = (seconds(2048.0, copies) for copies in (5.5, COLD))
    assert cold == pytest.approx(warm, rel=0.15)


def test_split_along_k_shortens_a_long_thin_product() -> None:
    with_split, _ = timed(16.0, 64.0, 65536.0)
    without, _ = timed(16.0, 64.0, 65536.0, split_s=1e-3)
    assert with_split < 0.5 * without


@pytest.mark.parametrize(("n", "lost"), [(4096, 0), (4092, 1), (4094, 2), (4095, 3)])
def test_misaligned_rows_pay_per_halving(n: int, lost: int) -> None:
    """Rows of n 2-byte results: 16, 8, 4 and 2 bytes of alignment."""
    assert gemm.halvings(2.0 * n) == lost
    free = timed(512.0, float(n), 4096.0, misaligned_cost=0.0)[0]
    paid = timed(512.0, float(n), 4096.0, misaligned_cost=0.5)[0]
    assert paid >= free
    if lost:
        fixed = PRIORS["launch_clocks"] / float(DEVICE["clock_hz"])
        assert (paid - fixed) / (free - fixed) == pytest.approx(1 + 0.5 * lost, rel=1e-9)
    else:
        assert paid == free


def test_one_misaligned_row_streams() -> None:
    assert timed(1.0, 4095.0, 4096.0, misaligned_cost=5.0) == timed(
        1.0, 4095.0, 4096.0, misaligned_cost=0.05
    )


def test_scales_between_elements_do_not_misalign_rows() -> None:
    nvfp4 = {"a_bytes": 0.5625, "b_bytes": 0.5625}
    assert timed(64.0, 64.0, 64.0, **nvfp4, misaligned_cost=5.0) == timed(
        64.0, 64.0, 64.0, **nvfp4, misaligned_cost=0.05
    )


def test_a_library_without_small_tiles_pays_for_the_large_one() -> None:
    """Small fp32 products, one on each SM: a 128 x 128 tile does 16 times the math of 32 x 32."""
    fixed = PRIORS["launch_clocks"] / float(DEVICE["clock_hz"])
    quick = {"step_s": 5e-9, "l2_edge": 2.0, "sm_edge": 2.0, "fill_clocks": 10.0}
    board = {**FP32, **quick, "peak_flops_per_s": 2e13, "power_drop": 0.005}

    def seconds(least: float) -> float:
        tile = {"least_rows": least, "least_columns": least}
        return timed(32.0, 32.0, 512.0, 100.0, copies=1.0, **board, **tile)[0] - fixed

    # Less is lost at the edges of the large one.
    edges = (1.0 + 2.0 * gemm.CORE_EDGE / 128.0) / (1.0 + 2.0 * gemm.CORE_EDGE / 32.0)
    assert seconds(128.0) / seconds(32.0) == pytest.approx(16.0 * edges, rel=0.1)
    # On tensor cores tiles are no higher than there are rows, but as wide.
    narrow = {"a_bytes": 1.0, "b_bytes": 1.0, "least_rows": 128.0}
    one_row = timed(16.0, 64.0, 8192.0, 1000.0, **narrow)
    assert one_row == timed(16.0, 64.0, 8192.0, 1000.0, **{**narrow, "least_rows": 16.0})


def test_a_board_short_of_power_slows_down_in_long_products() -> None:
    """Sustained 1e13 of 2e13 FLOP/s: half the rate in the end, more in the first 0.1 ms."""
    quick = {
        "step_s": 5e-9,
        "l2_edge": 2.0,
        "sm_edge": 2.0,
        "fill_clocks": 10.0,
        "power_drop": 0.005,
    }
    board = {**FP32, **quick, "peak_flops_per_s": 1e13, "compute_frac": 1.0}

    def rate(size: float) -> float:
        fixed = PRIORS["launch_clocks"] / float(DEVICE["clock_hz"])
        return 2.0 * size**3 / (timed(size, size, size, **board)[0] - fixed)

    assert rate(16384.0) < 1.05e13
    assert rate(1280.0) > 1.2e13
    unlimited = tables.as_row(row(**{**board, "peak_flops_per_s": 3e13}))
    assert gemm.short_flops_per_s(unlimited, tables.as_row(DEVICE)) == 3e13


def test_a_power_limit_bounds_products_that_keep_the_whole_board_busy() -> None:
    def slower(size: float, frac: float) -> float:
        unlimited, _ = timed(size, size, size)
        return timed(size, size, size, power_frac=frac)[0] / unlimited

    flops_per_s = 2.0 * 16384.0**3 / timed(16384.0, 16384.0, 16384.0, power_frac=0.3)[0]
    peak = tables.as_row(row()).peak_flops_per_s
    assert 0.29 * peak < flops_per_s <= 0.3 * peak
    assert timed(16384.0, 16384.0, 16384.0, power_frac=0.3)[1] == tables.BOUND_COMPUTE
    assert slower(16384.0, 0.3) > 1.5
    # A product of a few tiles keeps few SMs busy, one of a few rows waits for memory.
    assert slower(256.0, 0.3) == pytest.approx(1.0, abs=1e-3)
    assert slower(16384.0, 10.0) == pytest.approx(1.0, abs=1e-6)


def test_long_rows_cost_the_ordinary_cores() -> None:
    def seconds(k: float, cost: float, **changed: float) -> float:
        return timed(2048.0, 2048.0, k, long_row_cost=cost, **changed)[0]

    fp32 = {**FP32, "peak_flops_per_s": 2e13}
    assert seconds(65536.0, 0.5, **fp32) > 2.0 * seconds(65536.0, 0.001, **fp32)
    assert seconds(64.0, 0.5, **fp32) < 1.02 * seconds(64.0, 0.001, **fp32)
    assert seconds(65536.0, 0.5) == seconds(65536.0, 0.001)


def test_quantisation_is_a_kernel_of_its_own() -> None:
    narrow = {"a_bytes": 1.0, "b_bytes": 1.0}
    plain, _ = timed(256.0, 1024.0, 1024.0, **narrow)
    quantised, _ = timed(256.0, 1024.0, 1024.0, **narrow, quantize_bytes=2.0, quantize_s=3e-6)
    g = tables.as_row(row(**narrow, quantize_bytes=2.0, quantize_s=3e-6))
    kernel_s = gemm.quantize_s(256.0, 1024.0, 1.0, g, tables.as_row(DEVICE))
    assert quantised == pytest.approx(plain + kernel_s)
    assert kernel_s > 3e-6
    # 1e6 rows that take turns of 5 ns: 5 ms.
    g = tables.as_row(row(**narrow, quantize_bytes=2.0, quantize_s=3e-6, quantize_row_s=5e-9))
    turns_s = gemm.quantize_s(1e6, 32.0, 1.0, g, tables.as_row(DEVICE))
    assert turns_s == pytest.approx(5e-3 + 3e-6)


# --- fit recipe ---


def table(rows: int, dtype: str = "bf16", stack: str = "vllm", seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "gpu": np.array(["A100-SXM4-80GB"] * rows),
        "stack": np.array([stack] * rows),
        "dtype": np.array([dtype] * rows),
        "m": 2 ** rng.integers(0, 14, rows),
        "n": 2 ** rng.integers(5, 15, rows),
        "k": 2 ** rng.integers(5, 15, rows),
        "batch": np.ones(rows, np.int64),
        "time_us": np.full(rows, 10.0),
    }


def machine(dtype: str, stack: str = "vllm") -> recipe.Machine:
    found = recipe.machine_of(catalog.load_gpu("a100-sxm4-80gb"), DEVICE, stack, dtype)
    assert found is not None
    return found


def test_number_formats() -> None:
    bf16 = operand_format("bf16")
    assert bf16 == OperandFormat("bf16", 2.0, 2.0, 2.0, 0.0)
    weight_only = operand_format("int8_wo")
    assert weight_only == OperandFormat("bf16", 2.0, 1.0, 2.0, 0.0)
    nvfp4 = operand_format("nvfp4")
    assert nvfp4 is not None
    assert nvfp4.a_bytes == nvfp4.b_bytes == 0.5625
    assert nvfp4.quantize_bytes == 2.0
    assert operand_format("w8a8_magic") is None


def test_no_machine_for_math_that_the_gpu_lacks() -> None:
    gpu = catalog.load_gpu("a100-sxm4-80gb")
    assert recipe.machine_of(gpu, DEVICE, "vllm", "fp8") is None
    assert recipe.machine_of(gpu, DEVICE, "vllm", "unheard-of") is None


def test_rows_that_cannot_be_used_say_why() -> None:
    columns = table(5)
    columns["dtype"] = np.array(["bf16", "magic", "bf16", "bf16", "fp32"])
    columns["time_us"][2] = 0.0
    columns["n"][3] = 33
    columns["n"][4] = 33
    reasons = recipe.usable(columns).tolist()
    assert reasons == [
        "", "dtype is not modelled", "time is not above zero",
        "rows are not a multiple of 16 bytes", "",
    ]  # fmt: skip


def test_residency_follows_the_method_of_the_stack() -> None:
    members = np.arange(2)
    assert recipe.rows_of(table(2, stack="vllm"), members).weight_copies.tolist() == [6.0, 6.0]
    in_layers = recipe.rows_of(table(2, stack="somebody's own"), members).weight_copies
    assert np.isinf(in_layers).all()
    assert machine("bf16", "sglang").facts["activation_copies"] == 6.0


def test_tables_without_weights_in_the_l2_are_cold() -> None:
    members = np.arange(2)
    for dtype, copies in (("int8_wo", math.inf), ("fp8", 5.0)):
        rows = recipe.rows_of(table(2, dtype=dtype, stack="trtllm"), members)
        assert rows.weight_copies.tolist() == [copies, copies]


def test_some_benchmarks_cycle_through_as_many_weights_as_fill_the_l2() -> None:
    mib = 2.0**20
    columns = table(5, stack="trtllm")
    columns["n"] = np.array([1.0, 24.0, 28.0, 96.0, 200.0]) * 512.0
    columns["k"] = np.full(5, 1024.0)  # 1 MiB for each 512 columns in 16 bits
    members = np.arange(5)
    columns["stack_version"] = np.full(5, "1.3.0rc20")
    filled = recipe.rows_of(columns, members, 96.0 * mib).weight_copies
    assert filled.tolist() == [5.0, 4.0, 4.0, 1.0, 1.0]
    assert recipe.rows_of(columns, members).weight_copies.tolist() == [5.0] * 5  # L2 not known
    columns["dtype"] = np.full(5, "fp8")  # half the bytes
    filled = recipe.rows_of(columns, members, 96.0 * mib).weight_copies
    assert filled.tolist() == [5.0, 5.0, 5.0, 2.0, 1.0]
    columns["stack_version"] = np.full(5, "1.0.0")
    assert recipe.rows_of(columns, members, 96.0 * mib).weight_copies.tolist() == [5.0] * 5


def test_priors_follow_the_class_of_kernels() -> None:
    def prior(name: str, *steps: float, dtype: str = "bf16") -> float:
        facts = [{"least_step": step, "l2_partitions": 2.0} for step in steps]
        found = coefficients_for("vllm", dtype, facts=facts)
        return next(c.prior for c in found if c.name == name)

    assert prior("wave_round", 1.0) < PRIORS["wave_round"] < prior("wave_round", 0.5, 0.5)
    assert prior("wave_round", 1.0, 0.5) == prior("wave_round") == PRIORS["wave_round"]
    assert prior("wave_round", 1.0, dtype="fp8") == prior("wave_round", dtype="fp8")
    assert prior("power_frac") < 1.0 < prior("power_frac", dtype="fp32")


def test_the_method_of_a_table_changes_with_the_release() -> None:
    columns = table(2, stack="sglang")
    columns["stack_version"] = np.array(["0.5.6.post2", "0.5.10"])
    assert recipe.rows_of(columns, np.arange(2)).weight_copies.tolist() == [1.0, 6.0]
    gpu = catalog.load_gpu("h100-sxm5-80gb")
    for release, copies in (("0.5.6.post2", 1.0), ("0.5.9", 6.0), ("", 6.0)):
        of_release = recipe.machine_of(gpu, DEVICE, "sglang", "bf16", release)
        assert of_release is not None
        assert of_release.facts["activation_copies"] == copies


def test_activations_are_quantised_before_the_clock_starts_in_some_tables() -> None:
    assert machine("int8_sq", "trtllm").facts["quantize_bytes"] == 0.0
    assert machine("int8_sq", "vllm").facts["quantize_bytes"] == 2.0


def test_partitions_of_the_l2_are_a_fact_of_the_chip() -> None:
    l40s = recipe.machine_of(catalog.load_gpu("l40s"), DEVICE, "vllm", "bf16")
    assert l40s is not None
    assert l40s.facts["l2_partitions"] == 1.0
    assert machine("bf16").facts["l2_partitions"] == 2.0


def test_whole_steps_along_k_are_a_fact_of_the_generation() -> None:
    l40s = recipe.machine_of(catalog.load_gpu("l40s"), DEVICE, "vllm", "bf16")
    h100 = recipe.machine_of(catalog.load_gpu("h100"), DEVICE, "vllm", "bf16")
    assert l40s is not None
    assert h100 is not None
    assert (l40s.facts["least_step"], h100.facts["least_step"]) == (0.5, 1.0)


def test_chosen_rows_are_few_distinct_and_repeatable() -> None:
    rows = recipe.rows_of(table(1000), np.arange(1000))
    chosen = recipe.choose_rows(rows, 64)
    assert len(set(chosen.tolist())) == 64
    assert chosen.tolist() == recipe.choose_rows(rows, 64).tolist()
    assert chosen.tolist()[:16] == recipe.choose_rows(rows, 16).tolist()


def test_priors_follow_stack_and_format() -> None:
    def prior(stack: str, dtype: str, name: str) -> float:
        return {c.name: c.prior for c in coefficients_for(stack, dtype)}[name]

    assert prior("vllm", "bf16", "split_s") == PRIORS["split_s"]
    assert prior("vllm", "fp8", "split_s") > PRIORS["split_s"]
    assert prior("trtllm", "int8_wo", "launch_clocks") > PRIORS["launch_clocks"]
    assert prior("pytorch", "fp32", "launch_clocks") > 5 * PRIORS["launch_clocks"]


@pytest.mark.parametrize("dtype", ["bf16", "int8_sq"])
def test_fit_recovers_the_coefficients_that_made_the_rows(dtype: str) -> None:
    a100 = machine(dtype)
    columns = table(400, dtype)
    rows = recipe.rows_of(columns, np.flatnonzero(recipe.usable(columns) == ""))
    truth = {c.name: c.prior for c in coefficients_for("vllm", dtype)}
    truth["launch_clocks"] *= 1.3
    truth["hbm_frac"] = 0.9
    truth["power_frac" if dtype == "bf16" else "compute_frac"] = 0.7
    columns["time_us"] = recipe.predict(rows, a100, truth) * 1e6
    rows = recipe.rows_of(columns, np.arange(400))
    chosen = recipe.choose_rows(rows, 64)
    fit = recipe.fit_rows([(rows.take(chosen), a100)], "vllm", dtype)
    fitted = recipe.named(fit)
    error = np.abs(recipe.predict(rows, a100, fitted) / rows.measured_s - 1)
    assert error.mean() < 0.01
    for name in ("hbm_frac", "power_frac" if dtype == "bf16" else "compute_frac"):
        assert fitted[name] == pytest.approx(truth[name], rel=0.06)

    def empty_s(values: dict[str, float]) -> float:  # what no size tells apart
        quantize = values["quantize_s"] if dtype == "int8_sq" else 0.0
        return values["launch_clocks"] / 1e9 + quantize

    assert empty_s(fitted) == pytest.approx(empty_s(truth), rel=0.05)


def test_cross_validated_sigma_sees_noise() -> None:
    a100 = machine("bf16")
    rows = recipe.rows_of(table(120), np.arange(120))
    clean = recipe.predict(rows, a100, PRIORS)
    noise = np.random.default_rng(1).normal(0.0, 0.1, 120)
    noisy = recipe.Rows(**{**vars(rows), "measured_s": clean * np.exp(noise)})
    sigma = recipe.cross_validated_sigma([(noisy, a100)], "vllm", "bf16", folds=2)
    assert 0.07 < sigma < 0.14


def test_rows_by_machine() -> None:
    columns = table(4)
    columns["stack"] = np.array(["vllm", "sglang", "vllm", "vllm"])
    found = recipe.by_machine(columns, range(4))
    assert found["A100-SXM4-80GB", "vllm", "bf16"].tolist() == [0, 2, 3]
    assert found["A100-SXM4-80GB", "sglang", "bf16"].tolist() == [1]
