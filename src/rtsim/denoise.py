"""Black-box API latencies to the runtime the model would have alone: the denoised runtime.

    T(p, o) = overhead + prefill(p) + (o - 1) * per_output_token

Contention only ever adds time, so the fit follows the floor of the table: of each cell (p, o) the
fastest repeats, over all cells a low quantile regression (`fit.quantile_regression`), monotone in
p. Every pass of the model (the prompt's and one per further token) waits its own turn, so the
waiting of a call grows with its output tokens: a cell weighs in proportion to its repeats and
inversely to its output tokens. Long outputs are rarely seen at their fastest; least squares over
all cells alike overestimates the per-output-token time (docs/paper.md).

Overhead and prefill are told apart by one fact: a prompt of one token is one pass over one token,
as an output token is, so prefill(1) = per_output_token (the convention of the published fits).

Source: Narayanan et al., "Cheaply Evaluating Inference Efficiency Metrics", NeurIPS 2023,
section 4. Known error of the per-output-token time (docs/paper.md): on synthetic tables with
heavy-tailed noise and 10 repeats 1 % (median), 4 % (largest of 60); on 2 repeats of 28 cells within
8 % of published fits to many more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rtsim.curves import Curve
from rtsim.errors import DataError
from rtsim.fit import quantile_regression
from rtsim.latencies import Latency, LatencyTable, MarkedRow

Array = NDArray[np.float64]

LEVEL = 0.1  # quantile of the cells' fastest repeats that the curve follows
FASTEST_FRAC = 0.1  # of a cell's repeats, at least one, make its floor
TOO_FAST_FRAC = 0.15  # a call this much below the floor did less than was asked
CONTENDED_FRAC = 0.25  # a cell this much above the floor was never seen undisturbed
FEWEST_REPEATS = 3
REPEATS_FOR_SPREAD = 5  # from here on the spread within cells says where waiting comes from
BOOTSTRAPS = 200
_INTERVAL = 0.95  # quantile of the bootstrap's deviations that makes the interval
_RESOLUTION_FRAC = 0.015  # no interval is narrower: clocks and networks jitter both ways
_LEAST_S = 1e-9
_UPPER_LEVEL, _FAR_TOO_FAST_FRAC = 0.3, 0.4
_CYCLES = 2  # of leaving out calls below the floor


@dataclass(frozen=True, slots=True)
class Range:
    """Ends of an interval, seconds."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Denoised:
    """A fitted curve with its intervals. Prefill never falls with the prompt.

    thin: cells that say little, and why. marked: rows left out or taken otherwise.
    """

    curve: Curve
    prefill_interval_s: tuple[Range, ...]
    per_output_token_interval_s: Range
    overhead_interval_s: Range | None
    rows: int
    cells: int
    thin: tuple[str, ...]
    notes: tuple[str, ...]
    marked: tuple[MarkedRow, ...]


@dataclass(frozen=True)
class _Cells:
    """The floor of each cell: sizes, seconds, repeats."""

    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    floor_s: Array
    repeats: Array
    spread_s: Array  # median repeat above the floor
    gap_s: Array  # second fastest repeat above the fastest; 0 where there is one only


def denoise(table: LatencyTable, *, bootstraps: int = BOOTSTRAPS) -> list[Denoised]:
    """Fit every model of a table, in the order of the table.

    Raises DataError where a model has one output length only, which cannot tell the time of an
    output token, or where the table is too small for a fit.
    """
    marked: dict[str, list[MarkedRow]] = {}
    for row in table.marked:
        marked.setdefault(row.model, []).append(row)
    return [
        denoise_model(
            model, rows, file=table.file, marked=tuple(marked.get(model, ())),
            bootstraps=bootstraps,
        )
        for model, rows in table.by_model.items()
    ]  # fmt: skip


