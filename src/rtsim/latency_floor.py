"""The floor of a table of latencies: what calls of each size take when nothing else is in the way.

    T(p, o) = base(p) + (o - 1) * per_output_token + waiting,   waiting >= 0

The floor is a low quantile of the cells' fastest repeats (`fit.quantile_regression`), monotone in
p, with a price on every bend of base(p): prompt passes are close to piecewise linear, and a cell
that was never seen undisturbed bends the curve. It is the mean of three such fits, at quantiles
about LEVEL, which moves less than any one of them.

Cells weigh in proportion to their repeats and inversely to how long calls of their size wait.
With repeats enough to show it, waiting is a line in the time of the call itself; otherwise each
pass of the model (the prompt's and one per further token) is taken to wait its own turn.

The fastest repeats still wait a little. Over all calls together, in units of their waiting, the
end of the distribution lies about as far below the lowest as the second lowest lies above it
(Robson and Whitlock, Biometrika 51, 1964): the floor moves there, no further than the median gap
between a cell's fastest two, so that no single call can move it far.

Intervals: tables drawn anew around the floor, with waiting drawn from all calls alike, and fitted
again. Drawing cells and repeats themselves would not do: their minima repeat and never fall lower.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rtsim.fit import quantile_regression
from rtsim.latencies import Latency

Array = NDArray[np.float64]

LEVEL = 0.1  # quantile of the cells' fastest repeats that the floor follows
_LEVELS = (0.05, LEVEL, 0.2)
FASTEST_FRAC = 0.1  # of a cell's repeats, at least one, make its floor
REPEATS_FOR_SPREAD = 5  # from here on the spread within cells says how calls wait
_BEND_PRICE = 0.03  # of the weight of all cells, for each second of a bend


@dataclass(frozen=True)
class Cells:
    """The calls of a table by size: sizes, repeats, seconds of each call in order of cells.

    cell: which cell a call belongs to. floor_s: mean of each cell's fastest repeats; spread_s: its
    median repeat above that; gap_s: its second fastest above its fastest, 0 where there is one.
    """

    prompts: tuple[int, ...]
    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    repeats: Array
    cell: NDArray[np.int64]
    runtime_s: Array
    floor_s: Array
    spread_s: Array
    gap_s: Array


@dataclass(frozen=True)
class Floor:
    """The fitted floor. x: base at each prompt, then seconds per further token.

    waits: (seconds, share of the time of the call), the line that waiting follows; None where the
    repeats are too few to show it and waiting follows the passes. unsure: how far apart the fits
    at different quantiles are, for each of x; zero where there is one.
    """

    prompts: tuple[int, ...]
    x: Array
    waits: tuple[float, float] | None
    unsure: Array

    def at(self, prompt: NDArray[np.int64], output: NDArray[np.int64]) -> Array:
        """Seconds of calls of these sizes without any waiting."""
        base = self.x[np.searchsorted(self.prompts, prompt)]
        return np.asarray(base + self.x[-1] * (output - 1))

    def waiting(self, prompt: NDArray[np.int64], output: NDArray[np.int64]) -> Array:
        """How long calls of these sizes wait, up to a factor common to all."""
        if self.waits is None:
            return output.astype(float)
        return np.asarray(self.waits[0] + self.waits[1] * self.at(prompt, output))

    def moved(self, by: float) -> Array:
        """x of the floor that lies so many units of waiting higher."""
        if self.waits is None:
            return np.maximum(self.x + by, 0.0)  # each pass waits: base has one, so has a token
        waits_s, frac = self.waits
        moved = self.x * (1.0 + by * frac)
        moved[:-1] += by * waits_s
        return np.maximum(moved, 0.0)


def cells_of(rows: Sequence[Latency], prompts: Sequence[int]) -> Cells:
    """Calls by cell. prompts: the lengths that the floor has a base for, sorted."""
    sizes = sorted({(row.prompt_tokens, row.output_tokens) for row in rows})
    place = {size: i for i, size in enumerate(sizes)}
    cell = np.array([place[row.prompt_tokens, row.output_tokens] for row in rows])
    order = np.argsort(cell, kind="stable")
    runtime_s = np.array([row.runtime_s for row in rows])
    return _summed_up(tuple(prompts), np.array(sizes), cell[order], runtime_s[order])


def _summed_up(
    prompts: tuple[int, ...], sizes: NDArray[np.int64], cell: NDArray[np.int64], runtime_s: Array
) -> Cells:
    repeats = np.bincount(cell, minlength=len(sizes))
    floors, spreads, gaps = [], [], []
    for times in np.split(runtime_s, np.cumsum(repeats)[:-1]):
        in_order = np.sort(times)
        floors.append(in_order[: max(1, int(FASTEST_FRAC * len(in_order)))].mean())
        spreads.append(in_order[len(in_order) // 2] - floors[-1])
        gaps.append(in_order[1] - in_order[0] if len(in_order) > 1 else 0.0)
    return Cells(
        prompts, sizes[:, 0], sizes[:, 1], repeats.astype(float), cell, runtime_s,
        np.array(floors), np.array(spreads), np.array(gaps),
    )  # fmt: skip


def fit_floor(cells: Cells) -> Floor:
    """The floor of a table."""
    passes = [by_passes(cells, level) for level in _LEVELS]
    first = passes[_LEVELS.index(LEVEL)]
    if np.median(cells.repeats) < REPEATS_FOR_SPREAD:
        return replace(first, unsure=np.ptp([floor.x for floor in passes], axis=0))
    waits = _line(first.at(cells.prompt, cells.output), cells.spread_s)
    if waits is None:  # no call waited
        return first
    waiting = replace(first, waits=waits).waiting(cells.prompt, cells.output)
    fits = [
        _corrected(cells, Floor(cells.prompts, _fit(cells, waiting, level), waits, first.unsure))
        for level in _LEVELS
    ]
    return Floor(cells.prompts, np.mean(fits, axis=0), waits, np.ptp(fits, axis=0))


def by_passes(cells: Cells, level: float = LEVEL) -> Floor:
    """The same taking each pass to wait its own turn, whatever the repeats show."""
    x = _fit(cells, cells.output.astype(float), level, bend_price=0.0)
    return Floor(cells.prompts, x, None, np.zeros_like(x))


def _corrected(cells: Cells, floor: Floor) -> Array:
    """x of the floor moved to where the waiting of all calls together ends."""
    waiting = floor.waiting(cells.prompt, cells.output)
    alone_s = floor.at(cells.prompt, cells.output)
    lowest, second = np.partition(
        (cells.runtime_s - alone_s[cells.cell]) / waiting[cells.cell], 1
    )[:2]  # fmt: skip
    most = float(np.median(cells.gap_s / waiting))
    return floor.moved(float(np.clip(2.0 * lowest - second, -most, most)))


def _fit(cells: Cells, waiting: Array, level: float, bend_price: float = _BEND_PRICE) -> Array:
    """(base at each prompt, seconds per further token) at a quantile of the cells' floors."""
    prompts = np.array(cells.prompts, dtype=float)
    n = len(prompts)
    design = np.zeros((len(cells.prompt), n + 1))
    design[np.arange(len(design)), np.searchsorted(cells.prompts, cells.prompt)] = 1.0
    design[:, -1] = cells.output - 1.0
    ordered = np.zeros((n, n + 1))
    for i in range(n - 1):  # prefill never falls
        ordered[i, i], ordered[i, i + 1] = 1.0, -1.0
    # The pass over the shortest prompt takes no less than that over one output token.
    ordered[-1, 0], ordered[-1, -1] = -1.0, 1.0
    weights = cells.repeats / waiting
    bends = np.zeros((max(0, n - 2), n + 1))
    for i in range(n - 2):  # how far the middle of three lies off the line of its neighbours
        before, after = np.diff(prompts[i : i + 3]) / (prompts[i + 2] - prompts[i])
        bends[i, i : i + 3] = -after, 1.0, -before
    price = bend_price * float(weights.sum())
    return quantile_regression(design, cells.floor_s, weights, level, ordered, price * bends)


