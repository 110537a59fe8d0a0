"""Latent attention over random sizes, GPUs, formats and coefficients: order and bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsim_kernels import compiled, mla, tables
from rtsim_kernels.tables import Coefficient

EXACT = 1.0 + 1e-9  # rounding


def rows(coefficients: tuple[Coefficient, ...], dtype: Any, facts: dict[str, list[float]]) -> Any:
    """Number formats, discrete facts, and coefficients within two prior deviations."""

    @st.composite
    def draw_row(draw: st.DrawFn) -> np.ndarray:
        values = {
            "peak_flops_per_s": draw(st.floats(1e13, 1e16)),
            "query_element_bytes": 2.0,
            "kv_element_bytes": draw(st.sampled_from([1.0, 2.0])),
        }
        for c in coefficients:
            z = draw(st.floats(-2.0, 2.0))
            value = float(np.clip(c.prior * np.exp(c.spread * z), c.lower, c.upper))
            values[c.name] = draw(st.sampled_from(facts[c.name])) if c.name in facts else value
        if values.get("least_splits", 1.0) > values.get("most_splits", 64.0):
            values["most_splits"] = values["least_splits"]
        return np.array(tuple(values[name] for name in dtype.names or ()), dtype)

    return draw_row()


decode_rows = rows(
    mla.MLA_DECODE_COEFFICIENTS, mla.MLA_DECODE,
    {"tile_rows": [16.0, 64.0, 128.0], "least_splits": [1.0, 8.0],
     "most_splits": [1.0, 8.0, 64.0], "converted": [0.5, 1.0]},
)  # fmt: skip
prefill_rows = rows(
    mla.MLA_PREFILL_COEFFICIENTS, mla.MLA_PREFILL,
    {"tile_rows": [64.0, 128.0, 256.0], "absorbed": [0.5, 1.0], "converted": [0.5, 1.0]},
)  # fmt: skip
devices = st.builds(
    lambda sms, clock, hbm, l2, flops: np.array((sms, clock, hbm, l2, flops), tables.DEVICE),
    st.integers(10, 200).map(float),
    st.floats(8e8, 3e9),
    st.floats(2e11, 1e13),
    st.floats(2e6, 3e8),
    st.floats(4e12, 1e14),
)
sequences = st.integers(1, 1024).map(float)
contexts = st.integers(1, 200_000).map(float)
heads = st.integers(1, 128).map(float)
widths = st.sampled_from([(512.0, 64.0), (512.0, 128.0), (256.0, 32.0)])
warm = st.sampled_from([0.0, 0.5, 1.0])


def decoded(size: tuple[float, ...], wide: Any, row: Any, device: Any, share: float) -> float:
    """Seconds, from both forms of the core: they agree."""
    seconds, bound = mla.mla_decode_s(
        *size, *wide, tables.as_row(row), tables.as_row(device), share
    )
    again = compiled().mla.mla_decode_s(*size, *wide, row[()], device[()], share)
    assert again[0] == pytest.approx(seconds, rel=1e-12)
    assert again[1] == bound
    return seconds


def filled(size: tuple[float, ...], row: Any, device: Any, share: float) -> float:
    """Seconds of a prefill of (sequences, new tokens, earlier ones, heads), both forms."""
    n_sequences, new, earlier, n_heads = size
    sizes = (n_sequences, new, new + earlier, n_heads, 128.0, 64.0, 128.0, 512.0)
    seconds, bound = mla.mla_prefill_s(*sizes, tables.as_row(row), tables.as_row(device), share)
    again = compiled().mla.mla_prefill_s(*sizes, row[()], device[()], share)
    assert again[0] == pytest.approx(seconds, rel=1e-12)
    assert again[1] == bound
    return seconds


@given(
    st.tuples(sequences, contexts, heads), widths, decode_rows, devices, warm,
    st.integers(0, 2), st.integers(1, 5000),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_more_decode_work_never_takes_less_time(
    size: tuple[float, ...], wide: Any, row: Any, device: Any, share: float, which: int, more: int
) -> None:
    larger = list(size)
    larger[which] += more if which == 1 else 1 + more % 64
    before = decoded(size, wide, row, device, share)
    assert before <= decoded(tuple(larger), wide, row, device, share) * EXACT


@given(
    st.tuples(sequences, st.integers(1, 30_000).map(float), st.integers(0, 9000).map(float), heads),
    prefill_rows, devices, warm, st.integers(0, 3), st.integers(1, 5000),
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_more_prefill_work_never_takes_less_time(
    size: tuple[float, ...], row: Any, device: Any, share: float, which: int, more: int
) -> None:
    larger = list(size)
    larger[which] += more if which in (1, 2) else 1 + more % 64
    before = filled(size, row, device, share)
    assert before <= filled(tuple(larger), row, device, share) * EXACT


@given(st.tuples(sequences, contexts, heads), widths, decode_rows, devices, warm,
       st.floats(1.0, 4.0))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_a_faster_part_never_slows(
    size: tuple[float, ...], wide: Any, row: Any, device: Any, share: float, factor: float
) -> None:
    before = decoded(size, wide, row, device, share)
    prompt = (size[0], min(size[1], 30_000.0), 0.0, size[2])
    prefill_row = np.zeros((), mla.MLA_PREFILL)
    for c in mla.MLA_PREFILL_COEFFICIENTS:
        prefill_row[c.name] = c.prior
    for name in ("peak_flops_per_s", "query_element_bytes", "kv_element_bytes"):
        prefill_row[name] = row[name]
    prompt_before = filled(prompt, prefill_row, device, share)
    for field in ("hbm_bytes_per_s", "l2_bytes", "clock_hz"):
        better = device.copy()
        better[field] *= factor
        assert decoded(size, wide, row, better, share) <= before * EXACT
        assert filled(prompt, prefill_row, better, share) <= prompt_before * EXACT


@given(st.tuples(sequences, contexts, heads), widths, decode_rows, prefill_rows, devices)
@settings(max_examples=200, deadline=None)
def test_never_below_the_roofline(
    size: tuple[float, ...], wide: Any, row: Any, prefill_row: Any, device: Any
) -> None:
    form, machine = tables.as_row(row), tables.as_row(device)
    flops, moved = mla.mla_decode_work(*size, *wide, form)
    least = max(flops / form.peak_flops_per_s, moved / machine.hbm_bytes_per_s)
    assert decoded(size, wide, row, device, 0.0) >= least / EXACT
    n_sequences, context, n_heads = size
    form = tables.as_row(prefill_row)
    flops, moved = mla.mla_prefill_work(
        n_sequences, context, context, n_heads, 128.0, 64.0, 128.0, 512.0, form
    )
    least = max(flops / form.peak_flops_per_s, moved / machine.hbm_bytes_per_s)
    prompt = (n_sequences, context, 0.0, n_heads)
    assert filled(prompt, prefill_row, device, 0.0) >= least / EXACT
