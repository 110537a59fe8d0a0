"""Expert layers over random sizes, GPUs, formats and coefficients: order and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsim_kernels import compiled, moe, tables

EXACT = 1.0 + 1e-9  # rounding
# Places of the sizes that may grow: tokens, hidden size, width, experts per token.
GROWING = (0, 1, 2, 5)


@st.composite
def moe_rows(draw: st.DrawFn) -> np.ndarray:
    """A number format, and coefficients within two prior deviations and their bounds."""
    a_bytes = draw(st.sampled_from([2.0, 1.0, 0.5625]))
    values = {
        "peak_flops_per_s": draw(st.floats(1e13, 1e16)),
        "a_bytes": a_bytes,
        "b_bytes": draw(st.sampled_from([a_bytes, min(a_bytes, 0.53)])),
        "out_bytes": 2.0,
        "weight_copies": draw(st.sampled_from([1.0, 1e6])),
        "l2_partitions": draw(st.sampled_from([1.0, 2.0])),
    }
    for c in moe.MOE_COEFFICIENTS:
        z = draw(st.floats(-2.0, 2.0))
        values[c.name] = float(np.clip(c.prior * np.exp(c.spread * z), c.lower, c.upper))
    return np.array(tuple(values[name] for name in moe.MOE.names or ()), moe.MOE)


devices = st.builds(
    lambda sms, clock, hbm, l2, flops: np.array((sms, clock, hbm, l2, flops), tables.DEVICE),
    st.integers(10, 200).map(float),
    st.floats(8e8, 3e9),
    st.floats(2e11, 1e13),
    st.floats(2e6, 3e8),
    st.floats(4e12, 1e14),
)


@st.composite
def layers(draw: st.DrawFn) -> tuple[float, ...]:
    """Tokens, hidden size, width, experts, local experts, experts per token, matrices, skew."""
    experts = draw(st.sampled_from([8, 16, 60, 128, 256, 512]))
    ranks = draw(st.sampled_from([1, 1, 2, 4]))
    return (
        float(draw(st.integers(1, 40_000))),
        float(draw(st.integers(64, 8192))),
        float(draw(st.integers(16, 16_384))),
        float(experts),
        experts / ranks,
        float(draw(st.integers(1, min(experts, 16)))),
        draw(st.sampled_from([2.0, 3.0])),
        draw(st.sampled_from([0.0, 0.6, 1.0, 1.01, 1.2])),
    )


def timed(size: tuple[float, ...], row: Any, device: Any) -> float:
    """Seconds, from both forms of the core: they agree."""
    seconds, bound = moe.moe_s(*size, tables.as_row(row), tables.as_row(device))
    again = compiled().moe.moe_s(*size, row[()], device[()])
    assert again[0] == pytest.approx(seconds, rel=1e-12)
    assert again[1] == bound
    return seconds


@given(layers(), moe_rows(), devices, st.sampled_from(GROWING), st.integers(1, 500))
@settings(max_examples=300, deadline=None)
def test_more_work_never_takes_less_time(
    size: tuple[float, ...], row: Any, device: Any, which: int, more: int
) -> None:
    larger = list(size)
    larger[which] += more if which != 5 else 1
    if larger[5] > larger[3]:
        return
    assert timed(size, row, device) <= timed(tuple(larger), row, device) * EXACT


@given(layers(), moe_rows(), devices)
@settings(max_examples=200, deadline=None)
def test_more_experts_visited_never_take_less_time(
    size: tuple[float, ...], row: Any, device: Any
) -> None:
    """With even loads: half of the experts on this GPU, and the same number of more to visit."""
    even = (*size[:7], 0.0)
    local = even[4]
    half = (*even[:4], local / 2.0, *even[5:])
    assert timed(half, row, device) <= timed(even, row, device) * EXACT
    visited = moe.load_of(even[0], even[3], local, even[5], 0.0).visited
    skewed = moe.load_of(even[0], even[3], even[3], even[5], 1.2).visited * local / even[3]
    assert skewed <= visited * EXACT


@given(layers(), moe_rows(), devices, st.floats(1.0, 4.0))
@settings(max_examples=200, deadline=None)
def test_a_faster_part_never_slows(
    size: tuple[float, ...], row: Any, device: Any, factor: float
) -> None:
    before = timed(size, row, device)
    for field in ("hbm_bytes_per_s", "l2_bytes"):
        better = device.copy()
        better[field] *= factor
        assert timed(size, row, better) <= before * EXACT
    faster = row.copy()
    faster["peak_flops_per_s"] *= factor
    assert timed(size, faster, device) <= before * EXACT


@given(layers(), moe_rows(), devices)
@settings(max_examples=200, deadline=None)
def test_never_below_the_roofline(size: tuple[float, ...], row: Any, device: Any) -> None:
    form, machine = tables.as_row(row), tables.as_row(device)
    seconds = timed(size, row, device)
    flops, moved = moe.moe_work(*size, form)
    assert seconds >= flops / form.peak_flops_per_s / EXACT
    if form.weight_copies > 1.0:
        assert seconds >= moe.moe_roofline_s(*size, form, machine) / EXACT
    assert moved > 0.0
