"""Profile x measurements -> errors: predicts every row of measurement tables.

Errors are relative to the measured time, (predicted - measured) / measured. `bias` is their mean
with the sign kept, the APE figures are of their absolute values, and `coverage_90` is the share
of rows whose measured time lies in the predicted 90% interval.

A kind of table is predicted by a function in `_PREDICTORS`; files of other kinds are named in the
report and do no harm.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rtsim.measurement_schema import KINDS
from rtsim.measurements import UNKNOWN_KIND, Columns, Table, read_table
from rtsim.row_times import RowTimes

Array = NDArray[np.float64]

GROUPINGS = ("gpu", "model", "stack", "dtype", "role", "regime")
GPU_FILE = "gpu.toml"  # in a folder of tables: the GPU that they are of
WORST_ROWS = 5
REPEATED_ROW = "repeats an earlier row"
_OTHER_UNIT = 50.0  # a table whose times are this far from the predicted ones is in another unit


# (columns, profile name or None for the best evidence) -> times by metric. Where there are
# several metrics the last one is the file's own.
Predictor = Callable[[Columns, str | None], Mapping[str, RowTimes]]

# kind -> "module:function", imported on use.
_PREDICTORS: dict[str, str] = {
    "generation": "rtsim.fitting.generation_rows:predict_rows",
    "gemm": "rtsim.fitting.kernel_rows:predict_gemm",
    "attention_prefill": "rtsim.fitting.kernel_rows:predict_attention_prefill",
    "attention_decode": "rtsim.fitting.kernel_rows:predict_attention_decode",
    "collective": "rtsim.fitting.kernel_rows:predict_collective",
    "elementwise": "rtsim.fitting.kernel_rows:predict_elementwise",
    "moe": "rtsim.fitting.kernel_rows:predict_moe",
    "mla": "rtsim.fitting.kernel_rows:predict_mla",
    "network_inference": "rtsim.fitting.network_rows:predict_rows",
    "serving": "rtsim.fitting.serving:predict_serving",
    "offline_batch": "rtsim.fitting.serving:predict_batches",
}


@dataclass(frozen=True, slots=True)
class ErrorStats:
    """Errors over some rows, as fractions. `coverage_90` is NaN where there is no interval."""

    rows: int
    mape: float
    median_ape: float
    p90_ape: float
    bias: float
    coverage_90: float


@dataclass(frozen=True, slots=True)
class WorstRow:
    """A row that was predicted badly: its line in the file and what was measured there."""

    line: int
    measured_s: float
    predicted_s: float
    error: float
    what: dict[str, str | int | float]


@dataclass(frozen=True, eq=False)
class Points:
    """Predicted and measured seconds of the rows that were predicted, for a plot.

    low_s, high_s: the 90% interval, NaN where there is none. gpu: name of each row's GPU.
    """

    measured_s: Array
    predicted_s: Array
    low_s: Array
    high_s: Array
    gpu: NDArray[np.str_]


@dataclass(frozen=True)
class MetricErrors:
    """Errors of one measured quantity; `total` and `points` are None where no row was predicted.

    `by`: grouping ("gpu", "model", ...) -> group -> errors.
    """

    total: ErrorStats | None
    by: dict[str, dict[str, ErrorStats]] = field(default_factory=dict)
    worst: tuple[WorstRow, ...] = ()
    points: Points | None = None


@dataclass(frozen=True)
class FileErrors:
    """Errors of one file. `metrics` is empty for a kind that is not predicted."""

    file: str
    kind: str
    rows: int
    skipped: dict[str, int]
    metrics: dict[str, MetricErrors]
    headline: str = ""  # the metric whose figures stand for the file
    note: str = ""


@dataclass(frozen=True)
class ValidationReport:
    """Errors of all files, in the order they were given."""

    files: tuple[FileErrors, ...]


def validate(
    files: str | Path | Sequence[str | Path],
    profile: str | None = None,
    *,
    worst: int = WORST_ROWS,
    gpu: str | Path | None = None,
) -> ValidationReport:
    """Predict every row of measurement tables and say how far off the predictions are.

    files: tables, or folders of them. profile: name or file of a fitted profile; None takes the
    best evidence for each row's GPU and stack. worst: how many of the worst rows to list per file.
    gpu: file of a GPU that is not in the catalogue and that rows name; a folder's own `gpu.toml`
    is such a file. Raises DataError for a faulty file.
    """
    from rtsim.fitting.sort_rows import table_paths

    named = [files] if isinstance(files, str | Path) else list(files)
    own: dict[str, Path] = {}
    for file in [Path(f) / GPU_FILE for f in named] + ([] if gpu is None else [Path(gpu)]):
        if file.is_file() or (gpu is not None and file == Path(gpu)):
            own.update(dict.fromkeys(_names_of(file), file))
    return ValidationReport(
        tuple(_validate_table(read_table(p), profile, worst, own) for p in table_paths(named))
    )


def _names_of(file: Path) -> tuple[str, ...]:
    """Names that rows may give the GPU of a file. Raises DataError, SpecError."""
    from rtsim.catalog import load_gpu

    spec = load_gpu(file)
    return (spec.name, *spec.aliases)


def _of_own_gpus(columns: Columns, own: Mapping[str, Path]) -> Columns:
    """Columns in which GPUs that a file describes are named by that file."""
    if not own or "gpu" not in columns:
        return columns
    names = [str(own.get(name, name)) for name in columns["gpu"].tolist()]
    return {**columns, "gpu": np.array(names, np.str_)}


def _validate_table(
    table: Table, profile: str | None, worst: int, own: Mapping[str, Path]
) -> FileErrors:
    predictor = _predictor(table.kind)
    if predictor is None:
        if table.kind == UNKNOWN_KIND:
            note = f"no kind of measurement table has these columns; kinds: {', '.join(KINDS)}"
        else:
            note = f"predictions are not made for tables of kind {table.kind}"
        reason = "unknown kind of table" if table.kind == UNKNOWN_KIND else "kind not predicted"
        return FileErrors(table.file, table.kind, len(table), {reason: len(table)}, {}, note=note)
    times = predictor(_of_own_gpus(table.columns, own), profile)
    metrics: dict[str, MetricErrors] = {}
    skipped: dict[str, int] = {}
    for name, rows in times.items():
        skip = np.where(table.repeated & (rows.skip == ""), REPEATED_ROW, rows.skip)
        metrics[name] = _metric_errors(table, rows, skip, worst)
        reasons, counts = np.unique(skip[skip != ""], return_counts=True)
        skipped = dict(zip(reasons.tolist(), counts.tolist(), strict=True))
    headline = list(metrics)[-1]
    return FileErrors(
        table.file, table.kind, len(table), skipped, metrics, headline=headline,
        note=_doubt_of_unit(metrics[headline].points),
    )  # fmt: skip


def _doubt_of_unit(points: Points | None) -> str:
    """A note where measured times are far from anything that the hardware would take."""
    if points is None:
        return ""
    ratio = float(np.median(points.measured_s / points.predicted_s))
    if 1.0 / _OTHER_UNIT < ratio < _OTHER_UNIT:
        return ""
    times = f"{ratio:,.0f} times" if ratio > 1.0 else f"1/{1.0 / ratio:,.0f} of"
    return f"the measured times are {times} the predicted ones in the median: is the unit right?"


def _predictor(kind: str) -> Predictor | None:
    if kind not in _PREDICTORS:
        return None
    module, _, function = _PREDICTORS[kind].partition(":")
    return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


def _metric_errors(
    table: Table, rows: RowTimes, skip: NDArray[np.str_], worst: int
) -> MetricErrors:
    used = np.flatnonzero(skip == "")
    if len(used) == 0:
        return MetricErrors(None)
    error = rows.predicted_s[used] / rows.measured_s[used] - 1.0
    inside = _inside(rows, used)
    by: dict[str, dict[str, ErrorStats]] = {}
    for grouping in GROUPINGS:
        labels = rows.regime if grouping == "regime" else table.columns.get(grouping)
        by[grouping] = {} if labels is None else _grouped(labels[used], error, inside)
    if rows.regimes:
        by["regime"] = {name: by["regime"][name] for name in rows.regimes if name in by["regime"]}
    order = np.argsort(-np.abs(error), kind="stable")[:worst]
    return MetricErrors(
        _stats(error, inside),
        by,
        tuple(_worst_row(table, rows, int(used[i]), float(error[i])) for i in order),
        Points(
            rows.measured_s[used],
            rows.predicted_s[used],
            rows.low_s[used],
            rows.high_s[used],
            table.columns["gpu"][used] if "gpu" in table.columns else np.full(len(used), ""),
        ),
    )


def _inside(rows: RowTimes, used: NDArray[np.intp]) -> Array:
    """1 where the measured time is in the interval, 0 where not, NaN where there is none."""
    low, high, measured = rows.low_s[used], rows.high_s[used], rows.measured_s[used]
    within = ((low <= measured) & (measured <= high)).astype(np.float64)
    return np.where(np.isnan(low) | np.isnan(high), np.nan, within)


def _grouped(labels: NDArray[Any], error: Array, inside: Array) -> dict[str, ErrorStats]:
    """Errors of each label, "" left out."""
    names, group_of = np.unique(labels, return_inverse=True)
    return {
        str(name): _stats(error[group_of == i], inside[group_of == i])
        for i, name in enumerate(names)
        if str(name)
    }


def _stats(error: Array, inside: Array) -> ErrorStats:
    ape = np.abs(error)
    known = inside[~np.isnan(inside)]
    return ErrorStats(
        rows=len(error),
        mape=float(ape.mean()),
        median_ape=float(np.median(ape)),
        p90_ape=float(np.quantile(ape, 0.9)),
        bias=float(error.mean()),
        coverage_90=float(known.mean()) if len(known) else float("nan"),
    )


def _worst_row(table: Table, rows: RowTimes, i: int, error: float) -> WorstRow:
    what = {}
    for column in KINDS[table.kind].columns:
        value = table.columns[column.name][i].item()
        # Who measured it, and what was not stated, do not help to see why it is off.
        if column.type in ("text", "count") and value != column.default and column.name != "source":
            what[column.name] = value
    return WorstRow(
        line=int(table.lines[i]),
        measured_s=float(rows.measured_s[i]),
        predicted_s=float(rows.predicted_s[i]),
        error=error,
        what=what,
    )
