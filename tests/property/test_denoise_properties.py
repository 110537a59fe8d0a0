"""Known truth plus heavy-tailed waiting: the denoised runtime recovers it, within its interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rtsim.denoise import PRECISION_FRAC, denoise_model
from rtsim.latencies import Latency

PROMPTS = (1, 256, 512, 1024, 1536)
OUTPUTS = (1, 2, 4, 8, 16, 32, 64)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.floats(0.006, 0.1),
    st.floats(0.02, 0.4),
    st.floats(1e-5, 4e-4),
    st.sampled_from(("pareto", "lognormal", "spikes")),
    st.integers(8, 14),
)
def test_truth_is_recovered_within_its_interval(
    seed: int, per_token_s: float, overhead_s: float, per_prompt_s: float, noise: str, repeats: int
) -> None:
    random = np.random.default_rng(seed)

    def waiting_frac() -> float:
        if noise == "pareto":  # without a variance
            return 0.3 * float(random.pareto(1.5))
        if noise == "lognormal":
            return float(random.lognormal(-2.0, 1.2))
        return float(random.random() < 0.4) * float(random.exponential(3.0))

    rows = []
    for p in PROMPTS:
        for o in OUTPUTS:
            alone_s = overhead_s + per_prompt_s * (p - 1) + per_token_s * o
            rows += [Latency(0, p, o, alone_s * (1.0 + waiting_frac())) for _ in range(repeats)]
    fit = denoise_model("m", rows, bootstraps=40)
    said_so = any(note.startswith("cells too thin for 3 %") for note in fit.notes)
    if not said_so:
        assert fit.curve.per_output_token_s == pytest.approx(per_token_s, rel=PRECISION_FRAC)
    interval = fit.per_output_token_interval_s
    assert interval.low <= per_token_s <= interval.high
    assert list(fit.curve.prefill_s) == sorted(fit.curve.prefill_s)
    assert fit.curve.overhead_s == pytest.approx(overhead_s, rel=0.10, abs=0.02)


def test_most_tables_of_ten_repeats_are_good_for_three_per_cent() -> None:
    """The note is no way out: where calls wait moderately it is the exception."""
    random = np.random.default_rng(17)
    notes = 0
    for _ in range(12):
        rows = [
            Latency(0, p, o, (0.1 + 1e-4 * (p - 1) + 0.03 * o) * (1.0 + 0.3 * random.pareto(1.5)))
            for p in PROMPTS
            for o in OUTPUTS
            for _ in range(10)
        ]
        fit = denoise_model("m", rows, bootstraps=20)
        assert fit.curve.per_output_token_s == pytest.approx(0.03, rel=PRECISION_FRAC)
        notes += bool(fit.notes)
    assert notes <= 2


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 10.0), st.integers(0, 10**6))
def test_units_do_not_matter(factor: float, seed: int) -> None:
    """Every time so many times as long: every fitted time so many times as long."""
    random = np.random.default_rng(seed)
    rows = [
        Latency(0, p, o, (0.1 + 1e-4 * p + 0.02 * o) * (1.0 + float(random.exponential(0.3))))
        for p in (1, 512, 1024)
        for o in (1, 4, 16)
        for _ in range(3)
    ]
    scaled = [Latency(0, r.prompt_tokens, r.output_tokens, factor * r.runtime_s) for r in rows]
    one, other = (denoise_model("m", table, bootstraps=20).curve for table in (rows, scaled))
    assert other.per_output_token_s == pytest.approx(factor * one.per_output_token_s, rel=1e-6)
    assert other.runtime_s(300, 9) == pytest.approx(factor * one.runtime_s(300, 9), rel=1e-6)