def _line(time_s: Array, spread_s: Array) -> tuple[float, float] | None:
    """(seconds, share): the line through the median spreads of the short and the long cells."""
    low, high = np.quantile(time_s, [1.0 / 3.0, 2.0 / 3.0])
    (t0, t1), (s0, s1) = (
        [float(np.median(values[end])) for end in (time_s <= low, time_s >= high)]
        for values in (time_s, spread_s)
    )
    if max(s0, s1) <= 0.0:
        return None
    growth = max(0.0, s1 - s0) / (t1 - t0) if t1 > t0 else 0.0
    return (max(0.0, s0 - growth * t0), growth) if s0 > 0.0 else (0.0, 1.0)


def redrawn(cells: Cells, floor: Floor, count: int, seed: int = 0) -> Iterator[Array]:
    """x of the floors of `count` tables with this floor and the waiting of these calls."""
    random = np.random.default_rng(seed)  # equal tables, equal intervals
    alone_s = floor.at(cells.prompt, cells.output)[cells.cell]
    waiting = floor.waiting(cells.prompt, cells.output)[cells.cell]
    waited = np.maximum((cells.runtime_s - alone_s) / waiting, 0.0)
    sizes = np.stack([cells.prompt, cells.output], axis=1)
    for _ in range(count):
        drawn_s = alone_s + waiting * random.choice(waited, len(waited))
        table = _summed_up(cells.prompts, sizes, cells.cell, drawn_s)
        waiting_of_cell = floor.waiting(cells.prompt, cells.output)
        if floor.waits is None:
            yield _fit(table, waiting_of_cell, LEVEL, bend_price=0.0)
        else:
            x = _fit(table, waiting_of_cell, LEVEL)
            yield _corrected(table, replace(floor, x=x))
