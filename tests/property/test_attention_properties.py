"""Fused attention over random shapes, GPUs and coefficients: order, bounds, both forms agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rtsim_kernels import attention, compiled, tables
from rtsim_kernels.tables import Coefficient

EXACT = 1.0 + 1e-9  # rounding
# Values of discrete facts besides their priors.
FACTS = {
    "tile_rows": (64.0, 128.0, 256.0),
    "single_pack_frac": (0.02, 1.0),
    "max_group": (32.0, 1024.0),
    "split_rule": (0.5, 1.0, 2.0),
}


def rows_of(
    coefficients: tuple[Coefficient, ...], dtype: np.dtype[np.void]
) -> st.SearchStrategy[np.ndarray]:
    """Coefficients within two prior deviations and their bounds, with facts of a format."""

    @st.composite
    def draw_row(draw: st.DrawFn) -> np.ndarray:
        values = {
            "peak_flops_per_s": draw(st.floats(5e13, 5e15)),
            "query_element_bytes": draw(st.sampled_from([2.0, 4.0])),
            "kv_element_bytes": draw(st.sampled_from([1.0, 2.0])),
        }
        for c in coefficients:
            if c.name in FACTS:
                values[c.name] = draw(st.sampled_from(FACTS[c.name]))
            else:
                value = c.prior * np.exp(c.spread * draw(st.floats(-2.0, 2.0)))
                values[c.name] = float(np.clip(value, c.lower, c.upper))
        return np.array(tuple(values[name] for name in dtype.names or ()), dtype)

    return draw_row()


prefill_rows = rows_of(attention.ATTENTION_PREFILL_COEFFICIENTS, attention.ATTENTION_PREFILL)
decode_rows = rows_of(attention.ATTENTION_DECODE_COEFFICIENTS, attention.ATTENTION_DECODE)
devices = st.builds(
    lambda sms, clock, hbm, l2, flops: np.array((sms, clock, hbm, l2, flops), tables.DEVICE),
    st.integers(10, 200).map(float),
    st.floats(8e8, 3e9),
    st.floats(2e11, 1e13),
    st.floats(2e6, 3e8),
    st.floats(4e12, 1e14),
)
sequences = st.integers(1, 2048).map(float)
tokens = st.one_of(st.integers(2, 700), st.integers(2, 20_000)).map(float)
contexts = st.one_of(st.integers(1, 1000), st.integers(1, 140_000)).map(float)
pasts = st.one_of(st.just(0), st.integers(0, 50_000)).map(float)
kv_heads = st.integers(1, 64).map(float)
groups = st.sampled_from([1.0, 2.0, 4.0, 5.0, 8.0, 16.0, 32.0, 64.0, 128.0])
head_dims = st.sampled_from([64.0, 72.0, 80.0, 96.0, 128.0, 192.0, 256.0])
windows = st.sampled_from([0.0, 128.0, 1024.0, 8192.0])
shares = st.floats(0.0, 1.0)
more = st.integers(1, 5000).map(float)


def prefill(row: Any, device: Any, *shape: float) -> float:
    """Seconds for (sequences, new, past, kv heads, group, head dim, window, causal, warm)."""
    n, new, past, kv, group, dim, window, causal, warm = shape
    context = new + past if causal else new
    sizes = (n, new, context, kv * group, kv, dim, window, causal)
    plain = attention.attention_prefill_s(
        *sizes, tables.as_row(row), tables.as_row(device), dim, warm
    )
    again = compiled().attention.attention_prefill_s(*sizes, row[()], device[()], dim, warm)
    assert again[0] == pytest.approx(plain[0], rel=1e-12)
    assert again[1] == plain[1]
    return plain[0]


def decode(row: Any, device: Any, *shape: float) -> float:
    """Seconds for (sequences, context, kv heads, group, head dim, window, warm)."""
    n, context, kv, group, dim, window, warm = shape
    sizes = (n, context, kv * group, kv, dim, window)
    plain = attention.attention_decode_s(
        *sizes, tables.as_row(row), tables.as_row(device), dim, warm
    )
    again = compiled().attention.attention_decode_s(*sizes, row[()], device[()], dim, warm)
    assert again[0] == pytest.approx(plain[0], rel=1e-12)
    assert again[1] == plain[1]
    return plain[0]


prefill_shapes = st.tuples(
    sequences, tokens, pasts, kv_heads, groups, head_dims, windows, st.sampled_from([0.0, 1.0]),
    shares,
)  # fmt: skip
decode_shapes = st.tuples(sequences, contexts, kv_heads, groups, head_dims, windows, shares)


# Positions in the shapes above that may only lengthen the time: sequences, new tokens, earlier
# context, heads (in groups of one size).
@settings(deadline=None, max_examples=300)
@given(prefill_rows, devices, prefill_shapes, st.sampled_from([0, 1, 2, 3]), more)
def test_a_larger_prefill_never_takes_less_time(
    row: Any, device: Any, shape: tuple[float, ...], size: int, further: float
) -> None:
    grown = (*shape[:size], shape[size] + further, *shape[size + 1 :])
    assert prefill(row, device, *grown) * EXACT >= prefill(row, device, *shape)


@settings(deadline=None, max_examples=300)
@given(decode_rows, devices, decode_shapes, st.sampled_from([0, 1, 2]), more)
def test_a_larger_decode_never_takes_less_time(
    row: Any, device: Any, shape: tuple[float, ...], size: int, further: float
) -> None:
    assume(size != 2 or shape[2] > 1 or shape[3] == 1)  # a second group needs regrouping
    grown = (*shape[:size], shape[size] + further, *shape[size + 1 :])
    assert decode(row, device, *grown) * EXACT >= decode(row, device, *shape)


@settings(deadline=None, max_examples=200)
@given(prefill_rows, decode_rows, devices, prefill_shapes, head_dims)
def test_larger_heads_never_take_less_time(
    row: Any, decode_row: Any, device: Any, shape: tuple[float, ...], other: float
) -> None:
    small, large = sorted((shape[5], other))
    resized = [(*shape[:5], dim, *shape[6:]) for dim in (small, large)]
    assert prefill(row, device, *resized[1]) * EXACT >= prefill(row, device, *resized[0])
    n, new, past, kv, group, _, window, _, warm = shape
    times = [
        decode(decode_row, device, n, new + past, kv, group, dim, window, warm)
        for dim in (small, large)
    ]
    assert times[1] * EXACT >= times[0]


@settings(deadline=None, max_examples=200)
@given(prefill_rows, decode_rows, devices, prefill_shapes, st.sampled_from([128.0, 1024.0, 8192.0]))
def test_a_window_never_adds_time(
    row: Any, decode_row: Any, device: Any, shape: tuple[float, ...], window: float
) -> None:
    n, new, past, kv, group, dim, _, causal, warm = shape
    assert prefill(row, device, n, new, past, kv, group, dim, 0.0, causal, warm) * EXACT >= (
        prefill(row, device, n, new, past, kv, group, dim, window, causal, warm)
    )
    # Kernels that split and group only without a window are slower with one.
    decode_row["split_rule"] = max(1.0, decode_row["split_rule"])
    assert decode(decode_row, device, n, new + past, kv, group, dim, 0.0, warm) * EXACT >= (
        decode(decode_row, device, n, new + past, kv, group, dim, window, warm)
    )


@settings(deadline=None, max_examples=300)
@given(
    prefill_rows,
    decode_rows,
    devices,
    prefill_shapes,
    st.sampled_from(["clock_hz", "hbm_bytes_per_s", "l2_bytes", "peak_flops_per_s"]),
    st.floats(1.0, 4.0),
)
def test_a_faster_gpu_is_never_slower(
    row: Any, decode_row: Any, device: Any, shape: tuple[float, ...], rate: str, factor: float
) -> None:
    n, new, past, kv, group, dim, window, _, warm = shape
    generation = (n, new + past, kv, group, dim, window, warm)
    before = prefill(row, device, *shape), decode(decode_row, device, *generation)
    for owner in (row, decode_row) if rate == "peak_flops_per_s" else (device,):
        owner[rate] *= factor
    after = prefill(row, device, *shape), decode(decode_row, device, *generation)
    assert after[0] <= before[0] * EXACT
    assert after[1] <= before[1] * EXACT


@settings(deadline=None, max_examples=300)
@given(prefill_rows, decode_rows, devices, prefill_shapes)
def test_never_beats_the_roofline(
    row: Any, decode_row: Any, device: Any, shape: tuple[float, ...]
) -> None:
    """Cold: FLOPs at peak and bytes from HBM. Warm: at least FLOPs at peak and bytes from L2."""
    n, new, past, kv, group, dim, window, causal, warm = shape
    context = new + past if causal else new
    l2 = float(attention.L2_BYTES_PER_CLOCK * device["sm_count"] * device["clock_hz"])
    flops, moved = attention.attention_prefill_work(
        n, new, context, kv * group, kv, dim, window, causal, tables.as_row(row), dim
    )
    assert prefill(row, device, *shape) * EXACT >= max(
        flops / float(row["peak_flops_per_s"]), moved / l2
    )
    cold = (*shape[:8], 0.0)
    assert prefill(row, device, *cold) * EXACT >= moved / float(device["hbm_bytes_per_s"])

    flops, moved = attention.attention_decode_work(
        n, context, kv * group, kv, dim, window, tables.as_row(decode_row), dim
    )
    cached = moved - n * kv * group * 2.0 * dim * float(decode_row["query_element_bytes"])
    assert decode(decode_row, device, n, context, kv, group, dim, window, warm) * EXACT >= max(
        flops / float(decode_row["peak_flops_per_s"]), cached / l2
    )
    assert decode(decode_row, device, n, context, kv, group, dim, window, 0.0) * EXACT >= (
        moved / float(device["hbm_bytes_per_s"])
    )


@settings(deadline=None, max_examples=100)
@given(prefill_rows, decode_rows, devices, prefill_shapes, shares)
def test_warmer_operands_never_take_longer(
    row: Any, decode_row: Any, device: Any, shape: tuple[float, ...], other: float
) -> None:
    n, new, past, kv, group, dim, window, _, warm = shape
    cooler, warmer = sorted((warm, other))
    assert prefill(row, device, *shape[:8], warmer) <= (
        prefill(row, device, *shape[:8], cooler) * EXACT
    )
    generation = (n, new + past, kv, group, dim, window)
    assert decode(decode_row, device, *generation, warmer) <= (
        decode(decode_row, device, *generation, cooler) * EXACT
    )
