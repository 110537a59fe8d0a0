"""Sweeps: a prediction for every row of a grid, in memory, or in a file of any size.

A grid is worked through in parts of rows. Each part is predicted (`rtsim.bulk`), thinned by the
condition and the selection, and, where a file is written, stored at once (`rtsim.parts`), so that
a sweep that was stopped goes on where it was. At the end the parts are joined. Threads, or the
workers of a Dask cluster, take parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.bulk import each, n_threads
from rtsim.catalog import load_gpu
from rtsim.cluster import compute_on, connected
from rtsim.errors import RtsimError, SpecError
from rtsim.grid import make_grid
from rtsim.parts import Store, check_file, store_for
from rtsim.plots import check_plot_file
from rtsim.plots_sweep import plot_frontier
from rtsim.profile_choice import mixed_stacks
from rtsim.selection import Metric, Selection
from rtsim.specs import GpuSpec
from rtsim.sweep_rows import Part, Request, compute_part, systems_of

Array = NDArray[Any]

CONFIRMED_ROWS = 10**12  # more are asked for twice
_MOST_ROWS = 2**53
_PILOT_ROWS = 1 << 14
_BYTES_PER_VALUE = 8.0
_ERRORS_KEPT = 3
_DRAWN = (Metric("tpot_s"), Metric("usd_per_million_output_tokens"))  # unless --pareto says others


@dataclass(frozen=True, eq=False)
class SweepResult:
    """Rows that a sweep kept.

    columns: axes, metrics and `error` by name, (rows,) each; empty where a file was written.
    n_rows: rows of the grid; n_kept: rows kept; n_failed: rows of the grid that had no prediction.
    For a figure, of all rows that met the condition, kept or not: sampled, points of them, and
    frontier, those of the Pareto frontier.
    """

    columns: dict[str, Array]
    n_rows: int
    n_kept: int
    n_failed: int
    output: str | None = None
    seconds: float = 0.0
    sampled: Array = field(default_factory=lambda: np.zeros((2, 0)))
    frontier: Array = field(default_factory=lambda: np.zeros((2, 0)))
    axes: dict[str, int] = field(default_factory=dict)  # of the grid, and their numbers of values
    errors: tuple[tuple[str, int], ...] = ()  # the most frequent, with their numbers of rows
    notes: tuple[str, ...] = ()  # what is not the same in all rows, though nobody asked for it


def sweep(
    grid: Mapping[str, Any],
    *,
    where: str | None = None,
    sort: str | None = None,
    top: int | None = None,
    pareto: str | None = None,
    output: str | Path | None = None,
    plot: str | Path | None = None,
    threads: int | None = None,
    scheduler: Any = None,
    progress: Callable[[int, int], None] | None = None,
    yes: bool = False,
) -> SweepResult:
    """Predict every row of a product of lists.

    grid: axes by name, the columns of `rtsim.predict_many`; lists, or texts such as "1:512:x2".
    where: a condition on columns. sort: "COLUMN" or "COLUMN:desc". top: rows to keep. pareto: "X,Y"
    keeps rows that no other beats in both ("max:" before a column: more is better). output: a
    .parquet, .csv or .json file, written whole at the end; a sweep that was stopped goes on from
    its parts. plot: a figure of the frontier. scheduler: a Dask client, or its scheduler's
    address. progress: called with rows done and rows in all. yes: do grids of more than
    CONFIRMED_ROWS rows. Raises RtsimError.

    >>> found = sweep({"model": "gpt3-175b", "gpu": "a100", "tp": "2,4,8"}, where="fits")
    >>> found.columns["tp"].tolist(), found.n_rows
    ([8], 3)
    """
    start = time.perf_counter()
    request = Request(make_grid(grid), where, sort, top, pareto)
    request.condition()
    selection = request.selection()
    if plot is not None:
        check_plot_file(str(plot))
        first, second = selection.pareto or _DRAWN
        request = Request(request.grid, where, sort, top, pareto, (first, second))
    if output is not None:
        check_file(output)
    _confirm(request, n_threads(threads), yes)
    client = _client(scheduler)
    with store_for(request, output) as store:
        _fill(request, store, n_threads(threads), client, progress)
        result = _finish(request, store, selection, output, start)
    if request.drawn is not None:
        plot_frontier(result.sampled, result.frontier, request.drawn, str(plot))
    return result


def _confirm(request: Request, threads: int, yes: bool) -> None:
    """Refuse a grid that no one meant, with what it would take."""
    n_rows = request.grid.n_rows
    if n_rows > _MOST_ROWS:
        raise SpecError("grid", f"{n_rows:,} rows", f"must be at most {_MOST_ROWS:,} rows")
    if n_rows <= CONFIRMED_ROWS or yes:
        return
    seconds, _ = estimate(request, threads)
    size = n_rows * (len(request.grid.question.metrics) + 2) * _BYTES_PER_VALUE
    raise SpecError(
        "grid", f"{n_rows:,} rows",
        f"would take about {seconds / 86400:,.0f} days on this machine and {size / 1e12:,.0f} TB "
        "of parts if all rows are kept; --yes (yes=True) does it all the same",
    )  # fmt: skip


def estimate(request: Request, threads: int) -> tuple[float, float]:
    """(seconds of the whole sweep, rows a second) from its first rows."""
    last = min(request.grid.n_rows, _PILOT_ROWS)
    pilot = Request(request.grid, request.where, request.sort, request.top, request.pareto)
    compute_rows(pilot, min(last, 2))  # compile, make the first systems
    begin = time.perf_counter()
    compute_rows(pilot, last)
    rate = last / (time.perf_counter() - begin) * threads
    return request.grid.n_rows / rate, rate


def compute_rows(request: Request, n_rows: int) -> None:
    """Predict the first rows of a grid and throw them away."""
    grid = request.grid
    chosen, first_rows = grid.systems(0, n_rows)
    asked = grid.question
    values = np.empty((len(asked.metrics), n_rows))
    systems = systems_of(tuple(grid.system_axes.items()), asked.stack)
    asked.evaluate(systems, chosen, first_rows, grid.sizes(0, n_rows), values, np.arange(n_rows))


def _client(scheduler: Any) -> Any:
    return None if scheduler is None else connected(scheduler)


def _fill(
    request: Request,
    store: Store,
    threads: int,
    client: Any,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Compute and store the parts that are not there yet."""
    missing = [number for number in range(request.n_parts) if not store.has(number)]
    n_rows, done = request.grid.n_rows, request.n_parts - len(missing)

    def report() -> None:
        if progress is not None:
            progress(min(n_rows, done * request.part_rows), n_rows)

    def keep(number: int, part: Part) -> None:
        nonlocal done
        store.put(number, part)
        done += 1
        report()

    report()
    if client is not None:
        compute_on(client, request, missing, keep)
    else:
        each(lambda number: keep(number, compute_part(request, number)), missing, threads)


