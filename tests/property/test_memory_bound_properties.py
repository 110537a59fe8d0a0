"""Memory-bound operators over random sizes, GPUs and coefficients: order and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsim_kernels import compiled, memory_bound, tables

EXACT = 1.0 + 1e-9  # rounding


@st.composite
def coefficient_rows(draw: st.DrawFn) -> np.ndarray:
    """Coefficients anywhere within two prior deviations and their bounds."""
    values = []
    for c in memory_bound.MEMORY_BOUND_COEFFICIENTS:
        z = draw(st.floats(-2.0, 2.0))
        values.append(float(np.clip(c.prior * np.exp(c.spread * z), c.lower, c.upper)))
    return np.array(tuple(values), memory_bound.MEMORY_BOUND)


devices = st.builds(
    lambda sms, clock, hbm, l2, flops: np.array((sms, clock, hbm, l2, flops), tables.DEVICE),
    st.integers(10, 200).map(float),
    st.floats(8e8, 3e9),
    st.floats(2e11, 1e13),
    st.floats(2e6, 3e8),
    st.floats(4e12, 1e14),
)
names = st.sampled_from(sorted(memory_bound.OPERATORS))
counts = st.integers(1, 200_000).map(float)
widths = st.integers(1, 70_000).map(float)
elements = st.sampled_from([2.0, 4.0])
shares = st.floats(0.0, 1.0)


def timed(
    name: str, rows: float, cols: float, width: float, warm: float, row: Any, device: Any
) -> float:
    """Seconds, from both forms of the core: they agree."""
    arguments = (
        memory_bound.OPERATORS[name].kind,
        rows,
        cols,
        *memory_bound.operator_bytes(name, rows, cols, width, width),
        warm,
    )
    seconds, bound = memory_bound.memory_bound_s(
        *arguments, tables.as_row(row), tables.as_row(device)
    )
    again = compiled().memory_bound.memory_bound_s(*arguments, row[()], device[()])
    assert again[0] == pytest.approx(seconds, rel=1e-12)
    assert again[1] == bound
    return seconds


@settings(deadline=None)
@given(names, counts, counts, widths, elements, shares, coefficient_rows(), devices)
def test_more_rows_never_take_less_time(
    name: str,
    rows: float,
    further: float,
    cols: float,
    width: float,
    warm: float,
    row: Any,
    device: Any,
) -> None:
    few = timed(name, rows, cols, width, warm, row, device)
    assert timed(name, rows + further, cols, width, warm, row, device) * EXACT >= few


@settings(deadline=None)
@given(names, counts, widths, st.integers(1, 3000), elements, shares, coefficient_rows(), devices)
def test_longer_rows_never_take_less_time(
    name: str,
    rows: float,
    cols: float,
    further: int,
    width: float,
    warm: float,
    row: Any,
    device: Any,
) -> None:
    short = timed(name, rows, cols, width, warm, row, device)
    assert timed(name, rows, cols + further, width, warm, row, device) * EXACT >= short


@settings(deadline=None)
@given(names, counts, widths, shares, coefficient_rows(), devices)
def test_wider_elements_and_colder_inputs_never_take_less_time(
    name: str, rows: float, cols: float, warm: float, row: Any, device: Any
) -> None:
    narrow = timed(name, rows, cols, 2.0, warm, row, device)
    assert timed(name, rows, cols, 4.0, warm, row, device) * EXACT >= narrow
    assert timed(name, rows, cols, 2.0, 0.0, row, device) * EXACT >= narrow


@settings(deadline=None)
@given(
    names, counts, widths, elements, shares, coefficient_rows(), devices,
    st.sampled_from(tables.DEVICE.names or ()), st.floats(1.0, 10.0),
)  # fmt: skip
def test_a_faster_part_never_takes_longer(
    name: str,
    rows: float,
    cols: float,
    width: float,
    warm: float,
    row: Any,
    device: Any,
    part: str,
    factor: float,
) -> None:
    faster = device.copy()
    faster[part] *= factor
    before = timed(name, rows, cols, width, warm, row, device)
    assert timed(name, rows, cols, width, warm, row, faster) <= before * EXACT


@settings(deadline=None)
@given(names, counts, widths, elements, shares, coefficient_rows(), devices)
def test_never_below_the_roofline(
    name: str, rows: float, cols: float, width: float, warm: float, row: Any, device: Any
) -> None:
    read, written, _ = memory_bound.operator_bytes(name, rows, cols, width, width)
    cold_s = (read + written) * (1.0 - warm) / device["hbm_bytes_per_s"]
    l2_rate = device["sm_count"] * device["clock_hz"] * row["l2_bytes_per_clock"]
    seconds = timed(name, rows, cols, width, warm, row, device)
    assert seconds * EXACT >= max(cold_s, (read + written) / l2_rate, row["launch_s"])
    beyond_l2 = timed(name, rows, cols, width, 0.0, row, device)
    assert beyond_l2 * EXACT >= (read + written) / device["hbm_bytes_per_s"]
