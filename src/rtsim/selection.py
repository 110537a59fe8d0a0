"""Which rows of a sweep are kept: those on a Pareto frontier, the first in an order.

A chunk of rows is thinned on its own first; what a frontier or the best N of all rows would drop
in the end can only have been dropped early.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.errors import SpecError, UnknownName

Array = NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A column to order by; `largest`: the largest value is the best."""

    column: str
    largest: bool = False

    def of(self, columns: Mapping[str, Array]) -> Array:
        """(rows,) values of which the smallest is the best."""
        values = np.asarray(columns[self.column], float)
        return -values if self.largest else values


@dataclass(frozen=True)
class Selection:
    """What is kept: the frontier of `pareto` (none: all), in the order of `sort`, the first `top`.

    Rows that have no value in a column of `pareto` are not on its frontier; in an order they come
    last. Equal rows keep the order of the grid.
    """

    pareto: tuple[Metric, ...] = ()
    sort: Metric | None = None
    top: int | None = None

    @property
    def columns(self) -> set[str]:
        """Columns that it reads."""
        metrics = (*self.pareto, *((self.sort,) if self.sort else ()))
        return {metric.column for metric in metrics}

    @property
    def thins(self) -> bool:
        """Whether rows are left out."""
        return bool(self.pareto) or self.top is not None

    def early(self, columns: Mapping[str, Array], n_rows: int) -> Array:
        """Rows of a chunk that may be kept in the end, in their own order."""
        if self.pareto:
            return frontier(*(metric.of(columns) for metric in self.pareto))
        if self.top is None or n_rows <= self.top:
            return np.arange(n_rows)
        return np.sort(self._ordered(columns, np.arange(n_rows))[: self.top])

    def final(self, columns: Mapping[str, Array], n_rows: int) -> Array:
        """Rows to keep of all those that were kept early, in their final order."""
        kept: Array = np.arange(n_rows)
        if self.pareto:
            kept = frontier(*(metric.of(columns) for metric in self.pareto))
        return self._ordered(columns, kept)[: self.top]

    def _ordered(self, columns: Mapping[str, Array], rows: Array) -> Array:
        if self.sort is None:
            return rows
        return rows[np.argsort(self.sort.of(columns)[rows], kind="stable")]


def frontier(x: Array, y: Array) -> Array:
    """Rows that no other row beats in x and y (least is best), in their own order.

    >>> frontier(np.array([1.0, 2.0, 3.0, 2.0]), np.array([3.0, 1.0, 2.0, 4.0])).tolist()
    [0, 1]
    """
    there = np.flatnonzero(~(np.isnan(x) | np.isnan(y)))
    order = there[np.lexsort((y[there], x[there]))]
    if len(order) == 0:
        return order
    xs, ys = x[order], y[order]
    # Of equal x the least y leads; it must be less than every y of a smaller x.
    first = np.concatenate(([True], xs[1:] != xs[:-1]))
    place = np.flatnonzero(first)[np.cumsum(first) - 1]
    least = np.minimum.accumulate(ys)
    before = np.where(place > 0, least[np.maximum(place - 1, 0)], np.inf)
    return np.sort(order[(ys == ys[place]) & ((ys < before) | (place == 0))])


def parse_sort(text: str, known: Collection[str]) -> Metric:
    """`COLUMN`, `COLUMN:asc` or `COLUMN:desc`; UnknownName or SpecError."""
    column, _, order = text.partition(":")
    if order not in ("", "asc", "desc"):
        raise SpecError("sort", text, "must be COLUMN, COLUMN:asc or COLUMN:desc")
    return Metric(_known(column.strip(), known), largest=order == "desc")


def parse_pareto(text: str, known: Collection[str]) -> tuple[Metric, ...]:
    """`X,Y`: two columns to minimise; "max:" before one maximises it. UnknownName or SpecError."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts):
        raise SpecError("pareto", text, "must be two columns, such as tpot_s,max:output_throughput")
    metrics = []
    for part in parts:
        largest = part.startswith("max:")
        column = part.removeprefix("max:").removeprefix("min:")
        metrics.append(Metric(_known(column, known), largest))
    if metrics[0].column == metrics[1].column:
        raise SpecError(
            "pareto", text, f"has {metrics[0].column} twice: a frontier needs two columns"
        )
    return tuple(metrics)


def _known(column: str, known: Collection[str]) -> str:
    if column not in known:
        raise UnknownName("column", column, known)
    return column