def _finish(
    request: Request, store: Store, selection: Selection, output: str | Path | None, start: float
) -> SweepResult:
    """Join the parts: choose and order the rows, write the file or make the columns."""
    store.load(request.n_parts)
    frequent = tuple(sorted(store.failures.items(), key=lambda item: -item[1])[:_ERRORS_KEPT])
    n_failed = sum(store.failures.values())
    if n_failed == request.grid.n_rows:
        raise SpecError(
            "grid", units.counted(n_failed, "row"), f"none has a prediction: {frequent[0][0]}"
        )
    picked: Array | None = None
    if selection.thins or selection.sort is not None:
        picked = selection.final(store.columns(request, selection.columns), store.n_rows)
    columns: dict[str, Array] = {}
    if output is None:
        columns = store.everything(request) if picked is None else store.block(request, picked)
    else:
        store.write(request, picked, str(output))
    sampled = best = np.zeros((2, 0))
    if request.drawn is not None:
        sampled, best = store.sampled(), store.frontier(request.drawn)
    return SweepResult(
        columns,
        request.grid.n_rows,
        store.n_rows if picked is None else len(picked),
        n_failed,
        None if output is None else str(output),
        time.perf_counter() - start,
        sampled,
        best,
        {name: len(values) for name, values in request.grid.axes.items()},
        frequent,
        _notes(request),
    )


def _notes(request: Request) -> tuple[str, ...]:
    """GPUs that were taken with different stacks, for want of one named."""
    axes = request.grid.axes
    if {"stack", "profile"} & set(axes) or request.grid.question.stack is not None:
        return ()
    gpus = []
    for value in axes["gpu"]:
        try:
            gpus.append(value if isinstance(value, GpuSpec) else load_gpu(value))
        except RtsimError:  # its rows say so
            continue
    return tuple(mixed_stacks(gpus))
