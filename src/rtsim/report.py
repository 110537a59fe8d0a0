"""A prediction as text for people and as JSON for programs.

The JSON keys are a contract with other programs; times in seconds, sizes in bytes, fractions
as fractions. Text is laid out for 80 columns and carries colour only on a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rtsim import units
from rtsim.console import heading, percent, plain, table_of, two_columns
from rtsim.prediction import Interval, OperatorTime, Prediction
from rtsim.report_rows import metric_rows, title_of, workload_line
from rtsim.report_what_if import what_if_to_json, what_if_view

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

# Operators with a smaller share of the time are summed into one line of the text.
SMALLEST_SHARE_SHOWN = 0.001


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
        body["what_if"] = what_if_to_json(p, p.what_if)
    return body


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
        heading(title_of(p)),
        workload_line(p),
        "",
        *(what_if_view(p, p.what_if) if p.what_if is not None else ()),
        two_columns(metric_rows(p)),
        "",
        _breakdown_table(p),
    ]
    sources = list(p.sources)
    if p.cost is not None:
        sources.append(f"price: {p.cost.source}")
    for title, lines in (("Assumed", p.assumed), ("Notes", p.notes), ("Sources", sources)):
        if lines:
            parts += [
                "",
                heading(title),
                *(Padding(plain(line), (0, 0, 0, 2)) for line in lines),
            ]
    return Group(*parts)


def _breakdown_table(p: Prediction) -> Table:
    table = table_of(
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
            percent(line.share_frac),
            line.bound,
            units.format_flops(line.flops).removesuffix("FLOP") if line.flops else "-",
            units.format_bytes(line.bytes) if line.bytes else "-",
        )
    return table
