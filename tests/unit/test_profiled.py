"""The two-part form fitted to runtimes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rtsim.errors import DataError
from rtsim.named_system import system
from rtsim.profiled import fit_table, fit_two_parts, profile_fit

ROWS = Path(__file__).parents[2] / "calibration" / "tables" / "generation_a100.csv"
SIZES = [(p, o) for p in (1, 128, 256, 512, 1024) for o in (1, 8, 32)]


def runtime_s(p: float, o: float) -> float:
    """Flat to 128 tokens, then linear: two pieces."""
    return 0.05 + 1e-4 * max(0.0, p - 128.0) + 0.02 * (o - 1)


def test_an_exact_table_comes_back() -> None:
    times = np.array([runtime_s(*size) for size in SIZES])
    one = fit_table("t", "m", SIZES, times, range(len(SIZES)))
    assert one.fit.per_output_token_s == pytest.approx(0.02, rel=1e-9)
    assert one.r_squared == pytest.approx(1.0)
    assert 128 in one.fit.knots
    assert max(map(abs, one.residuals_s)) < 1e-9
    # Beyond the table the last piece goes on.
    assert one.fit.runtime_s(np.array([2048.0]), np.array([1.0]))[0] == pytest.approx(
        runtime_s(2048, 1)
    )


def test_knots_are_few_where_the_table_is_noisy() -> None:
    random = np.random.default_rng(0)
    p = np.repeat(np.arange(1.0, 2000.0, 50.0), 4)
    o = np.tile([1.0, 8.0, 32.0, 64.0], 40)
    times = (0.05 + 1e-4 * p + 0.02 * (o - 1)) * random.normal(1.0, 0.005, len(p))
    fit = fit_two_parts(p, o, times)
    assert len(fit.knots) <= 4
    assert fit.per_output_token_s == pytest.approx(0.02, rel=5e-3)


def test_measured_generations() -> None:
    """Ten rows of each of six models: the form fits them, and the prediction comes close."""
    fitted = profile_fit(ROWS)
    assert len(fitted) == 6
    for one in fitted:
        assert one.rows == 10
        assert one.r_squared >= 0.999, one.model
        assert one.unprofiled is not None
        assert one.unprofiled.errors.mean < 0.03, one.model
        assert one.unprofiled.per_output_token_s == pytest.approx(
            one.fit.per_output_token_s, rel=0.04
        )


def write(path: Path, rows: list[tuple[object, ...]], header: str = "") -> Path:
    lines = [header or "prompt_tokens,output_tokens,runtime_s"]
    lines += [",".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_plain_table_and_a_named_system(tmp_path: Path) -> None:
    own = system("gpt3-6.7b", "a100")
    rows = [(p, o, own.times(1, p, o).e2e_latency_s) for p, o in SIZES]
    (one,) = profile_fit(write(tmp_path / "t.csv", rows), system=own)
    assert one.unprofiled is not None
    assert one.unprofiled.errors.mean < 1e-9  # it is its own prediction
    (alone,) = profile_fit(tmp_path / "t.csv")
    assert alone.unprofiled is None


def test_faulty_rows_are_noted_and_faulty_tables_refused(tmp_path: Path) -> None:
    rows: list[tuple[object, ...]] = [(p, o, runtime_s(p, o)) for p, o in SIZES]
    (one,) = profile_fit(write(tmp_path / "t.csv", [*rows, (64, 8, -1.0), (64, "", 0.2)]))
    assert one.rows == len(SIZES)
    assert len(one.notes) == 2
    with pytest.raises(DataError, match="one output length"):
        profile_fit(write(tmp_path / "t.csv", [(p, 8, 0.1 + p) for p in range(1, 9)]))
    with pytest.raises(DataError, match="2 rows; a fit needs 3"):
        profile_fit(write(tmp_path / "t.csv", [(1, 1, 0.1), (1, 2, 0.2)]))
    with pytest.raises(DataError, match="no row is of model 'x'"):
        profile_fit(ROWS, model="x")
    with pytest.raises(DataError, match="'runtime_s' is missing; is it 'runtime'"):
        profile_fit(write(tmp_path / "t.csv", [(1, 1, 2)], "prompt_tokens,output_tokens,runtime"))
