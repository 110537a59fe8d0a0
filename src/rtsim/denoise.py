"""Black-box API latencies to the runtime the model would have alone: the denoised runtime.

    T(p, o) = overhead + prefill(p) + (o - 1) * per_output_token

Contention only ever adds time, so the fit follows the floor of the table (`latency_floor`): of
each cell (p, o) the fastest repeats, over all cells a low quantile. Calls far below the floor did
less than was asked and are left out; cells that say little are named.

Overhead and prefill are told apart by one fact: a prompt of one token is one pass over one token,
as an output token is, so prefill(1) = per_output_token (the convention of the published fits).

Source: Narayanan et al., "Cheaply Evaluating Inference Efficiency Metrics", NeurIPS 2023,
section 4. Known error of the per-output-token time (docs/paper.md): on synthetic tables with
heavy-tailed noise within PRECISION_FRAC, or a note says that the table is too thin for that; on 2
repeats of 28 cells within 8 % of published fits to many more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rtsim import units
from rtsim.curves import Curve
from rtsim.errors import DataError
from rtsim.latencies import Latency, LatencyTable, MarkedRow
from rtsim.latency_floor import Cells, Floor, by_passes, cells_of, fit_floor, redrawn

Array = NDArray[np.float64]

TOO_FAST_FRAC = 0.15  # a call this much below the floor did less than was asked
CONTENDED_FRAC = 0.25  # a cell this much above the floor was never seen undisturbed
FEWEST_REPEATS = 3
PRECISION_FRAC = 0.03  # a time per output token not known within that has too thin a table
BOOTSTRAPS = 200
_INTERVAL = 0.95  # quantile of the bootstrap's deviations that makes the interval
_WIDER = 2.0  # waiting is not distributed as the floor takes it: so much wider than drawn
_RESOLUTION_FRAC = 0.015  # no interval is narrower: clocks and networks jitter both ways
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
    for level, frac in (
        (_UPPER_LEVEL, _FAR_TOO_FAST_FRAC), *[(None, TOO_FAST_FRAC)] * _CYCLES,
    ):  # fmt: skip
        cells = cells_of(kept, prompts)
        floor = fit_floor(cells) if level is None else by_passes(cells, level)
        floor_s = _at(floor, kept).tolist()
        fast = [r.runtime_s < (1.0 - frac) * at for r, at in zip(kept, floor_s, strict=True)]
        others = [r for r, out in zip(kept, fast, strict=True) if not out]
        if len(others) == len(kept) or not _enough(others, prompts):
            continue
        too_fast += [
            MarkedRow(r.line, model, _faster(r, at))
            for r, at, out in zip(kept, floor_s, fast, strict=True) if out
        ]  # fmt: skip
        kept = others
    cells = cells_of(kept, prompts)
    floor = fit_floor(cells)
    overhead, prefill, note = _parts(floor.x, prompts)
    drawn = [(x, *_parts(x, prompts)) for x in redrawn(cells, floor, bootstraps)]
    per_token = float(floor.x[-1])
    per_token_range = _range(per_token, [x[-1] for x, *_ in drawn], per_token, floor.unsure[-1])
    notes = [note] if note else []
    if max(cells.repeats) < FEWEST_REPEATS:
        most = int(max(cells.repeats))
        notes.append(
            f"at most {units.counted(most, 'repeat')} of a cell: the fastest is not yet "
            f"the floor, {FEWEST_REPEATS} or more are better"
        )
    notes += _too_thin(per_token_range, per_token, cells)
    return Denoised(
        Curve(model, tuple(prompts), tuple(prefill.tolist()), per_token, overhead),
        prefill_interval_s=tuple(
            _range(value, [p[i] for _, _, p, _ in drawn], float(floor.x[i]), floor.unsure[i])
            for i, value in enumerate(prefill)
        ),
        per_output_token_interval_s=per_token_range,
        overhead_interval_s=None if overhead is None else _range(
            overhead, [o for _, o, *_ in drawn if o is not None], float(floor.x[0]),
            floor.unsure[0],
        ),
        rows=len(kept),
        cells=len(cells.floor_s),
        thin=tuple(_thin(cells, floor, lengths)),
        notes=tuple(notes),
        marked=(*marked, *too_fast),
    )  # fmt: skip


def _faster(row: Latency, floor_s: float) -> str:
    """Why a call below the floor is left out."""
    below = 100.0 * (1.0 - row.runtime_s / floor_s)
    return (
        f"prompt {row.prompt_tokens}, output {row.output_tokens} in "
        f"{units.format_seconds(row.runtime_s)}, {below:.0f}% below the floor of the table: "
        "output cut short?"
    )


def _enough(rows: Sequence[Latency], prompts: Sequence[int]) -> bool:
    """Every prompt and two output lengths are still there."""
    lengths = {row.output_tokens for row in rows}
    return {row.prompt_tokens for row in rows} == set(prompts) and len(lengths) > 1


def _at(floor: Floor, rows: Sequence[Latency]) -> Array:
    """Seconds of the floor at the sizes of `rows`."""
    sizes = np.array([(row.prompt_tokens, row.output_tokens) for row in rows])
    return floor.at(sizes[:, 0], sizes[:, 1])


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


def _range(value: float, draws: Sequence[float], scale: float, unsure: float) -> Range:
    """An interval around a value, as wide to both sides.

    draws: the value in tables drawn anew. scale: the time that it is a part of. unsure: how far it
    differs between quantiles of the floor.
    """
    deviation = np.abs(np.array(draws) - value)
    drawn = float(np.quantile(deviation, _INTERVAL)) if len(draws) else 0.0
    width = max(_WIDER * drawn + unsure, _RESOLUTION_FRAC * scale)
    return Range(max(0.0, value - width), value + width)


def _too_thin(interval: Range, per_token: float, cells: Cells) -> list[str]:
    """A note where the time per output token is not known within PRECISION_FRAC.

    The fastest of n repeats lies above the floor by about 1/n of their spread, so repeats in
    proportion narrow the interval.
    """
    half_s = interval.high - per_token
    if half_s <= PRECISION_FRAC * per_token:
        return []
    note = f"cells too thin for {100.0 * PRECISION_FRAC:.0f}%: the time per output token is known "
    if half_s >= per_token:
        return [note + "by its order only"]
    repeats = math.ceil(float(np.median(cells.repeats)) * half_s / (PRECISION_FRAC * per_token))
    return [f"{note}within {100.0 * half_s / per_token:.2g}%; about {repeats} repeats would do"]


def _thin(cells: Cells, floor: Floor, lengths: Sequence[int]) -> list[str]:
    """Cells that say little about the floor, each with the reason."""
    found = []
    present = set()
    for p, o, floor_s, alone_s, repeats in zip(
        cells.prompt.tolist(), cells.output.tolist(), cells.floor_s,
        floor.at(cells.prompt, cells.output), cells.repeats, strict=True,
    ):  # fmt: skip
        present.add((p, o))
        above = floor_s / alone_s - 1.0 if alone_s > 0.0 else 0.0
        reasons = []
        if repeats < FEWEST_REPEATS:
            reasons.append(units.counted(int(repeats), "repeat"))
        if above > CONTENDED_FRAC:
            reasons.append(f"fastest {100.0 * above:.0f}% above the floor")
        if reasons:
            found.append(f"prompt {p}, output {o}: {', '.join(reasons)}")
    # Lengths that came back instead of those asked for leave no gap in the grid.
    prompts = cells.prompts
    whole = [o for o in lengths if sum((p, o) in present for p in prompts) > len(prompts) / 2]
    found += [
        f"prompt {p}, output {o}: no call" for p in prompts for o in whole if (p, o) not in present
    ]
    return found