def denoise_model(
    model: str,
    rows: Sequence[Latency],
    *,
    file: str = "latencies",
    marked: tuple[MarkedRow, ...] = (),
    bootstraps: int = BOOTSTRAPS,
) -> Denoised:
    """Fit the calls of one model. Raises DataError as `denoise`."""
    lengths = sorted({row.output_tokens for row in rows})
    if len(lengths) < 2:
        raise DataError(
            file,
            f"{model} has one output length ({lengths[0]}): the time of an output token needs "
            "calls of at least two",
        )
    prompts = sorted({row.prompt_tokens for row in rows})
    kept, too_fast = list(rows), list[MarkedRow]()
    # Calls cut short drag a floor down with them: the grossest are told from a curve above it.
    for level, frac in ((_UPPER_LEVEL, _FAR_TOO_FAST_FRAC), *[(LEVEL, TOO_FAST_FRAC)] * _CYCLES):
        x = _fit(_floors(kept), prompts, level)
        below = [r for r in kept if r.runtime_s < (1.0 - frac) * _at(x, prompts, r)]
        others = [r for r in kept if r not in below]
        if not _enough(others, prompts):
            break
        kept = others
        too_fast += [
            MarkedRow(r.line, model, "faster than the floor of the table: output cut short?")
            for r in below
        ]
    cells = _floors(kept)
    x = _fit(cells, prompts)
    spread = _bootstrap(kept, prompts, x, bootstraps)
    # The end of a distribution lies about as far below the fastest repeat as the second fastest
    # lies above it (Robson and Whitlock, Biometrika 51, 1964): how far the floor may still fall.
    waiting = _waiting(cells)
    gap_s = float(np.median(cells.gap_s / waiting)) * waiting
    below_s = np.maximum(cells.floor_s - gap_s, _LEAST_S)
    low = _fit(replace(cells, floor_s=below_s), prompts)
    low_overhead, low_prefill, _ = _parts(low, prompts)
    overhead, prefill, note = _parts(x, prompts)
    drawn = [_parts(sample, prompts) for sample in spread]
    per_token = float(x[-1])
    prefill_draws = np.array([parts[1] for parts in drawn]).reshape(len(drawn), len(prompts))
    overhead_draws = np.array([parts[0] for parts in drawn if parts[0] is not None])
    thin = _thin(kept, cells, x, prompts, lengths)
    notes = [note] if note else []
    if max(cells.repeats) < FEWEST_REPEATS:
        most = int(max(cells.repeats))
        notes.append(
            f"at most {most} repeat{'s' if most > 1 else ''} of a cell: the fastest is not yet "
            f"the floor, {FEWEST_REPEATS} or more are better"
        )
    return Denoised(
        Curve(model, tuple(prompts), tuple(prefill.tolist()), per_token, overhead),
        prefill_interval_s=tuple(
            _range(value, prefill_draws[:, i], float(x[i]), float(low_prefill[i]))
            for i, value in enumerate(prefill)
        ),
        per_output_token_interval_s=_range(
            per_token, spread[:, -1], per_token, float(low[-1])
        ),
        overhead_interval_s=None if overhead is None else _range(
            overhead, overhead_draws, float(x[0]), low_overhead or 0.0
        ),
        rows=len(kept),
        cells=len(cells.floor_s),
        thin=tuple(thin),
        notes=tuple(notes),
        marked=(*marked, *too_fast),
    )  # fmt: skip


def _enough(rows: Sequence[Latency], prompts: Sequence[int]) -> bool:
    """Every prompt and two output lengths are still there."""
    lengths = {row.output_tokens for row in rows}
    return {row.prompt_tokens for row in rows} == set(prompts) and len(lengths) > 1


