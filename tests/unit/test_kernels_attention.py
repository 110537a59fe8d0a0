"""Fused attention: hand-derived cases, counted twins, both forms of the core, the fit recipe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rtsim_kernels import attention, compiled, tables

from rtsim import catalog
from rtsim.device_facts import attention_peak_flops_per_s
from rtsim.fitting import attention as recipe

# Round numbers: 100 SMs at 1 GHz, 1 TB/s, an L2 of 10 MB; 1e13 FLOP/s on each SM.
DEVICE = np.array((100.0, 1e9, 1e12, 1e7, 2e13), tables.DEVICE)
PEAK = 1e15
FACTS = {"peak_flops_per_s": PEAK, "query_element_bytes": 2.0, "kv_element_bytes": 2.0}
PREFILL = {
    **FACTS,
    "launch_clocks": 5000.0,
    "tile_rows": 128.0,
    "tensor_frac": 1.0,
    "softmax_clocks": 0.05,
    "fill_keys": 50.0,
    "key_split": 0.1,
    "pack_frac": 1.0,
    "single_pack_frac": 1.0,
    "tail_frac": 0.5,
    "l2_fit_frac": 1.0,
    "query_passes": 0.0,
    "kv_passes": 0.0,
    "token_clocks": 0.0,
    "wide_slowdown": 0.0,
    "narrow_loss": 0.0,
}
DECODE = {
    **FACTS,
    "launch_clocks": 5000.0,
    "cta_clocks": 1000.0,
    "row_clocks": 10.0,
    "group_clocks": 300.0,
    "first_keys": 0.0,
    "intake_frac": 1.0,  # 1 TB/s / 100 SMs + 10 B/clock = 20 GB/s
    "hbm_frac": 1.0,
    "l2_fit_frac": 1.0,
    "combine_clocks": 2000.0,
    "regroup_clocks": 3000.0,
    "ungrouped_clocks": 4000.0,
    "max_group": 32.0,
    "split_rule": 1.0,
}
# One score of head size 128: 512 FLOPs at 1e13/s and, in part at the same time, 0.05 clocks.
SCORE_S = np.hypot(512 / 1e13, 0.05e-9)


def record(dtype: np.dtype[np.void], base: dict[str, float], **changed: float) -> np.ndarray:
    values = {**base, **changed}
    assert set(values) == set(dtype.names or ())
    return np.array(tuple(values[name] for name in dtype.names or ()), dtype)


def prefill(
    n: float, new: float, context: float, heads: float, kv: float, dim: float = 128.0,
    window: float = 0.0, causal: float = 1.0, warm: float = 0.0, **changed: float,
) -> tuple[float, int]:  # fmt: skip
    row = record(attention.ATTENTION_PREFILL, PREFILL, **changed)
    return attention.attention_prefill_s(
        n, new, context, heads, kv, dim, window, causal,
        tables.as_row(row), tables.as_row(DEVICE), dim, warm,
    )  # fmt: skip


def decode(
    n: float, context: float, heads: float, kv: float, dim: float = 128.0,
    window: float = 0.0, warm: float = 0.0, **changed: float,
) -> tuple[float, int]:  # fmt: skip
    row = record(attention.ATTENTION_DECODE, DECODE, **changed)
    return attention.attention_decode_s(
        n, context, heads, kv, dim, window, tables.as_row(row), tables.as_row(DEVICE), dim, warm
    )


@pytest.mark.parametrize("new", [1, 3, 8])
@pytest.mark.parametrize("past", [0, 1, 9])
@pytest.mark.parametrize("window", [0, 1, 4, 30])
def test_visible_pairs_are_those_counted_one_by_one(new: int, past: int, window: int) -> None:
    context = new + past
    counted = 0
    for query in range(past + 1, context + 1):
        for key in range(1, context + 1):
            counted += key <= query and (window == 0 or query - key < window)
    assert attention.visible_pairs(new, context, window, 1.0) == counted


def test_encoders_see_all_keys_or_the_window_on_both_sides() -> None:
    assert attention.visible_pairs(10.0, 10.0, 0.0, 0.0) == 100
    assert attention.visible_pairs(10.0, 10.0, 3.0, 0.0) == 50


def test_prefill_work() -> None:
    row = tables.as_row(record(attention.ATTENTION_PREFILL, PREFILL, kv_element_bytes=1.0))
    flops, moved = attention.attention_prefill_work(2, 4, 4, 8, 2, 64, 0, 1, row)
    assert flops == 2 * 8 * 10 * 2 * 2 * 64  # 10 pairs, two products, multiply and add
    assert moved == 2 * (8 * 4 * 128 * 2 + 2 * 4 * 128 * 1)
    # Values half as wide as keys; a window leaves 1 + 2 + 2 + 2 pairs and all keys.
    flops, moved = attention.attention_prefill_work(2, 4, 4, 8, 2, 64, 2, 1, row, 32)
    assert flops == 2 * 8 * 7 * 2 * 96
    assert moved == 2 * (8 * 4 * 96 * 2 + 2 * 4 * 96 * 1)


def test_decode_work() -> None:
    row = tables.as_row(record(attention.ATTENTION_DECODE, DECODE))
    flops, moved = attention.attention_decode_work(3, 1000, 8, 2, 128, 100, row)
    assert flops == 3 * 8 * 100 * 2 * 256
    assert moved == 3 * 256 * 2 * (100 * 2 + 8)


def test_one_tile_alone() -> None:
    # 128 queries of one head: one tile of 128 rows that meets 128 keys and the fill.
    seconds, bound = prefill(1, 128, 128, 1, 1)
    tile_s = 4.5e-6 + 1.1 * 128 * (128 + 50) * SCORE_S / 100**0.1
    work_s = 1 / 100 * (4.5e-6 + 128 * 178 * SCORE_S)  # its share of the power slow-down
    memory_s = 4 * 128 * 128 * 2 / (0.83 * 1e12)
    expected = (tile_s**4 + memory_s**4) ** 0.25 + 0.07 * work_s**2 / (work_s + 3e-3)
    assert seconds == pytest.approx(5e-6 + 3.8e-6 + expected, rel=1e-9)
    assert bound == tables.BOUND_COMPUTE
    assert prefill(1, 128, 128, 1, 1, launch_clocks=2e4)[1] == tables.BOUND_LATENCY


def test_full_rounds_of_equal_tiles_run_at_the_rate_of_the_gpu() -> None:
    # Encoders: 2000 tiles of 2048 keys on 100 SMs are 20 full rounds, nothing uneven.
    seconds, bound = prefill(125, 2048, 2048, 1, 1, causal=0.0)
    work_s = 20 * (4.5e-6 + 128 * (2048 + 50) * SCORE_S)
    memory_s = 125 * 4 * 2048 * 128 * 2 / (0.83 * 1e12)
    busy_s = (work_s**4 + memory_s**4) ** 0.25 + 0.07 * work_s**2 / (work_s + 3e-3)
    assert seconds == pytest.approx(5e-6 + busy_s, rel=1e-9)
    assert bound == tables.BOUND_COMPUTE


def test_packed_groups_share_tiles_and_short_sequences_gain() -> None:
    slow_tiles = {"fill_keys": 1000.0}
    shared = prefill(500, 16, 16, 8, 1, pack_frac=1.0, **slow_tiles)[0]  # 500 tiles
    apart = prefill(500, 16, 16, 8, 1, pack_frac=0.02, **slow_tiles)[0]  # nearly 4000
    assert 6 * shared < apart < 8 * shared


def test_single_queries_may_share_where_longer_ones_do_not() -> None:
    apart = {"pack_frac": 0.02, "fill_keys": 1000.0}
    assert prefill(500, 1, 1, 8, 1, **apart)[0] * 5 < prefill(500, 2, 2, 8, 1, **apart)[0]
    # Where longer ones share, single ones do too.
    packed = prefill(500, 1, 1, 8, 1, pack_frac=1.0, single_pack_frac=0.02)[0]
    assert packed == prefill(500, 1, 1, 8, 1, pack_frac=1.0)[0]


def test_helpers_pass_over_new_tokens_only_and_not_in_encoders() -> None:
    row = {"query_passes": 2.0, "kv_passes": 3.0, "token_clocks": 100.0}
    plain = prefill(4, 512, 4096, 8, 2)[0]
    helped = prefill(4, 512, 4096, 8, 2, **row)[0]
    passed = 4 * 512 * 2 * (2 * 8 * 128 + 3 * 2 * 256) / (0.83 * 1e12)
    written = 4 * 512 * 100 / 1e9 / 100 * 256 / 512  # half of a CTA's threads
    assert helped - plain == pytest.approx(passed + written, rel=1e-9)
    encoder = prefill(4, 512, 512, 8, 8, causal=0.0)[0]
    assert prefill(4, 512, 512, 8, 8, causal=0.0, **row)[0] == encoder


def test_warm_operands_that_fit_come_from_l2() -> None:
    small, large = (8, 64, 64, 8, 8), (64, 64, 64, 8, 8)  # 4 and 34 MB with the cache written
    heavy = {"kv_passes": 8.0}
    assert prefill(*small, warm=1.0, **heavy)[0] < prefill(*small, warm=0.0, **heavy)[0]
    assert prefill(*large, warm=1.0, **heavy)[0] == prefill(*large, warm=0.0, **heavy)[0]


def test_a_chunk_sees_the_earlier_context() -> None:
    chunk = prefill(64, 512, 8192, 16, 16)[0]
    whole = prefill(64, 512, 512, 16, 16)[0]
    assert chunk > 10 * whole * 0.8  # 7936.5 keys on average against 256.5


def test_decode_of_one_short_sequence() -> None:
    # One CTA, 100 keys at 20 GB/s, beside HBM after the fixed time.
    seconds, bound = decode(1, 100, 1, 1)
    fixed_s = 1010e-9
    grid_s = fixed_s + 100 * 512 / 20e9
    stream_s = 256 * 2 * (100 + 1) / 1e12 + fixed_s
    expected = (grid_s**8 + stream_s**8) ** (1 / 8)
    assert seconds == pytest.approx(5e-6 + 4e-6 + expected, rel=1e-9)
    assert bound == tables.BOUND_LATENCY


def test_the_first_keys_pass_within_the_fixed_time() -> None:
    later = decode(1, 100, 1, 1, first_keys=60.0)[0]
    grid_s = 1010e-9 + 40 * 512 / 20e9
    stream_s = 256 * 2 * (100 + 1) / 1e12 + 1010e-9
    assert later == pytest.approx(9e-6 + (grid_s**8 + stream_s**8) ** (1 / 8), rel=1e-9)
    assert decode(1, 100, 1, 1, first_keys=100.0)[0] == decode(1, 100, 1, 1, first_keys=400.0)[0]


def test_long_contexts_are_split_and_large_batches_are_not() -> None:
    # 16384 keys alone: 32 splits of 512 keys and the merge.
    seconds = decode(1, 16384, 8, 1)[0]
    fixed_s = (1000 + 300 + 80) * 1e-9
    grid_s = fixed_s + 512 * 512 / 20e9
    stream_s = 512 * (16384 + 8) / 1e12 + fixed_s
    expected = (grid_s**8 + stream_s**8) ** (1 / 8)
    assert seconds == pytest.approx(5e-6 + 2e-6 + expected, rel=1e-9)
    # 200 sequences fill the GPU: two rounds of whole contexts, no merge.
    grid_s = 2 * (fixed_s + 1024 * 512 / 20e9)
    stream_s = 200 * 512 * (1024 + 8) / 1e12 + fixed_s
    expected = (grid_s**8 + stream_s**8) ** (1 / 8)
    assert decode(200, 1024, 8, 1)[0] == pytest.approx(5e-6 + expected, rel=1e-9)


def test_groups_beyond_the_kernels_largest_read_keys_per_head() -> None:
    grouped = decode(100, 2048, 32, 1, warm=1.0)[0]
    beyond = decode(100, 2048, 64, 1, warm=1.0)[0]
    assert beyond > 25 * grouped
    assert decode(100, 2048, 64, 1, warm=1.0, max_group=128.0)[0] < 2 * grouped


def test_kernels_that_split_only_grouped_heads_without_window() -> None:
    limited = {"split_rule": 0.5}
    assert decode(1, 16384, 8, 1, **limited)[0] == decode(1, 16384, 8, 1)[0]
    # Ungrouped heads walk the whole context in one CTA.
    assert decode(1, 16384, 1, 1, **limited)[0] > 5 * decode(1, 16384, 1, 1)[0]
    # Under a window each query head reads for itself.
    assert decode(64, 16384, 8, 1, window=1024.0, **limited)[0] > (
        3 * decode(64, 16384, 8, 1, window=1024.0)[0]
    )


def test_kernels_that_split_only_ungrouped_heads() -> None:
    limited = {"split_rule": 2.0}
    assert decode(1, 16384, 1, 1, **limited)[0] == decode(1, 16384, 1, 1)[0]
    assert decode(1, 16384, 8, 1, **limited)[0] > 5 * decode(1, 16384, 8, 1)[0]


def test_a_window_straddles_blocks() -> None:
    # 200 CTAs of 192 keys each where 128 are seen, two rounds.
    fixed_s = (1000 + 300 + 80) * 1e-9
    grid_s = 2 * (fixed_s + (128 + 64) * 512 / 20e9)
    stream_s = 200 * 512 * (128 + 64 + 8) / 1e12 + fixed_s
    expected = (grid_s**8 + stream_s**8) ** (1 / 8)
    assert decode(200, 1024, 8, 1, window=128.0)[0] == pytest.approx(5e-6 + expected, rel=1e-9)
    # A context no longer than the window has nothing beyond it.
    assert decode(200, 128, 8, 1, window=128.0)[0] == decode(200, 128, 8, 1)[0]


def test_several_groups_need_regrouping() -> None:
    one, two = decode(2, 64, 8, 1)[0], decode(1, 64, 16, 2)[0]
    assert two - one == pytest.approx(3e-6, rel=1e-9)


def test_a_cache_in_8_bits_reads_half() -> None:
    long = (128, 32768, 8, 1)
    half = decode(*long, kv_element_bytes=1.0)[0]
    assert half == pytest.approx(decode(*long)[0] / 2, rel=0.01)
    assert decode(*long)[1] == tables.BOUND_MEMORY


def test_large_groups_in_slow_math_are_bound_by_products() -> None:
    seconds, bound = decode(128, 32768, 32, 1, peak_flops_per_s=5e13)
    assert bound == tables.BOUND_COMPUTE
    assert seconds > decode(128, 32768, 32, 1)[0]


def _random_rows(kind: str, count: int) -> recipe.Rows:
    rng = np.random.default_rng(7)
    kv_heads = rng.choice([1.0, 2.0, 8.0], count)
    new = rng.integers(2, 3000, count).astype(float)
    prefilling = kind == recipe.PREFILL
    past = rng.integers(0, 5000, count) * (1.0 if prefilling else 10.0)
    return recipe.Rows(
        kind=kind,
        table_rows=np.arange(count),
        n_sequences=2.0 ** rng.integers(0, 8, count),
        new_tokens=new if prefilling else np.ones(count),
        context=past + (new if prefilling else 1.0),
        n_heads=kv_heads * rng.choice([1.0, 4.0, 8.0, 64.0], count),
        n_kv_heads=kv_heads,
        head_dim=rng.choice([64.0, 80.0, 128.0, 256.0], count),
        window=rng.choice([0.0, 128.0, 1024.0], count),
        causal=np.ones(count),
        warm_frac=rng.uniform(0.0, 1.0, count),
        facts=np.tile([PEAK, 2.0, 2.0], (count, 1)),
        device=np.repeat(DEVICE[None], count),
        measured_s=np.ones(count),
    )


@pytest.mark.parametrize("kind", [recipe.PREFILL, recipe.DECODE])
def test_the_loop_over_rows_equals_single_calls_of_the_interpreted_form(kind: str) -> None:
    rows = _random_rows(kind, 200)
    base = PREFILL if kind == recipe.PREFILL else DECODE
    seconds = recipe.predict(rows, base)
    device = tables.as_row(DEVICE)
    row: Any = tables.as_row(record(recipe.ROW_DTYPES[kind], base))
    for i in range(len(rows)):
        heads = (rows.n_heads[i], rows.n_kv_heads[i], rows.head_dim[i], rows.window[i])
        if kind == recipe.PREFILL:
            alone = attention.attention_prefill_s(
                rows.n_sequences[i], rows.new_tokens[i], rows.context[i], *heads, 1.0,
                row, device, rows.head_dim[i], rows.warm_frac[i],
            )[0]  # fmt: skip
        else:
            alone = attention.attention_decode_s(
                rows.n_sequences[i], rows.context[i], *heads, row, device,
                rows.head_dim[i], rows.warm_frac[i],
            )[0]  # fmt: skip
        assert seconds[i] == pytest.approx(alone, rel=1e-12)


def test_compiled_defaults_are_those_of_the_interpreted_form() -> None:
    row, generation = (
        record(attention.ATTENTION_PREFILL, PREFILL),
        record(attention.ATTENTION_DECODE, DECODE),
    )
    core = compiled().attention
    assert core.attention_prefill_s(
        2.0, 100.0, 300.0, 8.0, 2.0, 96.0, 0.0, 1.0, row[()], DEVICE[()]
    )[0] == pytest.approx(prefill(2, 100, 300, 8, 2, 96)[0], rel=1e-12)
    assert core.attention_decode_s(2.0, 300.0, 8.0, 2.0, 96.0, 0.0, generation[()], DEVICE[()])[
        0
    ] == pytest.approx(decode(2, 300, 8, 2, 96)[0], rel=1e-12)


def _columns(count: int = 3, **changed: Any) -> dict[str, np.ndarray]:
    columns: dict[str, Any] = {
        "gpu": "h100-sxm5-80gb", "stack": "vllm", "stack_version": "1", "kernel": "flash",
        "dtype": "bf16", "kv_dtype": "bf16", "causal": 1, "batch": 2, "query_tokens": 64,
        "context_tokens": 64, "num_heads": 8, "num_kv_heads": 2, "head_dim": 128,
        "window_size": 0, "time_us": 20.0, **changed,
    }  # fmt: skip
    return {name: np.array([value] * count) for name, value in columns.items()}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("time_us", 0.0, "time is not above zero"),
        ("batch", 0, "no tokens"),
        ("context_tokens", 63, "context without the new tokens"),
        ("num_kv_heads", 9, "more KV heads than heads"),
        ("head_dim", 512, "head size above 256"),
        ("dtype", "int8_wo", "dtype without fused attention"),
        ("kv_dtype", "nvfp4", "cache dtype without fused attention"),
        ("kernel", "vllm_triton_attn", "fallback kernel (triton)"),
    ],
)
def test_rows_that_cannot_be_used_are_named(column: str, value: Any, reason: str) -> None:
    assert recipe.usable(_columns(**{column: value})).tolist() == [reason] * 3
    assert recipe.usable(_columns()).tolist() == [""] * 3


@pytest.mark.parametrize(
    ("gpu", "dtype", "kv_dtype", "width"),
    [
        ("h100-sxm5-80gb", "bf16", "bf16", "bf16"),
        ("h100-sxm5-80gb", "bf16", "fp8", "fp8"),
        ("b200-hgx-180gb", "bf16", "fp8", "fp8"),
        ("l40s", "bf16", "fp8", "bf16"),  # Ada: only the cache is in 8 bits
        ("l40s", "fp8", "fp8", "fp8"),
        ("a100-sxm4-80gb", "fp8", "fp8", "bf16"),  # has no such units
    ],
)
def test_the_format_of_the_products(gpu: str, dtype: str, kv_dtype: str, width: str) -> None:
    spec = catalog.load_gpu(gpu)
    assert attention_peak_flops_per_s(spec, dtype, kv_dtype) == spec.peak_flops_per_s(width)


def test_table_rows_become_kernel_inputs() -> None:
    columns = _columns(kv_dtype="fp8", query_tokens=16, context_tokens=64)
    rows = recipe.rows_of(columns, np.array([0, 2]), recipe.PREFILL, catalog.load_gpu)
    assert len(rows) == 2
    assert rows.context.tolist() == [64.0, 64.0]
    assert rows.new_tokens.tolist() == [16.0, 16.0]
    assert rows.facts[0].tolist() == [1978.9e12, 2.0, 1.0]
    assert rows.measured_s.tolist() == pytest.approx([20e-6, 20e-6])


@pytest.mark.parametrize("kind", [recipe.PREFILL, recipe.DECODE])
def test_chosen_rows_are_distinct_and_stand_for_all(kind: str) -> None:
    rows = _random_rows(kind, 400)
    chosen = recipe.choose_rows(rows, 32)
    assert len(set(chosen.tolist())) == 32
    assert chosen.tolist() == recipe.choose_rows(rows, 32).tolist()
    assert len(recipe.choose_rows(rows.take(np.arange(5)), 32)) == 5
    points = recipe.features(rows)

    def unlike(centres: np.ndarray) -> float:
        gaps = ((points[:, None] - points[centres][None]) ** 2).sum(axis=2)
        return float(gaps.min(axis=1).mean())

    assert unlike(chosen) < unlike(np.random.default_rng(0).permutation(400)[:32])


@pytest.mark.parametrize("kind", [recipe.PREFILL, recipe.DECODE])
def test_a_fit_of_made_up_times_predicts_other_rows(kind: str) -> None:
    from dataclasses import replace

    truth = {c.name: c.prior * np.exp(0.5 * c.spread) for c in recipe.COEFFICIENTS[kind]}
    # Tile heights are hard to tell apart in sums of tiles: the usual one there.
    unusual = {"max_group": 32.0, "split_rule": 0.5} if kind == recipe.DECODE else {}
    rows = _random_rows(kind, 264)
    rows = replace(rows, measured_s=recipe.predict(rows, {**truth, **unusual}))
    fit = recipe.fit_rows(rows.take(np.arange(64)), starts=1)
    fitted = recipe.named(fit)
    assert {name: fitted[name] for name in unusual} == unusual
    others = rows.take(np.arange(64, 264))
    error = np.abs(recipe.predict(others, fitted) / others.measured_s - 1.0)
    assert error.mean() < 0.03
    assert recipe.cross_validated_sigma(rows.take(np.arange(48)), folds=2) < 0.1


def test_a_family_of_gpus_learns_decode_from_all_stacks() -> None:
    from dataclasses import replace

    truth = {c.name: c.prior for c in recipe.COEFFICIENTS[recipe.DECODE]}
    stack = {**truth, "launch_clocks": 2.0 * truth["launch_clocks"]}
    rows = _random_rows(recipe.DECODE, 160)
    fast = rows.device.copy()
    fast["hbm_bytes_per_s"] *= 3.0
    parts = []
    for device, facts in ((rows.device, {}), (fast, {"split_rule": 0.5})):
        for coefficients in (truth, stack):
            part = replace(rows, device=device)
            measured_s = recipe.predict(part, {**coefficients, **facts})
            part = replace(part, measured_s=measured_s)
            parts.append(part.take(np.arange(64)))
    own = parts[1::2]
    fitted = recipe.named(recipe.fit_family(own, own, parts, []))
    assert fitted["split_rule"] == 1.0  # of no GPU in particular: the usual one
    # Between what all stacks say and what this one says.
    assert truth["launch_clocks"] < fitted["launch_clocks"] < 1.1 * stack["launch_clocks"]
    other = recipe.named(recipe.fit_family(own, parts[::2], parts, own[1:]))
    assert other["split_rule"] == 0.5  # of the generation
    assert fitted["launch_clocks"] > 1.1 * other["launch_clocks"]
    pooled = recipe.named(recipe.fit_family(own, [], parts, []))
    assert other["launch_clocks"] < pooled["launch_clocks"] < fitted["launch_clocks"]
