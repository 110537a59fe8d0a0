"""Rows of a sweep: what is asked for, and one part of a grid predicted and thinned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.bulk import CHUNK_ROWS, OTHER_NAMES, as_columns
from rtsim.errors import SpecError
from rtsim.expression import Condition
from rtsim.grid import NAMED, Grid
from rtsim.selection import Metric, Selection, frontier, parse_pareto, parse_sort
from rtsim.system_rows import Systems

Array = NDArray[Any]

_LEAST_PART, _MOST_PART = 1 << 12, 1 << 17
_PARTS = 32  # of a small sweep
TEXTS = ("limit", "error")  # columns of the result that are texts
_SAMPLED_ROWS = 5000  # of all rows that meet the condition, for a figure


@dataclass(frozen=True)
class Request:
    """What a sweep computes: everything that its result depends on, and nothing else."""

    grid: Grid
    where: str | None = None
    sort: str | None = None
    top: int | None = None
    pareto: str | None = None
    drawn: tuple[Metric, Metric] | None = None  # axes of a figure

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the result: axes, metrics, error."""
        return (*self.grid.axes, *self.grid.question.metrics, "error")

    @property
    def part_rows(self) -> int:
        """Rows of a part; the same wherever the sweep runs."""
        rows = 1 << max(0, (self.grid.n_rows // _PARTS).bit_length())
        return min(_MOST_PART, max(_LEAST_PART, rows))

    @property
    def n_parts(self) -> int:
        """Parts of the grid."""
        return -(-self.grid.n_rows // self.part_rows)

    def condition(self) -> Condition | None:
        """The parsed `where`."""
        if self.where is None:
            return None
        texts = (*self._texts, *TEXTS)
        return Condition(self.where, self.columns, texts, OTHER_NAMES, self.grid.factor_axes)

    @property
    def _texts(self) -> list[str]:
        return self.grid.text_axes

    def selection(self) -> Selection:
        """The parsed `sort`, `top` and `pareto`."""
        numbers = [name for name in self.columns if name not in (*self._texts, *NAMED, *TEXTS)]
        if self.top is not None and (not units.is_number(self.top, whole=True) or self.top < 1):
            raise SpecError("top", self.top, "must be a whole number of at least 1")
        return Selection(
            parse_pareto(self.pareto, numbers) if self.pareto is not None else (),
            parse_sort(self.sort, numbers) if self.sort is not None else None,
            self.top,
        )


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one part that were kept.

    matrix: (2 + metrics, rows) number of the row, index of its error in `texts`, metrics.
    counts: error -> rows of the part that have it, kept or not. Of a figure, of all rows that meet
    the condition: sampled, (2, points), and frontier, (2, points).
    """

    matrix: Array
    texts: list[str]
    counts: dict[str, int]
    sampled: Array
    frontier: Array


@lru_cache(maxsize=4)
def systems_of(axes: tuple[tuple[str, tuple[Any, ...]], ...], stack: str | None) -> Systems:
    """Made once per process and grid."""
    return Systems(dict(axes), stack)


def compute_part(request: Request, number: int) -> Part:
    """Predict one part of a grid and thin it."""
    grid = request.grid
    first = number * request.part_rows
    last = min(grid.n_rows, first + request.part_rows)
    asked = grid.question
    systems = systems_of(tuple(grid.system_axes.items()), asked.stack)
    values = np.empty((len(asked.metrics), last - first))
    codes = np.zeros(last - first, np.int64)
    known = {"": 0}
    for start in range(first, last, CHUNK_ROWS):
        end = min(last, start + CHUNK_ROWS)
        chosen, first_rows = grid.systems(start, end)
        at = slice(start - first, end - first)
        errors, texts = asked.evaluate(
            systems, chosen, first_rows, grid.sizes(start, end), values,
            np.arange(start - first, end - first),
        )  # fmt: skip
        places = [known.setdefault(text, len(known)) for text in texts]
        codes[at] = np.array(places)[errors]
    return _thinned(request, first, values, codes, list(known))


def _thinned(request: Request, first: int, values: Array, codes: Array, texts: list[str]) -> Part:
    rows = np.arange(first, first + len(codes))
    counts = {text: int(n) for text, n in zip(texts, np.bincount(codes), strict=False) if text}
    condition, selection = request.condition(), request.selection()
    if condition is not None:
        kept = condition(
            columns_at(request, rows, values, codes, texts, condition.columns), len(rows)
        )
        rows, values, codes = rows[kept], values[:, kept], codes[kept]
    sampled = best = np.zeros((2, 0))
    if request.drawn is not None and len(rows):
        names = [metric.column for metric in request.drawn]
        shown = columns_at(request, rows, values, codes, texts, set(names))
        points = np.array([shown[name] for name in names], float)
        some = max(1, math.ceil(_SAMPLED_ROWS / request.n_parts))
        sampled = points[:, np.unique(np.linspace(0, len(rows) - 1, some).astype(np.int64))]
        best = points[:, frontier(*(metric.of(shown) for metric in request.drawn))]
    if selection.thins:
        kept = selection.early(
            columns_at(request, rows, values, codes, texts, selection.columns), len(rows)
        )
        rows, values, codes = rows[kept], values[:, kept], codes[kept]
    matrix = np.concatenate((rows[None].astype(float), codes[None].astype(float), values))
    return Part(np.ascontiguousarray(matrix), texts, counts, sampled, best)


def columns_at(
    request: Request,
    rows: Array,
    values: Array,
    codes: Array,
    texts: list[str],
    wanted: set[str] | None = None,
) -> dict[str, Array]:
    """Columns of rows by name: axes from the rows' numbers, metrics, error. None: all."""
    found: dict[str, Array] = {}
    axes = request.grid.axes
    if wanted is None or wanted & set(axes):
        for name, at in request.grid.codes(rows).items():
            if wanted is None or name in wanted:
                found[name] = request.grid.arrays[name][at]
    metrics = as_columns(request.grid.question, values, codes, texts)
    if "num_gpus" in found:  # an axis that is a metric too: rows without a prediction keep it
        metrics["num_gpus"] = np.where(codes > 0, found["num_gpus"], metrics["num_gpus"])
    found |= {n: c for n, c in metrics.items() if wanted is None or n in wanted}
    return found
