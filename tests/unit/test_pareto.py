"""Domination, Kendall's tau, swapped pairs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtsim.pareto import dominates, dominators, kendall_tau, swapped

points = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.tuples(st.integers(0, 5).map(float), st.integers(0, 5).map(float)),
    min_size=1,
)


@given(points)
def test_the_frontier_is_what_nothing_dominates(chosen: dict[str, tuple[float, float]]) -> None:
    found = dominators(chosen)
    front = {name for name, better in found.items() if not better}
    assert front  # something is always on it
    for name, better in found.items():
        assert set(better) == {o for o in chosen if dominates(chosen[o], chosen[name])}
        # Whatever is dominated is dominated by something on the frontier.
        assert not better or front & set(better)


def test_equal_points_do_not_dominate_each_other() -> None:
    assert dominators({"a": (1.0, 0.5), "b": (1.0, 0.5)}) == {"a": (), "b": ()}


@pytest.mark.parametrize(
    ("second", "tau"), [([1.0, 2.0, 3.0], 1.0), ([3.0, 2.0, 1.0], -1.0), ([2.0, 2.0, 2.0], None)]
)
def test_kendall_tau(second: list[float], tau: float | None) -> None:
    found = kendall_tau([10.0, 20.0, 30.0], second)
    assert math.isnan(found) if tau is None else found == tau


@given(st.lists(st.floats(0.0, 1e3), min_size=2, max_size=8, unique=True))
def test_tau_counts_swapped_pairs(values: list[float]) -> None:
    first = {str(i): float(i) for i in range(len(values))}
    second = dict(zip(first, values, strict=True))
    pairs = len(values) * (len(values) - 1) / 2
    tau = kendall_tau(list(first.values()), values)
    assert tau == pytest.approx(1.0 - 2.0 * len(swapped(first, second)) / pairs)


def test_pairs_within_their_spread_are_no_order() -> None:
    predicted, measured = [1.0, 2.1, 2.0, 9.0], [1.0, 2.0, 2.05, 8.0]
    assert kendall_tau(predicted, measured) == pytest.approx(1.0 - 2.0 / 6.0)
    assert kendall_tau(predicted, measured, [0.03] * 4) == 1.0
    # A swap of values that are clearly apart stays one.
    assert kendall_tau(predicted, [1.0, 2.0, 2.5, 8.0], [0.03] * 4) == pytest.approx(2.0 / 3.0)
    assert math.isnan(kendall_tau(predicted, measured, [10.0] * 4))