def _floors(rows: Sequence[Latency]) -> _Cells:
    """Mean of the fastest repeats of each cell."""
    times: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        times.setdefault((row.prompt_tokens, row.output_tokens), []).append(row.runtime_s)
    sizes = sorted(times)
    floors, spreads, gaps = [], [], []
    for size in sizes:
        in_order = sorted(times[size])
        fastest = in_order[: max(1, int(FASTEST_FRAC * len(in_order)))]
        floors.append(sum(fastest) / len(fastest))
        spreads.append(in_order[len(in_order) // 2] - floors[-1])
        gaps.append(in_order[1] - in_order[0] if len(in_order) > 1 else 0.0)
    return _Cells(
        np.array([p for p, _ in sizes]),
        np.array([o for _, o in sizes]),
        np.array(floors),
        np.array([float(len(times[size])) for size in sizes]),
        np.array(spreads),
        np.array(gaps),
    )


def _waiting(cells: _Cells) -> Array:
    """How much a call of each cell waits, up to a factor: in proportion to its passes.

    Where repeats are many enough to show their own spread, a constant part joins it (waiting for
    the network rather than for the model): the line through the median spreads of short and of
    long outputs.
    """
    passes = cells.output.astype(float)
    if np.median(cells.repeats) < REPEATS_FOR_SPREAD:
        return passes
    low, high = np.quantile(passes, [1.0 / 3.0, 2.0 / 3.0])
    ends = [passes <= low, passes >= high]
    (o0, o1), (s0, s1) = (
        [float(np.median(values[end])) for end in ends] for values in (passes, cells.spread_s)
    )
    if o1 <= o0 or s0 <= 0.0:
        return passes
    growth = max(0.0, s1 - s0) / (o1 - o0)
    return np.asarray(max(0.0, s0 - growth * o0) + growth * passes)


def _fit(cells: _Cells, prompts: Sequence[int], level: float = LEVEL) -> Array:
    """(overhead + prefill at each prompt, seconds per further token)."""
    index = np.searchsorted(prompts, cells.prompt)
    n = len(prompts)
    design = np.zeros((len(index), n + 1))
    design[np.arange(len(index)), index] = 1.0
    design[:, -1] = cells.output - 1.0
    ordered = np.zeros((n - 1, n + 1))
    for i in range(n - 1):  # prefill never falls
        ordered[i, i], ordered[i, i + 1] = 1.0, -1.0
    # The pass over the shortest prompt takes no less than that over one output token.
    first = np.zeros((1, n + 1))
    first[0, 0], first[0, -1] = -1.0, 1.0
    weights = cells.repeats / _waiting(cells)
    return quantile_regression(
        design, cells.floor_s, weights, level, np.concatenate([ordered, first])
    )


def _at(x: Array, prompts: Sequence[int], row: Latency) -> float:
    i = int(np.searchsorted(prompts, row.prompt_tokens))
    return float(x[i] + x[-1] * (row.output_tokens - 1))


def _parts(x: Array, prompts: Sequence[int]) -> tuple[float | None, Array, str]:
    """(overhead, prefill at each prompt, remark). None: not told apart from prefill."""
    whole, per_token = x[:-1], float(x[-1])
    if prompts[0] == 1:
        overhead = max(0.0, float(whole[0]) - per_token)
        return overhead, whole - overhead, ""
    if len(prompts) == 1:
        note = f"one prompt length ({prompts[0]}): its prefill holds the overhead of a call"
        return None, whole, note
    slope = (whole[1] - whole[0]) / (prompts[1] - prompts[0])
    at_one = float(whole[0] - slope * (prompts[0] - 1))
    overhead = min(max(0.0, at_one - per_token), float(whole[0]) - per_token)
    note = f"no prompt of one token: the overhead is extrapolated from {prompts[0]} tokens"
    return overhead, whole - overhead, note


def _bootstrap(rows: Sequence[Latency], prompts: Sequence[int], x: Array, bootstraps: int) -> Array:
    """Fits to tables drawn from this one: cells first, then the repeats of each, (draws, n)."""
    random = np.random.default_rng(0)  # equal tables, equal intervals
    by_cell: dict[tuple[int, int], list[Latency]] = {}
    for row in rows:
        by_cell.setdefault((row.prompt_tokens, row.output_tokens), []).append(row)
    cells = list(by_cell.values())
    draws = []
    for _ in range(bootstraps):
        sample: list[Latency] = []
        for i in np.unique(random.integers(0, len(cells), len(cells))):
            repeats = cells[i]
            sample += [repeats[j] for j in random.integers(0, len(repeats), len(repeats))]
        if not _enough(sample, prompts):
            continue
        draws.append(_fit(_floors(sample), prompts))
    return np.array(draws) if draws else x[None, :]


def _range(value: float, draws: Array, scale: float, fallen: float) -> Range:
    """An interval around a value, as wide to both sides.

    Its half-width adds the deviation of `draws`, which are of floors as high as this one, and
    how far the value moves when the floor falls to where it may still be.
    """
    drawn = float(np.quantile(np.abs(draws - value), _INTERVAL)) if len(draws) else 0.0
    width = max(drawn + abs(fallen - value), _RESOLUTION_FRAC * scale)
    return Range(max(0.0, value - width), value + width)


def _thin(
    rows: Sequence[Latency], cells: _Cells, x: Array, prompts: Sequence[int],
    lengths: Sequence[int],
) -> list[str]:  # fmt: skip
    """Cells that say little about the floor, each with the reason."""
    found = []
    present = set()
    for p, o, floor_s, repeats in zip(
        cells.prompt.tolist(), cells.output.tolist(), cells.floor_s, cells.repeats, strict=True
    ):
        present.add((p, o))
        fitted_s = _at(x, prompts, Latency(0, p, o, 0.0))
        above = floor_s / fitted_s - 1.0 if fitted_s > 0.0 else 0.0
        reasons = []
        if repeats < FEWEST_REPEATS:
            reasons.append(f"{int(repeats)} repeat{'s' if repeats > 1 else ''}")
        if above > CONTENDED_FRAC:
            reasons.append(f"fastest {100.0 * above:.0f} % above the floor")
        if reasons:
            found.append(f"prompt {p}, output {o}: {', '.join(reasons)}")
    # Lengths that came back instead of those asked for leave no gap in the grid.
    whole = [o for o in lengths if sum((p, o) in present for p in prompts) > len(prompts) / 2]
    found += [
        f"prompt {p}, output {o}: no call" for p in prompts for o in whole if (p, o) not in present
    ]
    return found
