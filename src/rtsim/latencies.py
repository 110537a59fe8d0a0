"""Tables of latencies seen through a black-box API, read so that faulty rows are kept and marked.

Columns: `prompt_tokens`, `output_tokens` (as asked), `runtime_s`; where there are, `provider`,
`model`, `repeat`, `status` (what a collector says of a call: "ok", "short" or what went wrong) and
`received_tokens` (what came back). A row that says nothing about time is left out of fits with the
reason why; a table without one usable row is refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rtsim import units
from rtsim.errors import DataError, nearest_names
from rtsim.table_text import read_cells

REQUIRED = ("prompt_tokens", "output_tokens", "runtime_s")
_USABLE = ("", "ok", "short")
# A call that took longer than this is a clock that jumped, not a request.
_LONGEST_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Latency:
    """One call: tokens in, tokens that came out, and the seconds its caller waited."""

    line: int
    prompt_tokens: int
    output_tokens: int
    runtime_s: float


@dataclass(frozen=True, slots=True)
class MarkedRow:
    """A row that is kept out of fits, or taken otherwise than it stands, and why."""

    line: int
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Usable calls by model ("provider/model", or the file's name without those columns)."""

    file: str
    by_model: dict[str, tuple[Latency, ...]]
    marked: tuple[MarkedRow, ...]


def read_latencies(path: str | Path, model: str | None = None) -> LatencyTable:
    """Read a table of latencies; of one model only if `model` is given.

    Raises DataError where a column is missing, no row is usable, or no row is of that model.
    """
    columns, lines = read_cells(path)
    for name in REQUIRED:
        if name not in columns:
            near = nearest_names(name, columns, count=1)
            hint = f"; is it '{near[0]}'?" if near else f"; it needs {', '.join(REQUIRED)}"
            raise DataError(path, f"column '{name}' is missing{hint}", line=1)
    labels = _labels(columns, len(lines), Path(path).stem)
    if model is not None and model not in labels:
        known = list(dict.fromkeys(labels))
        near = nearest_names(model, known, count=3) or known[:3]
        raise DataError(path, f"no row is of model '{model}'; nearest: {', '.join(near)}")
    by_model: dict[str, list[Latency]] = {}
    marked: list[MarkedRow] = []
    for i, line in enumerate(lines.tolist()):
        if model not in (None, labels[i]):
            continue
        row = {name: cells[i].strip() for name, cells in columns.items()}
        latency, reason = _latency(row, line)
        if reason:
            marked.append(MarkedRow(line, labels[i], reason))
        if latency is not None:
            by_model.setdefault(labels[i], []).append(latency)
    if not by_model:
        first = marked[0]
        raise DataError(
            path,
            f"no usable row: {first.reason} (all {units.counted(len(marked), 'row')})",
            line=first.line,
        )
    return LatencyTable(str(path), {k: tuple(v) for k, v in by_model.items()}, tuple(marked))


def _labels(columns: dict[str, Sequence[str]], rows: int, default: str) -> list[str]:
    models = columns.get("model", [""] * rows)
    providers = columns.get("provider", [""] * rows)
    return [
        "/".join(part for part in (provider.strip(), model.strip()) if part) or default
        for provider, model in zip(providers, models, strict=True)
    ]


def _latency(row: dict[str, str], line: int) -> tuple[Latency | None, str]:
    """The call of a row and "", or a remark on it; None where it cannot be used."""
    status = row.get("status", "")
    if status not in _USABLE:
        return None, f"the call failed: {status}"
    numbers: dict[str, float] = {}
    for name in REQUIRED:
        if not row[name]:
            return None, f"{name} is missing"
        try:
            numbers[name] = float(row[name])
        except ValueError:
            return None, f"{name} '{row[name]}' is not a number"
        if not math.isfinite(numbers[name]):
            return None, f"{name} '{row[name]}' is not a finite number"
    for name in ("prompt_tokens", "output_tokens"):
        if numbers[name] != int(numbers[name]) or numbers[name] < 1:
            return None, f"{name} {row[name]} is not a whole number of at least 1"
    runtime_s = numbers["runtime_s"]
    if runtime_s <= 0.0:
        return None, f"runtime_s {row['runtime_s']} is not above zero: did the clock jump?"
    if runtime_s > _LONGEST_S:
        return None, f"runtime_s {row['runtime_s']} is longer than a day: did the clock jump?"
    asked = int(numbers["output_tokens"])
    received = row.get("received_tokens", "")
    output, remark = asked, ""
    if received.isdigit() and int(received) != asked:
        output = int(received)
        if output < 1:
            return None, f"no token came back of {asked} asked"
        remark = f"{output} tokens came back of {asked} asked: taken at {output}"
    return Latency(line, int(numbers["prompt_tokens"]), output, runtime_s), remark
