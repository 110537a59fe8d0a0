"""GEMM timing over random sizes, GPUs, formats and coefficients: order and bounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsim_kernels import compiled, gemm, tables

EXACT = 1.0 + 1e-9  # rounding


@st.composite
def gemm_rows(draw: st.DrawFn) -> np.ndarray:
    """A number format, and coefficients within two prior deviations and their bounds."""
    a_bytes = draw(st.sampled_from([4.0, 2.0, 1.0, 0.5625]))
    values = {
        "peak_flops_per_s": draw(st.floats(4e12, 1e16)),
        "a_bytes": a_bytes,
        "b_bytes": draw(st.sampled_from([a_bytes, min(a_bytes, 1.0), min(a_bytes, 0.53)])),
        "out_bytes": draw(st.sampled_from([2.0, 4.0])),
        "quantize_bytes": draw(st.sampled_from([0.0, 2.0])),
        "activation_copies": draw(st.sampled_from([1.0, 5.5])),
        "l2_partitions": draw(st.sampled_from([1.0, 2.0])),
        "least_step": draw(st.sampled_from([0.5, 1.0])),
    }
    for c in gemm.GEMM_COEFFICIENTS:
        z = draw(st.floats(-2.0, 2.0))
        values[c.name] = float(np.clip(c.prior * np.exp(c.spread * z), c.lower, c.upper))
    values["power_frac"] = draw(st.sampled_from([values["power_frac"], 0.9, 0.4]))
    return np.array(tuple(values[name] for name in gemm.GEMM.names or ()), gemm.GEMM)


devices = st.builds(
    lambda sms, clock, hbm, l2, flops: np.array((sms, clock, hbm, l2, flops), tables.DEVICE),
    st.integers(10, 200).map(float),
    st.floats(8e8, 3e9),
    st.floats(2e11, 1e13),
    st.floats(2e6, 3e8),
    st.floats(4e12, 1e14),
)
rows_of_m = st.integers(1, 40_000).map(float)
widths = st.integers(1, 70_000).map(float)
batches = st.integers(1, 512).map(float)
copies = st.sampled_from([1.0, 2.0, 5.5, 100.0, math.inf])
problems = st.tuples(rows_of_m, widths, widths, st.one_of(st.just(1.0), batches))
# Whole rows of 16 bytes in every format, 4-bit ones with their scales among them.
ALIGNED = 256
aligned_widths = st.integers(1, 280).map(lambda blocks: float(ALIGNED * blocks))
aligned_problems = st.tuples(
    rows_of_m, aligned_widths, aligned_widths, st.one_of(st.just(1.0), batches)
)


def timed(size: tuple[float, ...], n_copies: float, row: Any, device: Any) -> float:
    """Seconds, from both forms of the core: they agree."""
    g, d = tables.as_row(row), tables.as_row(device)
    seconds, bound = gemm.gemm_s(*size, n_copies, g, d)
    again = compiled().gemm.gemm_s(*size, n_copies, row[()], device[()])
    assert again[0] == pytest.approx(seconds, rel=1e-12)
    assert again[1] == bound
    return seconds


@given(
    aligned_problems, copies, gemm_rows(), devices, st.integers(0, 3), st.integers(1, 200),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_more_work_never_takes_less_time(
    size: tuple[float, ...], n_copies: float, row: Any, device: Any, which: int, more: int
) -> None:
    larger = list(size)
    larger[which] += more * (ALIGNED if which in (1, 2) else 1)
    assert timed(size, n_copies, row, device) <= timed(tuple(larger), n_copies, row, device) * EXACT


@given(
    problems, copies, gemm_rows(), devices, st.integers(1, 2), st.integers(1, 200),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_more_work_of_one_alignment_never_takes_less_time(
    size: tuple[float, ...], n_copies: float, row: Any, device: Any, which: int, more: int
) -> None:
    # Steps of 256 elements keep the remainder modulo 16 bytes, whatever it is.
    larger = list(size)
    larger[which] += more * ALIGNED
    assert timed(size, n_copies, row, device) <= timed(tuple(larger), n_copies, row, device) * EXACT


@given(problems, copies, gemm_rows(), devices, st.integers(0, 3), st.integers(1, 1000))
@settings(max_examples=200, deadline=None)
def test_without_tensor_cores_every_size_counts_and_no_alignment(
    size: tuple[float, ...], n_copies: float, row: Any, device: Any, which: int, more: int
) -> None:
    row["a_bytes"] = row["b_bytes"] = row["out_bytes"] = 4.0
    larger = list(size)
    larger[which] += more
    assert timed(size, n_copies, row, device) <= timed(tuple(larger), n_copies, row, device) * EXACT


@given(problems, gemm_rows(), devices, st.floats(1.0, 50.0), st.floats(1.0, 10.0))
@settings(max_examples=150, deadline=None)
def test_colder_weights_never_take_less_time(
    size: tuple[float, ...], row: Any, device: Any, n_copies: float, factor: float
) -> None:
    warm = timed(size, n_copies, row, device)
    assert warm <= timed(size, n_copies * factor, row, device) * EXACT
    assert warm <= timed(size, math.inf, row, device) * EXACT


@given(
    problems, copies, gemm_rows(), devices, st.floats(1.0, 4.0),
    st.sampled_from([
        "clock_hz", "hbm_bytes_per_s", "l2_bytes", "peak_flops_per_s", "vector_flops_per_s",
    ]),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_a_faster_part_never_takes_longer(
    size: tuple[float, ...], n_copies: float, row: Any, device: Any, factor: float, rate: str
) -> None:
    before = timed(size, n_copies, row, device)
    changed_row, changed_device = row.copy(), device.copy()
    if rate == "peak_flops_per_s":
        changed_row[rate] *= factor
    else:
        changed_device[rate] *= factor
    assert timed(size, n_copies, changed_row, changed_device) <= before * EXACT


@given(problems, copies, gemm_rows(), devices)
@settings(max_examples=300, deadline=None)
def test_never_below_the_roofline(
    size: tuple[float, ...], n_copies: float, row: Any, device: Any
) -> None:
    g, d = tables.as_row(row), tables.as_row(device)
    floor = gemm.gemm_roofline_s(*size, n_copies, g, d)
    assert timed(size, n_copies, row, device) * EXACT >= floor
    # And the bound is no weaker than arithmetic alone.
    assert floor >= gemm.gemm_flops(*size) / gemm.short_flops_per_s(g, d)


edges = st.sampled_from([gemm.RESIDENCY_EDGE, gemm.PARTITION_EDGE])


@given(st.floats(0.01, 1e4), st.floats(1.0, 2.0), edges)
@settings(max_examples=300, deadline=None)
def test_missing_bytes_grow_with_the_working_set(ratio: float, factor: float, edge: float) -> None:
    low, high = gemm.miss_frac(ratio, edge), gemm.miss_frac(ratio * factor, edge)
    assert 0.0 <= low <= high + 1e-12 <= 1.0 + 1e-12
