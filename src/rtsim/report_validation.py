"""Errors of measurement rows as text for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rtsim import units
from rtsim.console import heading, percent, plain, table_of

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from rtsim.validate import ErrorStats, FileErrors, MetricErrors, ValidationReport

_GROUPINGS_SHOWN = ("gpu", "stack", "model", "dtype", "role", "regime")


def validation_to_json(report: ValidationReport) -> dict[str, Any]:
    """The JSON object of the `validate` contract; a figure without rows is null."""
    return {"files": [_file_to_json(file) for file in report.files]}


def _file_to_json(file: FileErrors) -> dict[str, Any]:
    body: dict[str, Any] = {
        "file": file.file,
        "kind": file.kind,
        "rows": file.rows,
        "skipped": dict(file.skipped),
    }
    headline = file.metrics.get(file.headline)
    body.update(_metric_to_json(headline) if headline else _stats_to_json(None))
    if len(file.metrics) > 1:
        body["metrics"] = {name: _metric_to_json(m) for name, m in file.metrics.items()}
    if file.note:
        body["note"] = file.note
    return body


def _metric_to_json(metric: MetricErrors) -> dict[str, Any]:
    return {
        **_stats_to_json(metric.total),
        "by": {
            grouping: {name: _stats_to_json(stats) for name, stats in groups.items()}
            for grouping, groups in metric.by.items()
        },
        "worst": [asdict(row) for row in metric.worst],
    }


def _stats_to_json(stats: ErrorStats | None) -> dict[str, Any]:
    if stats is None:
        empty: dict[str, Any] = dict.fromkeys(("mape", "median_ape", "p90_ape", "bias"))
        return {"predicted": 0, **empty, "coverage_90": None}
    body = asdict(stats)
    body["predicted"] = body.pop("rows")
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in body.items()}


def validation_view(report: ValidationReport) -> RenderableType:
    """Errors of every file, by group, with the worst rows."""
    from rich.console import Group

    parts: list[RenderableType] = []
    for file in report.files:
        parts += _file_view(file)
    return Group(*parts)


def _file_view(file: FileErrors) -> list[RenderableType]:
    parts: list[RenderableType] = [
        heading(f"{file.file}: {file.kind}, {units.counted(file.rows, 'row')}")
    ]
    if file.note:
        parts.append(plain(file.note))
    parts += [plain(f"skipped {count}: {reason}") for reason, count in file.skipped.items()]
    for name, metric in file.metrics.items():
        if metric.total is None:
            continue
        table = table_of(
            (name if len(file.metrics) > 1 else "", "left"),
            ("Rows", "right"),
            ("MAPE", "right"),
            ("Median", "right"),
            ("P90", "right"),
            ("Bias", "right"),
            ("In 90%", "right"),
        )
        _add_stats(table, "all", metric.total)
        for grouping in _GROUPINGS_SHOWN:
            for group, stats in metric.by.get(grouping, {}).items():
                _add_stats(table, f"{grouping} {group}", stats)
        parts += ["", table]
        if metric.worst:
            parts += ["", *_worst_view(metric)]
    parts.append("")
    return parts


def _add_stats(table: Table, label: str, stats: ErrorStats) -> None:
    table.add_row(
        label,
        str(stats.rows),
        percent(stats.mape),
        percent(stats.median_ape),
        percent(stats.p90_ape),
        f"{100.0 * stats.bias:+.1f}%",
        "-" if math.isnan(stats.coverage_90) else percent(stats.coverage_90),
    )


def _worst_view(metric: MetricErrors) -> list[RenderableType]:
    """The worst rows; what they all have in common is said once."""
    from rich.padding import Padding

    rows = [row.what for row in metric.worst]
    common = {k: v for k, v in rows[0].items() if all(what.get(k) == v for what in rows)}
    parts: list[RenderableType] = [heading("Worst rows")]
    if len(rows) > 1 and common:
        parts.append(Padding(plain(f"all: {_listed(common)}"), (0, 0, 0, 2)))
    for row in metric.worst:
        own = {k: v for k, v in row.what.items() if len(rows) == 1 or k not in common}
        measured = units.format_seconds(row.measured_s)
        predicted = units.format_seconds(row.predicted_s)
        text = f"line {row.line}: {100.0 * row.error:+.1f}%, {predicted} for {measured} measured"
        parts.append(Padding(plain(f"{text}; {_listed(own)}"), (0, 0, 0, 2)))
    return parts


def _listed(facts: Mapping[str, str | int | float]) -> str:
    return " ".join(f"{name}={value}" for name, value in facts.items())
