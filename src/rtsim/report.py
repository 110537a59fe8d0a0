"""Results as text for people and as JSON for programs: the only home of presentation.

The JSON keys are a contract with other programs; times in seconds, sizes in bytes, fractions
as fractions. Text is laid out for 80 columns and carries colour only on a terminal.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from rtsim import units
from rtsim.prediction import (
    Interval,
    OperatorChange,
    OperatorTime,
    Prediction,
    WhatIf,
    operator_changes,
)

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from rtsim.validate import ErrorStats, FileErrors, MetricErrors, ValidationReport

# Operators with a smaller share of the time are summed into one line of the text.
SMALLEST_SHARE_SHOWN = 0.001
_CHANGES_SHOWN = 12  # operators of a "what if" listed in the text
_UNCHANGED_NAMED = 3
# Figures of the unchanged system in the JSON of a "what if".
_COMPARED = (
    *("ttft_s", "tpot_s", "e2e_latency_s", "output_throughput", "prefill_flops", "decode_flops"),
    *("mfu", "mbu", "energy_j"),
)
_GROUPINGS_SHOWN = ("gpu", "stack", "model", "dtype", "role", "regime")

PLAIN_WIDTH = 80  # of text for a file or a pipe


def prediction_to_json(p: Prediction) -> dict[str, Any]:
    """The prediction as the JSON object of the `predict` contract."""
    interval = p.interval_90
    body = {
        "model": asdict(p.model),
        "gpu": asdict(p.gpu),
        "stack": p.stack,
        "profile": p.profile,
        "num_gpus": p.num_gpus,
        "parallelism": asdict(p.parallelism),
        "workload": asdict(p.workload),
        "ttft_s": p.ttft_s,
        "tpot_s": p.tpot_s,
        "e2e_latency_s": p.e2e_latency_s,
        "output_throughput": p.output_throughput,
        "prefill_flops": p.prefill_flops,
        "decode_flops": p.decode_flops,
        "mfu": p.mfu,
        "mbu": p.mbu,
        "memory": asdict(p.memory),
        "cost": None if p.cost is None else asdict(p.cost),
        "energy_j": p.energy_j,
        "interval_90": {
            "ttft_s": _pair(interval.ttft_s),
            "tpot_s": _pair(interval.tpot_s),
            "e2e_latency_s": _pair(interval.e2e_latency_s),
        },
        "breakdown": [asdict(operator) for operator in p.breakdown],
        "sources": list(p.sources),
        "notes": list(p.notes),
        "assumed": list(p.assumed),
    }
    if p.what_if is not None:
        body["what_if"] = _what_if_to_json(p, p.what_if)
    return body


def _what_if_to_json(after: Prediction, what_if: WhatIf) -> dict[str, Any]:
    before = what_if.before
    metrics = None if before is None else {
        **{name: getattr(before, name) for name in _COMPARED},
        "cost": None if before.cost is None else asdict(before.cost),
        "memory": asdict(before.memory),
    }  # fmt: skip
    changes = [] if before is None else operator_changes(before.breakdown, after.breakdown)
    return {
        "set": dict(what_if.settings),
        "before": metrics,
        "changed": [asdict(change) for change in changes],
    }


def _pair(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


@dataclass(frozen=True, slots=True)
class OperatorLine:
    """One operator of the text breakdown: prefill and decode together."""

    operator: str
    time_s: float
    share_frac: float  # of the time of all operators
    bound: str  # "compute/memory" where prefill and decode differ
    flops: float
    bytes: float


def merge_phases(breakdown: Iterable[OperatorTime]) -> list[OperatorLine]:
    """One line per operator, longest first; those below SMALLEST_SHARE_SHOWN share one."""
    merged: dict[str, list[OperatorTime]] = {}
    for row in breakdown:
        merged.setdefault(row.operator, []).append(row)
    total_s = sum(row.time_s for rows in merged.values() for row in rows)
    lines = [_merged_line(name, rows, total_s) for name, rows in merged.items()]
    lines.sort(key=lambda line: -line.time_s)
    shown = [line for line in lines if line.share_frac >= SMALLEST_SHARE_SHOWN]
    small = lines[len(shown) :]
    if len(small) == 1:
        shown += small
    elif small:
        shown.append(
            OperatorLine(
                f"{len(small)} smaller operators",
                sum(line.time_s for line in small),
                sum(line.share_frac for line in small),
                "",
                sum(line.flops for line in small),
                sum(line.bytes for line in small),
            )
        )
    return shown


def _merged_line(name: str, rows: Sequence[OperatorTime], total_s: float) -> OperatorLine:
    time_s = sum(row.time_s for row in rows)
    in_order = sorted(rows, key=lambda row: row.phase != "prefill")
    # A phase that takes no visible part of the operator's time has no say in what bounds it.
    bounds = [row.bound for row in in_order if row.time_s > SMALLEST_SHARE_SHOWN * time_s]
    return OperatorLine(
        name,
        time_s,
        time_s / total_s if total_s > 0.0 else 0.0,
        "/".join(dict.fromkeys(bounds)),
        sum(row.flops for row in rows),
        sum(row.bytes for row in rows),
    )


def prediction_view(p: Prediction) -> RenderableType:
    """The prediction for a console: headline, memory, cost, breakdown, and where it comes from."""
    from rich.console import Group
    from rich.padding import Padding

    parts: list[RenderableType] = [
        _heading(_title(p)),
        _workload_line(p),
        "",
        *(_what_if_view(p, p.what_if) if p.what_if is not None else ()),
        _two_columns(_metric_rows(p)),
        "",
        _breakdown_table(p),
    ]
    sources = list(p.sources)
    if p.cost is not None:
        sources.append(f"price: {p.cost.source}")
    for heading, lines in (("Assumed", p.assumed), ("Notes", p.notes), ("Sources", sources)):
        if lines:
            parts += [
                "",
                _heading(heading),
                *(Padding(_plain(line), (0, 0, 0, 2)) for line in lines),
            ]
    return Group(*parts)


def _what_if_view(after: Prediction, what_if: WhatIf) -> list[RenderableType]:
    """Before and after of the headline figures, the operators that moved, and what stayed."""
    settings = ", ".join(f"{path} = {value}" for path, value in what_if.settings)
    parts: list[RenderableType] = [_heading(f"What if {settings}")]
    before = what_if.before
    if before is None:
        return [*parts, _plain("  no prediction without the changes to compare with"), ""]
    table = _table(("", "left"), *((name, "right") for name in ("Before", "After", "Ratio")))
    new_figures = _compared(after)
    for label, (old, old_text) in _compared(before).items():
        new, new_text = new_figures[label]
        if old is not None or new is not None:
            table.add_row(label, old_text, new_text, _ratio(old, new))
    parts += [table, ""]
    changes = operator_changes(before.breakdown, after.breakdown)
    if changes:
        parts += [_changes_table(changes[:_CHANGES_SHOWN]), ""]
    return [*parts, _plain(_unchanged(before, after, changes)), ""]


def _changes_table(changes: Sequence[OperatorChange]) -> Table:
    table = _table(
        ("Operator that moves", "left"),
        ("Phase", "left"),
        ("Before", "right"),
        ("After", "right"),
        ("Ratio", "right"),
        ("Bound by", "left"),
    )
    for change in changes:
        bounds = dict.fromkeys((change.before_bound or "-", change.after_bound or "-"))
        table.add_row(
            change.operator,
            change.phase,
            units.format_seconds(change.before_s),
            units.format_seconds(change.after_s),
            _ratio(change.before_s, change.after_s),
            " -> ".join(bounds),
        )
    return table


def _unchanged(before: Prediction, after: Prediction, changes: Sequence[OperatorChange]) -> str:
    """One line on what is not in the table: further changes, and operators that stay."""
    moved = {(change.operator, change.phase) for change in changes}
    stay = [row for row in after.breakdown if (row.operator, row.phase) not in moved]
    names = list(dict.fromkeys(row.operator for row in sorted(stay, key=lambda r: -r.time_s)))
    stay_s = sum(row.time_s for row in stay)
    more = len(changes) - _CHANGES_SHOWN
    text = f"{more} more move by less. " if more > 0 else ""
    if not names:
        return f"{text}Every operator moves by more than 1 %."
    total_s = sum(row.time_s for row in after.breakdown)
    share = _percent(stay_s / total_s if total_s > 0.0 else 0.0)
    largest = ", ".join(names[:_UNCHANGED_NAMED])
    others = f" and {len(names) - _UNCHANGED_NAMED} more" if len(names) > _UNCHANGED_NAMED else ""
    return f"{text}Unchanged (within 1 %), {share} of the time: {largest}{others}."


def _ratio(before: float | None, after: float | None) -> str:
    """
    >>> _ratio(2.0, 1.0), _ratio(2.0, 2.0), _ratio(None, 2.0)
    ('0.500x', 'same', '-')
    """
    if before == after:
        return "same"
    return f"{after / before:.3f}x" if before and after is not None else "-"


def _compared(p: Prediction) -> dict[str, tuple[float | None, str]]:
    """Figures of a "what if" that stand side by side: label -> figure, and how it is written."""
    cost = p.cost
    request = None if cost is None else cost.usd_per_request
    million = None if cost is None else cost.usd_per_million_output_tokens
    tokens, throughput = _throughput(p)
    if _encodes(p):
        million = None if request is None else _per_million_input(request, p)
        times: dict[str, tuple[float | None, str]] = {
            "Time of the pass": (p.e2e_latency_s, units.format_seconds(p.e2e_latency_s)),
        }
    else:
        times = {
            "Time to first token": (p.ttft_s, units.format_seconds(p.ttft_s)),
            "Time per output token": (
                p.tpot_s,
                "-" if p.tpot_s is None else units.format_seconds(p.tpot_s),
            ),
            "End-to-end latency": (p.e2e_latency_s, units.format_seconds(p.e2e_latency_s)),
        }
    return {
        **times,
        f"{tokens} throughput": (throughput, f"{units.format_rate(throughput)} tokens/s"),
        "Cost per request": (request, "-" if request is None else units.format_usd(request)),
        "Cost per million tokens": (
            million,
            "-" if million is None else units.format_usd(million),
        ),
        "Memory per GPU": (p.memory.used_bytes, units.format_bytes(p.memory.used_bytes)),
    }


def _encodes(p: Prediction) -> bool:
    """Whether the model makes one pass over its input and generates nothing."""
    return p.model.kind == "encoder"


def _throughput(p: Prediction) -> tuple[str, float]:
    """("Output" or "Input", tokens per second): an encoder has nothing but its input."""
    w = p.workload
    if _encodes(p):
        return "Input", w.batch_size * w.input_len / p.e2e_latency_s
    return "Output", p.output_throughput


def _per_million_input(usd_per_request: float, p: Prediction) -> float:
    return usd_per_request / p.workload.input_len * 1e6


def _title(p: Prediction) -> str:
    size = units.format_count(p.model.parameters)
    if p.model.active_parameters != p.model.parameters:
        size += f", {units.format_count(p.model.active_parameters)} active"
    split = ", ".join(f"{k} {v}" for k, v in asdict(p.parallelism).items() if v > 1)
    gpus = p.gpu.name if p.num_gpus == 1 else f"{p.num_gpus} x {p.gpu.name}"
    return f"{p.model.name} ({size} parameters) on {gpus}" + (f", {split}" if split else "")


def _workload_line(p: Prediction) -> str:
    w = p.workload
    formats = [w.dtype]
    if w.kv_cache_dtype != w.dtype:
        formats.append(f"KV cache {w.kv_cache_dtype}")
    if w.quantization not in (None, "none"):
        formats.append(f"weights {w.quantization}")
    lengths = f"prompt {w.input_len}, output {w.output_len}"
    if _encodes(p):
        lengths = f"input {w.input_len}"
    return f"batch {w.batch_size}, {lengths}, {', '.join(formats)}, stack {p.stack}"


def _metric_rows(p: Prediction) -> list[tuple[str, str, str]]:
    """(label, value, remark) of every figure above the breakdown."""
    work = "all GPUs, what ranks repeat included" if p.parallelism.tp > 1 else "all GPUs"
    tokens, throughput = _throughput(p)
    rows = [
        *_time_rows(p),
        (f"{tokens} throughput", f"{units.format_rate(throughput)} tokens/s", ""),
        ("Compute utilization (MFU)", _percent(p.mfu), _peak(p)),
        (
            "Bandwidth utilization (MBU)",
            _percent(p.mbu),
            f"of {units.format_bytes_per_s(p.gpu.hbm_bytes_per_s)} per GPU",
        ),
        ("Work" if _encodes(p) else "Prefill work", units.format_flops(p.prefill_flops), work),
        *(() if _encodes(p) else (("Decode work", units.format_flops(p.decode_flops), work),)),
        ("", "", ""),
        *_memory_rows(p),
        ("", "", ""),
    ]
    if p.cost is None:
        rows.append(("Cost", "unknown", "no price is known for this GPU"))
    else:
        million, of = p.cost.usd_per_million_output_tokens, "of output"
        if _encodes(p):
            million, of = _per_million_input(p.cost.usd_per_request, p), "of input"
        rows += [
            (
                "Cost per request",
                units.format_usd(p.cost.usd_per_request),
                f"at {units.format_usd(p.cost.usd_per_gpu_hour)} per GPU hour",
            ),
            ("Cost per million tokens", units.format_usd(million), of),
        ]
    if p.energy_j is not None:
        rows.append(("Energy", _joules(p.energy_j), units.format_watt_hours(p.energy_j)))
    return rows


def _time_rows(p: Prediction) -> list[tuple[str, str, str]]:
    whole = units.format_seconds(p.e2e_latency_s), _range(p.interval_90.e2e_latency_s)
    if _encodes(p):
        return [("Time of the pass", *whole)]
    return [
        ("Time to first token", units.format_seconds(p.ttft_s), _range(p.interval_90.ttft_s)),
        _per_token_row(p),
        ("End-to-end latency", *whole),
    ]


def _per_token_row(p: Prediction) -> tuple[str, str, str]:
    label = "Time per output token"
    if p.tpot_s is None:
        return (label, "-", "one token: it comes with the prompt")
    return (label, units.format_seconds(p.tpot_s), _range(p.interval_90.tpot_s))


def _peak(p: Prediction) -> str:
    peak = units.format_flops_per_s(p.gpu.peak_flops_per_s)
    return f"of {peak} per GPU, dense {p.gpu.peak_dtype or p.workload.dtype}"


def _memory_rows(p: Prediction) -> list[tuple[str, str, str]]:
    memory = p.memory
    verdict = "fits" if memory.fits else "DOES NOT FIT"
    capacity = units.format_bytes(memory.capacity_bytes)
    rows = [("Memory per GPU", units.format_bytes(memory.used_bytes), f"of {capacity}: {verdict}")]
    if not memory.fits:
        tp = memory.smallest_fitting_tp
        answer = ("none", "within one node") if tp is None else (f"tp {tp}", "")
        rows.append(("  smallest that fits", *answer))
        if tp is None and memory.min_gpus is not None:
            rows.append(("  fewest GPUs", str(memory.min_gpus), "with pipeline stages"))
    kept = {
        "keys and values": "KV cache",
        "states": "states",
        "keys and values, states": "KV cache, states",
    }.get(p.model.keeps)
    cache = () if kept is None else ((f"  {kept}", units.format_bytes(memory.kv_cache_bytes), ""),)
    return [
        *rows,
        ("  weights", units.format_bytes(memory.weights_bytes), ""),
        *cache,
        ("  activations", units.format_bytes(memory.activation_bytes), ""),
        ("  reserved", units.format_bytes(memory.reserved_bytes), ""),
        *_limit_rows(p),
    ]


def _limit_rows(p: Prediction) -> list[tuple[str, str, str]]:
    """What the memory left over would hold."""
    memory = p.memory
    if not memory.fits:
        return []
    lengths = f"of {p.workload.input_len} + {p.workload.output_len} tokens"
    if _encodes(p):
        lengths = f"of {p.workload.input_len} tokens"
    return [
        ("  largest batch", str(memory.max_batch_size), lengths),
        (
            "  longest context",
            f"{memory.max_context} tokens",
            f"at batch {p.workload.batch_size}, by memory",
        ),
    ]


def _range(interval: Interval | None) -> str:
    if interval is None:
        return ""
    low, high = units.format_seconds(interval.low), units.format_seconds(interval.high)
    return f"90% within {low} to {high}"


def _percent(fraction: float) -> str:
    return f"{100.0 * fraction:.1f}%"


def _joules(energy_j: float) -> str:
    kilojoules = energy_j / 1e3
    return f"{units.format_number(energy_j)} J" if kilojoules < 1.0 else f"{kilojoules:,.3g} kJ"


def _breakdown_table(p: Prediction) -> Table:
    table = _table(
        ("Operator", "left"),
        ("Time", "right"),
        ("Share", "right"),
        ("Bound by", "left"),
        ("FLOP", "right"),
        ("Bytes", "right"),
    )
    for line in merge_phases(p.breakdown):
        table.add_row(
            line.operator,
            units.format_seconds(line.time_s),
            _percent(line.share_frac),
            line.bound,
            units.format_flops(line.flops).removesuffix("FLOP") if line.flops else "-",
            units.format_bytes(line.bytes) if line.bytes else "-",
        )
    return table


# Validation


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
    parts: list[RenderableType] = [_heading(f"{file.file}: {file.kind}, {file.rows} rows")]
    if file.note:
        parts.append(_plain(file.note))
    parts += [_plain(f"skipped {count}: {reason}") for reason, count in file.skipped.items()]
    for name, metric in file.metrics.items():
        if metric.total is None:
            continue
        table = _table(
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
        _percent(stats.mape),
        _percent(stats.median_ape),
        _percent(stats.p90_ape),
        f"{100.0 * stats.bias:+.1f}%",
        "-" if math.isnan(stats.coverage_90) else _percent(stats.coverage_90),
    )


def _worst_view(metric: MetricErrors) -> list[RenderableType]:
    """The worst rows; what they all have in common is said once."""
    from rich.padding import Padding

    rows = [row.what for row in metric.worst]
    common = {k: v for k, v in rows[0].items() if all(what.get(k) == v for what in rows)}
    parts: list[RenderableType] = [_heading("Worst rows")]
    if len(rows) > 1 and common:
        parts.append(Padding(_plain(f"all: {_listed(common)}"), (0, 0, 0, 2)))
    for row in metric.worst:
        own = {k: v for k, v in row.what.items() if len(rows) == 1 or k not in common}
        measured = units.format_seconds(row.measured_s)
        predicted = units.format_seconds(row.predicted_s)
        text = f"line {row.line}: {100.0 * row.error:+.1f}%, {predicted} for {measured} measured"
        parts.append(Padding(_plain(f"{text}; {_listed(own)}"), (0, 0, 0, 2)))
    return parts


def _listed(facts: Mapping[str, str | int | float]) -> str:
    return " ".join(f"{name}={value}" for name, value in facts.items())


# Tables and consoles


def facts_view(title: str, facts: Mapping[str, str]) -> RenderableType:
    """A heading and aligned "name  value" lines, for `show`."""
    from rich.console import Group

    return Group(_heading(title), _two_columns([(name, text) for name, text in facts.items()]))


def page(
    title: str,
    subtitle: str,
    figures: Sequence[tuple[str, str, str]],
    tables: Sequence[
        tuple[Sequence[tuple[str, Literal["left", "right"]]], Sequence[Sequence[str]]]
    ],
    lists: Sequence[tuple[str, Sequence[str]]],
) -> RenderableType:
    """A result for a console: headline, (label, value, remark) figures, tables, then lists.

    tables: columns as (heading, alignment) with rows of texts. lists: heading and lines each; one
    without lines is left out.
    """
    from rich.console import Group
    from rich.padding import Padding

    parts: list[RenderableType] = [_heading(title), _plain(subtitle), "", _two_columns(figures)]
    for columns, rows in tables:
        table = _table(*columns)
        for row in rows:
            table.add_row(*(_plain(cell) for cell in row))
        parts += ["", table]
    for heading, lines in lists:
        if lines:
            indented = (Padding(_plain(line), (0, 0, 0, 2)) for line in lines)
            parts += ["", _heading(heading), *indented]
    return Group(*parts)


def write(view: RenderableType) -> None:
    """Print to standard output: colours and its own width on a terminal, else plain text."""
    from rich.console import Console

    console = Console(highlight=False)
    if console.is_terminal:
        console.print(view)
    else:
        console.file.write(to_text(view))


def console_width() -> int:
    """Columns that `write` has."""
    from rich.console import Console

    console = Console()
    return console.width if console.is_terminal else PLAIN_WIDTH


def to_text(view: RenderableType) -> str:
    """The view as plain text, PLAIN_WIDTH columns wide, for a file or a pipe."""
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, highlight=False, width=PLAIN_WIDTH, color_system=None).print(view)
    return "".join(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())


def _plain(text: str) -> Text:
    """Text that is printed as it is: brackets in it are no markup."""
    from rich.text import Text

    return Text(text)


def _heading(text: str) -> Text:
    from rich.text import Text

    return Text(text, style="bold")


def _table(*columns: tuple[str, Literal["left", "right"]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for i, (name, side) in enumerate(columns):
        # Only the text columns give way when the line is too long.
        table.add_column(
            name, justify=side, no_wrap=side == "right", overflow="fold" if i else "ellipsis"
        )
    return table


def _two_columns(rows: Sequence[tuple[str, ...]]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    for i in range(1, max((len(row) for row in rows), default=1)):
        table.add_column(justify="right" if i == 1 and len(rows[0]) > 2 else "left")
    for row in rows:
        table.add_row(*(_plain(cell) for cell in row))
    return table
