"""The fit finds known coefficients again; the row selection covers, repeats and extends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsim_kernels.tables import Coefficient

from rtsim.fit import fit_coefficients, select_rows

LAUNCH = Coefficient("launch_s", 1e-6, 0.7, 1e-8, 1e-4, "s", "start of a kernel")
RATE = Coefficient("rate_frac", 0.8, 0.3, 0.05, 1.0, "1", "share of the peak")
UNUSED = Coefficient("unused_s", 3e-6, 0.5, 1e-8, 1e-3, "s", "never timed here")

PEAK_BYTES_PER_S = 1e12
SIZES = np.geomspace(1e3, 1e9, 40)


def model(values: np.ndarray) -> np.ndarray:
    """A kernel: a fixed start, then bytes at a share of the peak rate."""
    return values[0] + SIZES / (values[1] * PEAK_BYTES_PER_S)


TRUE = np.array([2.5e-6, 0.55, 3e-6])


def test_known_coefficients_are_found_again() -> None:
    fit = fit_coefficients(model, model(TRUE), (LAUNCH, RATE), row_sigma=0.01)
    assert fit.names == ("launch_s", "rate_frac")
    np.testing.assert_allclose(fit.values, TRUE[:2], rtol=2e-3)
    assert fit.pinned.all()
    assert np.abs(fit.log_residuals).max() < 0.005


def test_residuals_are_predicted_over_measured() -> None:
    """A table twice as fast as any coefficient allows: everything is predicted too slow."""
    fit = fit_coefficients(model, model(np.array([1e-9, 2.0])), (LAUNCH, RATE), row_sigma=0.01)
    assert fit.log_residuals.mean() > 0.3
    assert fit.values[1] == pytest.approx(RATE.upper, rel=1e-3)  # held at its bound


def test_relative_errors_of_wide_scatter_draw_the_fit_below_the_middle() -> None:
    """A factor of three either way: |p/m - 1| is least near the lower half, ln(p/m) between."""
    factor = np.where(np.arange(len(SIZES)) % 2 == 0, 3.0, 1.0 / 3.0)
    measured_s = model(TRUE) * factor
    middle, low = (
        fit_coefficients(model, measured_s, (LAUNCH, RATE), row_sigma=0.05, relative=relative)
        for relative in (False, True)
    )

    def error(values: np.ndarray) -> float:
        return float(np.abs(model(values) / measured_s - 1.0).mean())

    assert error(low.values) < 0.9 * error(middle.values)
    np.testing.assert_allclose(
        low.log_residuals, np.log(model(low.values) / measured_s), rtol=1e-12
    )


def test_relative_errors_find_known_coefficients_too() -> None:
    fit = fit_coefficients(model, model(TRUE), (LAUNCH, RATE), row_sigma=0.01, relative=True)
    np.testing.assert_allclose(fit.values, TRUE[:2], rtol=2e-3)


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_outliers_do_not_drag_the_fit(factor: float) -> None:
    """Five of forty rows are off tenfold; a square cost would move both by tens of per cent."""
    noise = np.random.default_rng(7).normal(0.0, 0.02, len(SIZES))
    measured_s = model(TRUE) * np.exp(noise)
    measured_s[::8] *= factor
    fit = fit_coefficients(model, measured_s, (LAUNCH, RATE), row_sigma=0.02)
    np.testing.assert_allclose(fit.values, TRUE[:2], rtol=0.05)


def test_what_the_rows_do_not_pin_stays_at_the_prior() -> None:
    fit = fit_coefficients(model, model(TRUE), (LAUNCH, RATE, UNUSED), row_sigma=0.02)
    assert fit.pinned.tolist() == [True, True, False]
    assert fit.values[2] == pytest.approx(UNUSED.prior, rel=1e-6)
    # Nothing was learnt: the deviation of ln(value) is the prior's, and tied to nothing.
    assert fit.covariance[2, 2] == pytest.approx(UNUSED.spread**2, rel=1e-6)
    assert abs(fit.covariance[2, :2]).max() < 1e-9


def test_pinned_coefficients_are_known_better_than_before() -> None:
    fit = fit_coefficients(model, model(TRUE), (LAUNCH, RATE), row_sigma=0.02)
    deviation = np.sqrt(np.diag(fit.covariance))
    assert deviation[0] < 0.5 * LAUNCH.spread
    assert deviation[1] < 0.5 * RATE.spread
    loose = fit_coefficients(model, model(TRUE), (LAUNCH, RATE), row_sigma=0.2)
    assert (np.sqrt(np.diag(loose.covariance)) > 3 * deviation).all()


def test_few_noisy_rows_leave_the_prior_in_charge() -> None:
    """One row of 80 % scatter hardly moves a coefficient."""
    fit = fit_coefficients(
        lambda values: model(values)[-1:], model(TRUE)[-1:], (LAUNCH, RATE), row_sigma=0.8
    )
    assert not fit.pinned.any()
    assert RATE.prior > fit.values[1] > TRUE[1]
    assert fit.values[1] > 0.9 * RATE.prior


def test_each_row_may_have_a_scatter_of_its_own() -> None:
    """Rows that are said to be good decide over rows that are said to be bad."""
    fast, slow = model(np.array([2.5e-6, 0.8])), model(np.array([2.5e-6, 0.4]))
    measured_s = np.where(np.arange(len(SIZES)) % 2, fast, slow)
    sigma = np.where(np.arange(len(SIZES)) % 2, 0.01, 0.5)
    fit = fit_coefficients(model, measured_s, (LAUNCH, RATE), row_sigma=sigma)
    assert fit.values[1] == pytest.approx(0.8, rel=0.03)


def test_fits_repeat_exactly() -> None:
    first, second = (
        fit_coefficients(model, model(TRUE), (LAUNCH, RATE), row_sigma=0.02) for _ in range(2)
    )
    np.testing.assert_array_equal(first.values, second.values)
    np.testing.assert_array_equal(first.covariance, second.covariance)


# Row selection -----------------------------------------------------------------------------------


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Sizes on a coarse grid, so that duplicates are common."""
    rows, columns = draw(st.integers(1, 60)), draw(st.integers(1, 3))
    cells = draw(st.lists(st.integers(0, 4), min_size=rows * columns, max_size=rows * columns))
    return np.array(cells, float).reshape(rows, columns), draw(st.integers(1, 70))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tables())
