"""What `rtsim sweep` prints: the best rows, a line on what was done, a progress bar."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim import console, units
from rtsim.sweep import SweepResult


def _rate(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.0f}" if tokens_per_s >= 100.0 else f"{tokens_per_s:.3g}"


# Metrics of the table and how they are written.
_COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "ttft_s": ("TTFT", units.format_seconds),
    "tpot_s": ("TPOT", units.format_seconds),
    "e2e_latency_s": ("Latency", units.format_seconds),
    "output_throughput": ("Tok/s", _rate),
    "num_gpus": ("GPUs", units.format_number),
    "memory_bytes": ("Memory", units.format_bytes),
    "usd_per_million_output_tokens": ("$/Mtok", units.format_usd),
}
# Metrics that are shown where they are asked for.
_ASKED: dict[str, tuple[str, Callable[[float], str]]] = {
    "usd_per_request": ("$/request", units.format_usd),
    "energy_j": ("Energy J", units.format_number),
    "mfu": ("MFU", lambda x: f"{100 * x:.1f}%"),
    "mbu": ("MBU", lambda x: f"{100 * x:.1f}%"),
    "capacity_bytes": ("Capacity", units.format_bytes),
    "request_throughput": ("Req/s", _rate),
    "gpu_throughput": ("Tok/s/GPU", _rate),
    "ttft_alone_s": ("TTFT alone", units.format_seconds),
    "itl_mixed_s": ("ITL mixed", units.format_seconds),
    "running": ("Running", _rate),
    "prompt_frac": ("Prompts", lambda x: f"{100 * x:.1f}%"),
    "cache_frac": ("Cache", lambda x: f"{100 * x:.1f}%"),
}
_SHORT = {
    "model": "Model", "gpu": "GPU", "batch_size": "Batch", "input_len": "Prompt",
    "output_len": "Output", "concurrency": "In flight",
    "prefill_workers": "Prefill", "decode_workers": "Decode", "prefill_tp": "Prefill tp",
}  # fmt: skip
_GAP = 2  # between columns
_RATED_ROWS = 100_000  # fewer take no longer than to load or compile the kernels


@contextmanager
def progress() -> Iterator[Callable[[int, int], None] | None]:
    """A bar with rate and time left on standard error, where that is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    bar = Progress(
        TextColumn("{task.completed:,} of {task.total:,} rows"), BarColumn(),
        TaskProgressColumn(show_speed=False), TextColumn("{task.fields[rate]}"), TimeLeft(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=None, start=False, visible=False, rate="")

        def report_rows(done: int, total: int) -> None:
            if not bar.tasks[0].started:
                bar.start_task(task)
            speed = bar.tasks[0].speed
            rate = f"{speed:,.0f} rows/s" if speed else ""
            bar.update(task, completed=done, total=total, visible=True, rate=rate)

        yield report_rows


def show(result: SweepResult, extra: Iterable[str | None]) -> None:
    """Print the rows, or where they were written, and a line on the sweep."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    if result.output is None:
        parts = _tables(result, extra, console.console_width()) if result.n_kept else []
    parts.append(Text(summary(result)))
    for text, n_rows in result.errors:
        parts.append(Text(f"no prediction for {units.counted(n_rows, 'row')}: {text}"))
    parts += [Text(f"Note: {note}") for note in result.notes]
    console.write(Group(*parts))


def summary(result: SweepResult) -> str:
    """How many rows there were, how many are kept, how long it took."""
    rate = ""
    if result.n_rows >= _RATED_ROWS:
        rate = f" ({result.n_rows / max(result.seconds, 1e-9):,.0f} a second)"
    kept = ""
    if result.n_kept != result.n_rows:
        kept = f", {units.counted(result.n_kept, 'row')} kept"
    where = "" if result.output is None else f" to {result.output}"
    seconds = units.format_seconds(result.seconds)
    rows = units.counted(result.n_rows, "row")
    return f"{rows}{kept}{where} in {seconds}{rate}"


def to_json(result: SweepResult) -> dict[str, Any]:
    """The rows, and what was done, as one object."""
    names = list(result.columns)
    cells = [_plain(result.columns[name]) for name in names]
    return {
        "rows": [dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True)],
        "n_rows": result.n_rows,
        "n_kept": result.n_kept,
        "n_failed": result.n_failed,
        "output": result.output,
        "seconds": result.seconds,
        "errors": [{"error": text, "n_rows": n_rows} for text, n_rows in result.errors],
        "notes": list(result.notes),
    }


def _plain(column: NDArray[Any]) -> list[Any]:
    missing = np.isnan(column) if column.dtype.kind == "f" else np.zeros(len(column), bool)
    return [None if gone else v for v, gone in zip(column.tolist(), missing, strict=True)]


@dataclass(frozen=True)
class _Column:
    title: str
    cells: list[str]
    is_text: bool = False

    @property
    def width(self) -> int:
        return max(map(len, (self.title, *self.cells)), default=0)


def _tables(result: SweepResult, extra: Iterable[str | None], width: int) -> list[Any]:
    """The rows as one table, or as several below each other where they are wider than `width`."""
    blocks = _blocks(_shown(result, extra), width)
    parts: list[Any] = []
    for block in blocks:
        parts += [_table(block), ""]
    return parts


def _shown(result: SweepResult, extra: Iterable[str | None]) -> list[_Column]:
    asked = {(name or "").removeprefix("max:").partition(":")[0] for name in extra}
    shown = []
    for name in (name for name, n_values in result.axes.items() if n_values > 1):
        is_text = result.columns[name].dtype == object
        cells = [_cell(value, str if is_text else _figure) for value in result.columns[name]]
        shown.append(_Column(_SHORT.get(name, name), cells, is_text))
    for name, (title, write) in {**_COLUMNS, **_ASKED}.items():
        if name in result.columns and (name not in _ASKED or name in asked):
            shown.append(_Column(title, [_cell(value, write) for value in result.columns[name]]))
    if "limit" in result.columns and len({*result.columns["limit"].tolist()}) > 1:
        shown.append(_Column("Limit", [_cell(v, str) for v in result.columns["limit"]], True))
    if not result.columns["fits"].all():
        fits = ["yes" if fits else "no" for fits in result.columns["fits"]]
        shown.append(_Column("Fits", fits, is_text=True))
    return shown


def _blocks(columns: list[_Column], width: int) -> list[list[_Column]]:
    """Columns that fit beside each other; the rows of several blocks are numbered."""

    def needed(block: list[_Column]) -> int:
        return sum(column.width + _GAP for column in block) - _GAP

    if needed(columns) <= width:
        return [columns]
    numbers = _Column("#", [str(i + 1) for i in range(len(columns[0].cells))])
    blocks = [[numbers]]
    for column in columns:
        if len(blocks[-1]) > 1 and needed([*blocks[-1], column]) > width:
            blocks.append([numbers])
        blocks[-1].append(column)
    return blocks


def _table(columns: list[_Column]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for column in columns:  # a single one that is wider than the page goes on below
        table.add_column(
            column.title, justify="left" if column.is_text else "right", overflow="fold"
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def _figure(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}"


def _cell(value: Any, write: Callable[[Any], str]) -> str:
    plain = value.item() if isinstance(value, np.generic) else value
    missing = isinstance(plain, float) and math.isnan(plain)
    return "-" if missing else write(plain)
