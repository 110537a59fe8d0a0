"""Frontiers and orders."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtsim.errors import SpecError, UnknownName
from rtsim.selection import Metric, Selection, frontier, parse_pareto, parse_sort

few = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6) | st.just(float("nan"))), max_size=30)


def slow_frontier(points: list[tuple[float, float]]) -> list[int]:
    there = [(i, x, y) for i, (x, y) in enumerate(points) if y == y]
    return [
        i
        for i, x, y in there
        if not any(u <= x and v <= y and (u < x or v < y) for _, u, v in there)
    ]


@given(few)
def test_frontier_is_what_nothing_beats(points) -> None:
    x, y = np.array(points, float).reshape(-1, 2).T
    assert frontier(x, y).tolist() == slow_frontier(points)


@given(few, st.integers(1, 5), st.none() | st.integers(1, 10), st.booleans(), st.booleans())
def test_thinning_in_chunks_changes_nothing(points, chunk, top, pareto, largest) -> None:
    x, y = np.array(points, float).reshape(-1, 2).T
    selection = Selection(
        (Metric("x"), Metric("y", largest)) if pareto else (), Metric("y", largest), top
    )
    whole = {"x": x, "y": y}
    expected = selection.final(whole, len(x)).tolist()
    kept: list[int] = []
    for first in range(0, len(x), chunk):
        part = {name: column[first : first + chunk] for name, column in whole.items()}
        kept += (first + selection.early(part, len(part["x"]))).tolist()
    thin = {name: column[kept] for name, column in whole.items()}
    again = [kept[i] for i in selection.final(thin, len(kept))]
    assert again == expected


def test_orders_and_frontiers_as_text() -> None:
    assert parse_sort("a:desc", ["a"]) == Metric("a", largest=True)
    assert parse_sort("a", ["a"]) == Metric("a")
    assert parse_pareto("a,max:b", ["a", "b"]) == (Metric("a"), Metric("b", largest=True))
    with pytest.raises(UnknownName, match="nearest: tpot_s"):
        parse_sort("tpot", ["tpot_s"])
    for text in ("a", "a,b,c", "a,"):
        with pytest.raises(SpecError, match="two columns"):
            parse_pareto(text, ["a", "b", "c"])
    with pytest.raises(SpecError, match="desc"):
        parse_sort("a:down", ["a"])