def test_selection_is_a_prefix_of_any_longer_one(table: tuple[np.ndarray, int]) -> None:
    features, count = table
    everything = select_rows(features, len(features))
    chosen = select_rows(features, count)
    assert chosen.tolist() == everything[: len(chosen)].tolist()
    assert len(chosen) == min(count, len(features))
    assert chosen.tolist() == select_rows(features.copy(), count).tolist()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(tables())
def test_nothing_is_taken_twice_before_everything_new(table: tuple[np.ndarray, int]) -> None:
    features, count = table
    chosen = features[select_rows(features, count)]
    distinct = len(np.unique(features, axis=0))
    assert len(np.unique(chosen, axis=0)) == min(distinct, len(chosen))


def test_no_row_is_selected_twice() -> None:
    """Five rows, four of them equal, all five wanted: each once."""
    features = np.array([[0.0], [0.0], [0.0], [0.0], [1.0]])
    assert sorted(select_rows(features, 5).tolist()) == [0, 1, 2, 3, 4]


def test_selection_covers_corners_first() -> None:
    """A square of points: the middle, then its four corners."""
    side = np.linspace(-1.0, 1.0, 21)
    square = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    chosen = square[select_rows(square, 5)]
    assert chosen[0].tolist() == [0.0, 0.0]
    assert {tuple(point) for point in np.abs(chosen[1:])} == {(1.0, 1.0)}
    assert len(np.unique(chosen, axis=0)) == 5


def test_selection_leaves_no_gap() -> None:
    """Crowds at both ends, little between: the rest is covered to a tenth all the same."""
    rng = np.random.default_rng(3)
    crowded = np.concatenate([rng.uniform(0, 0.05, 500), rng.uniform(0.95, 1, 500)])
    values = np.concatenate([crowded, np.linspace(0.0, 1.0, 30)])[:, None]
    chosen = np.sort(values[select_rows(values, 16)].ravel())
    assert np.diff(chosen).max() < 0.11
    assert chosen[0] < 0.05
    assert chosen[-1] > 0.95


def test_units_of_a_feature_do_not_matter() -> None:
    rng = np.random.default_rng(5)
    features = rng.normal(size=(200, 3))
    scaled = features * np.array([1.0, 1e6, 1e-3]) + np.array([5.0, -1e7, 0.0])
    assert select_rows(features, 20).tolist() == select_rows(scaled, 20).tolist()


def test_a_constant_feature_is_no_fault() -> None:
    features = np.stack([np.arange(10.0), np.full(10, 3.0)], axis=1)
    assert set(select_rows(features, 3).tolist()) >= {0, 9}
